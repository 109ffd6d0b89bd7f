"""Rectangles through the command line: how they are written, refused, stored and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from longvis_bench.cli.app import app
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.resolution import Rectangle
from longvis_bench.runs.directory import read_rows
from longvis_bench.sweep.config import read_config
from longvis_bench.sweep.config_file import config_text, read_config_file

NET = """
from torch import nn
def square(*, resolution: int, num_classes, in_chans=3):
    assert isinstance(resolution, int)
    return net(num_classes, in_chans)
def pair(*, resolution: tuple[int, int], num_classes, in_chans=3):
    height, width = resolution
    model = net(num_classes, in_chans)
    model.register_buffer("size", __import__("torch").zeros(height, width))
    return model
def net(num_classes, in_chans):
    return nn.Sequential(nn.Conv2d(in_chans, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""


def longvis(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return "net.py"


def test_bench_measures_a_rectangle_and_stores_both_sides(net: str) -> None:
    done = longvis(
        *("bench", "--models", f"{net}:pair,convnext-n", "--res", "64,96x32", "--device", "cpu", "--quick"),
        *("--metrics", "count,time,memory,validity", "--budget", "0.05", "--out", "run", "--no-cache"),
    )
    assert done.exit_code == 0, done.output
    assert "96x32" in done.output
    rows = read_rows(Path("run"))
    assert {(row.cell.model, row.cell.resolution, row.status) for row in rows} == {
        (name, size, "ok") for name in (f"{net}:pair", "convnext-n") for size in (64, Rectangle(32, 96))
    }
    stored = [json.loads(line)["cell"] for line in Path("run/cells.jsonl").read_text().splitlines()]
    assert {(cell["resolution"], cell["height"], cell["width"]) for cell in stored} == {
        (64, 64, 64),
        (None, 32, 96),
    }
    counted = {(row.cell.model, row.cell.resolution): row.count for row in rows}
    for name in (f"{net}:pair", "convnext-n"):
        square, oblong = counted[name, 64], counted[name, Rectangle(32, 96)]
        assert square is not None
        assert oblong is not None
        assert oblong.macs == pytest.approx(square.macs * 96 * 32 / 64**2, rel=0.01)
    summary = Path("run/summary.md").read_text()
    assert "96x32" in summary
    assert (Path("run") / "plots").is_dir()


def test_weights_trained_at_a_rectangle_are_evaluated_there(tmp_path: Path, net: str) -> None:
    for split in ("train", "val"):
        for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (90 + 20 * index, 70), colour).save(folder / f"{index}.png")
    shared = ("--models", f"{net}:pair", "--data", "folder:images", "--fit", "pad", "--res", "96x32")
    trained = longvis("train", *shared, "--epochs", "1", "--store", "weights", "--device", "cpu", "--quiet")
    assert trained.exit_code == 0, trained.output
    (weights,) = Path("weights").rglob("*.safetensors")
    done = longvis("eval", *shared, "--weights", str(weights), "--device", "cpu", "--out", "run")
    assert done.exit_code == 0, done.output
    (row,) = read_rows(Path("run"))
    assert (row.cell.resolution, row.status) == (Rectangle(32, 96), "ok")
    assert row.accuracy is not None
    assert row.accuracy.images == 8


def test_a_factory_of_squares_is_refused_with_a_sentence(net: str) -> None:
    done = longvis("bench", "--models", f"{net}:square", "--res", "96x64", "--dry-run")
    assert done.exit_code == 2
    assert "96x64 px is not a legal size: net.py:square takes squares only" in " ".join(done.output.split())
    assert "64, 96" in done.output
    assert longvis("bench", "--models", f"{net}:square", "--res", "96", "--dry-run").exit_code == 0


@pytest.mark.parametrize("command", ["flops", "check"])
def test_a_factory_that_takes_a_pair_gets_height_and_width(net: str, command: str) -> None:
    done = longvis(command, f"{net}:pair", "--res", "96x64", *(["--no-fvcore"] if command == "flops" else []))
    assert done.exit_code == 0, done.output
    assert "96x64 px" in done.output


def test_a_size_in_brackets_that_is_another_is_refused() -> None:
    name = "timm:vit_tiny_patch16_224[img_size=(512,1024)]"
    done = longvis("flops", name, "--res", "1024", "--no-fvcore")
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "img_size=(512, 1024) of timm:vit_tiny_patch16_224 is not the 1024 px of --res" in said
    assert "give --res 1024x512" in said


def test_the_size_of_timm_s_models_is_that_of_res() -> None:
    square = longvis("flops", "timm:vit_tiny_patch16_224", "--res", "64", "--no-fvcore")
    oblong = longvis(
        "flops", "timm:vit_tiny_patch16_224[img_size=(32,128)]", "--res", "128x32", "--no-fvcore"
    )
    assert oblong.exit_code == 0, oblong.output
    assert "128x32 px" in oblong.output
    assert square.output.split("MACs")[0].split()[-2:] == oblong.output.split("MACs")[0].split()[-2:]


@pytest.mark.parametrize("size", ["x", "10x", "0x5", "1x2x3", "10*20"])
def test_what_is_no_size_is_refused_in_one_sentence(size: str) -> None:
    done = longvis("bench", "--models", "vit-n", "--res", size, "--dry-run")
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "--res takes whole numbers from 1 up, like 1024,2048 or 1k,2k, or width x height" in said


def test_a_configuration_file_takes_rectangles(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text('models = ["vit-n"]\nresolutions = [64, "2560x1920"]\nfit = "pad"\n')
    config = read_config(read_config_file(file, {}))
    assert config.resolutions == (64, Rectangle(1920, 2560))
    assert config.fit == "pad"
    assert read_config({"resolutions": [(1920, 2560)]}).resolutions == (Rectangle(1920, 2560),)
    assert '"2560x1920"' in config_text({"resolutions": [(1920, 2560)]})


def test_runs_of_squares_and_crops_keep_their_names() -> None:
    """The name was computed by version 0.2.0."""
    options = {"models": ["vit-n"], "resolutions": [256, 512], "device": "cpu"}
    assert read_config(options).name == "vit-n-256-512-0d12e337"
    oblong = read_config({**options, "resolutions": ["2560x1920"]})
    assert oblong.name.startswith("vit-n-2560x1920-")
    assert read_config({**options, "fit": "pad"}).name != read_config(options).name


def test_columns_of_a_rectangle(row: Row) -> None:
    oblong = row.model_copy(
        update={"cell": row.cell.model_copy(update={"resolution": Rectangle(1920, 2560)})}
    )
    values = {name: BY_NAME[name].value(oblong) for name in ("resolution", "height", "width")}
    assert values == {"resolution": None, "height": 1920, "width": 2560}
    assert [BY_NAME[name].value(row) for name in ("resolution", "height", "width")] == [64, 64, 64]


def test_a_card_says_which_rectangles_it_takes() -> None:
    done = longvis("models", "convnext")
    assert "Rectangles: each side a multiple of 32 px." in " ".join(done.output.split())


def test_reach_is_refused_for_rectangles() -> None:
    done = longvis("reach", "--models", "convnext-n", "--res", "64x32")
    assert done.exit_code in (1, 2)
    assert "reach is measured at squares only, not at 64x32 px" in " ".join(done.output.split())
