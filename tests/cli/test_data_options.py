"""Data through the command line: bad input is one sentence and exit code 2, and no path is stored."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.data.protocol import open_data
from longvis_bench.environment import read_environment
from longvis_bench.measure.accuracy import measure_accuracy
from longvis_bench.measure.cell import measure_cell
from longvis_bench.records import Request
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.plan import make_plan
from longvis_bench.text import without_paths
from longvis_bench.weights.classes import head_classes
from longvis_bench.weights.matching import load_weights
from longvis_bench.weights.resolving import known_classes
from longvis_bench.weights.store import save_weights, store_weights

Pictures = Callable[..., Path]

NET = """
from torch import nn
def net(*, resolution, num_classes, in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""
BENCH = ("bench", "--models", "vit-n", "--res", "256", "--device", "cpu", "--dry-run")
TRAIN = ("train", "--models", "vit-n", "--res", "256", "--device", "cpu", "--store", "store")
EVAL = ("eval", "--models", "vit-n", "--res", "256", "--device", "cpu")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        ("rm -r val", (), "has no val/ (nor valid/, validation/, test/): a data set is"),
        ("rm -r train/cat val/cat", (), "train/ has only one class (dog)"),
        ("rm val/*/*", (), "val/ has no images of the classes (.jpg, "),
        ("rm train/dog/*", (), "the class dog has no images in train/"),
        (
            "echo dogs > list; echo cat >> list",
            ("--classes", "pets/list"),
            "unknown class 'dogs': did you mean dog?",
        ),
        (
            "true",
            ("--classes", "imagenet10"),
            "unknown list of classes 'imagenet10': did you mean imagenet100?",
        ),
        ("true", ("--window", "4,3"), "LO has to be below HI"),
        (
            "true",
            ("--bands", "2,1"),
            "--bands takes one or three numbers of bands, from 1, like 3,2,1, not '2,1'",
        ),
        ("true", ("--window", "4"), "--window takes two numbers, like 100,4000, not '4'"),
    ],
)
@pytest.mark.parametrize("command", [BENCH, TRAIN, EVAL], ids=lambda words: words[0])
def test_bad_data_is_one_sentence(
    spoil: str, options: tuple[str, ...], message: str, command: tuple[str, ...], pictures: Pictures
) -> None:
    subprocess.run(spoil, shell=True, check=True, cwd=pictures())
    assert message in _refused(*command, "--data", "folder:pets", *options)


def _at(size: str, words: Sequence[str]) -> list[str]:
    """The command line with another size than 256."""
    return [size if word == "256" else word for word in words]


def _refused(*words: str) -> str:
    """What a command says that must end with one sentence and exit code 2 before anything is done."""
    done = CliRunner().invoke(app, [*words])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert not Path("results").exists()
    assert not Path("store").exists()
    return " ".join(done.stderr.split())


def test_training_needs_training_images_and_an_evaluation_says_what_it_reads(pictures: Pictures) -> None:
    root = pictures()
    shutil.rmtree(root / "train")
    (root / "val").rename(root / "test")
    assert "has no train/: a training needs train/" in _refused(*TRAIN, "--data", "folder:pets")
    vit = Registry().find("vit-n").build(resolution=32, num_classes=2)
    save_weights(vit, Path("vit.safetensors"), {"classes": ["cat", "dog"]})
    words = (*_at("32", EVAL), "--data", "folder:pets", "--weights", "vit.safetensors", "--out", "run")
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    assert "note: the held-out images are those of test/." in done.stderr


@pytest.mark.parametrize("command", [TRAIN, EVAL])
def test_train_and_eval_refuse_a_folder_that_is_not_there(command: tuple[str, ...]) -> None:
    said = _refused(*command, "--data", "folder:gone")
    assert "there is no folder " in said
    assert "gone; folder:PATH needs one that holds train/ and val/." in said


@pytest.mark.parametrize("command", [TRAIN, EVAL])
def test_train_and_eval_refuse_a_size_the_model_cannot_take(command: tuple[str, ...]) -> None:
    said = _refused(*_at("250", command))
    assert "250 px is not a legal size: vit needs a multiple of 16 px; legal sizes near it: 240, 256." in said


@pytest.mark.parametrize("command", [BENCH, EVAL])
@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_more_or_fewer_classes_than_the_weights_have_are_refused(
    command: tuple[str, ...], form: str, pictures: Pictures, tmp_path: Path
) -> None:
    pictures({"ant": 1, "bee": 1, "cat": 1})
    head = nn.Sequential()
    head.add_module("head", nn.Linear(4, 2))
    if form == "pth":
        torch.save({"state_dict": head.state_dict()}, tmp_path / "two.pth")
    else:
        save_weights(head, tmp_path / "two.safetensors", {})
    assert known_classes(tmp_path / f"two.{form}") == 2
    said = _refused(*command, "--data", "folder:pets", "--weights", f"two.{form}")
    assert f"two.{form} has 2 classes and folder:pets-" in said
    assert "has 3: choose weights of this data" in said


@pytest.mark.parametrize(
    ("command", "other", "said"),
    [
        ((*EVAL, "--weights"), "vit-n[dim=24,num_heads=2]", "holds weights of another variant or size: "),
        ((*EVAL, "--weights"), "convnext-n", "lacks "),
        ((*TRAIN, "--from"), "vit-n[dim=24,num_heads=2]", "holds weights of another variant or size: "),
        ((*TRAIN, "--from"), "vit-n[depth=6]", "holds weights of another variant: "),
        ((*BENCH, "--weights"), "vit-n[depth=6]", "holds weights of another variant: "),
    ],
)
def test_weights_of_another_variant_name_at_most_five_tensors(
    command: tuple[str, ...], other: str, said: str, tmp_path: Path
) -> None:
    save_weights(Registry().find(other).build(resolution=256, num_classes=10), tmp_path / "w.safetensors", {})
    sentence = _refused(*command, "w.safetensors")
    assert f"error: w.safetensors {said}" in sentence
    listed = sentence.replace("w.safetensors", "").partition("The model's names")[0]
    named = re.findall(r"cls_token|pos_embed|[a-z_]+(?:\.[a-z0-9_]+)+", listed)
    assert len(named) == 5, named
    assert " more" in sentence


def test_sizes_at_which_a_tensor_would_be_random_are_refused(tmp_path: Path) -> None:
    small = Registry().find("atlas-n").build(resolution=256, num_classes=10)
    save_weights(small, tmp_path / "w.safetensors", {"resolution": 256})
    words = ("eval", "--models", "atlas-n", "--weights", "w.safetensors", "--device", "cpu")
    assert "w.safetensors lacks " in _refused(*words, "--res", "1024")
    config = SweepConfig(
        models=("atlas-n",),
        resolutions=(256, 1024),
        weights=tmp_path / "w.safetensors",
        device="cpu",
        metrics=("accuracy",),
    )
    assert len(make_plan(config, read_environment()).cells) == 2  # where some size fits, it is evaluated


def test_an_evaluation_without_any_weights_is_refused() -> None:
    said = _refused(*_at("320", EVAL))
    assert "no weights ship for vit-n on digits at 320 px; make them with `longvis train" in said
    assert "or give a file with --weights" in said


def test_accuracy_is_that_of_the_shipped_weights_unless_others_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN section 8: never the best of several; nothing at sizes without shipped weights."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    vit = Registry().find("vit-n")
    torch.manual_seed(0)
    made = vit.build(resolution=64, num_classes=10)
    kept = store_weights(made, variant="vit-n", dataset="digits", resolution=256, facts={})
    assert kept.is_relative_to(tmp_path)

    def plan(*sizes: int, weights: Path | None = None) -> list[Request]:
        config = SweepConfig(
            models=("vit-n",), resolutions=sizes, weights=weights, device="cpu", threads=1, images=40
        )
        return [planned.request for planned in make_plan(config, read_environment()).cells]

    shipped, none = plan(256, 320)
    assert shipped.weights_path == vit.folder / "vit-n-digits-256.safetensors"
    assert (none.weights_path, none.cell.weights) == (None, None)
    (given,) = plan(64, weights=kept)
    assert (given.weights_path, given.cell.weights) == (kept.resolve(), kept.name)
    row = measure_cell(
        given.model_copy(update={"cell": given.cell.model_copy(update={"metrics": ("accuracy",)})})
    )
    load_weights(made, kept)
    expected = measure_accuracy(made, open_data("digits"), resolution=64, images=40, batch_size=8)
    assert row.accuracy is not None
    assert (row.accuracy.weights, row.accuracy.correct_top1) == (kept.name, expected.correct_top1)
    assert (row.accuracy.trained_resolution, row.notes[-1].code) == (256, "other_resolution")


@pytest.mark.slow
def test_an_official_checkpoint_end_to_end(tmp_path: Path) -> None:
    """`--weights mambavision_small_1k.pth.tar`: a small one in the authors' names, packed as theirs."""
    with safe_open(GOLDEN / "mambavision_224px.safetensors", "pt") as file:
        known = json.loads(file.metadata()["config"])
        names = [name for name in file.keys() if not name.startswith("expected.")]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    content = {"epoch": 300, "state_dict": tensors, "args": argparse.Namespace(lr=0.1), "metric": 81.2}
    torch.save(content, tmp_path / "mambavision_small_1k.pth.tar")
    arguments = ("dim", "in_dim", "depths", "window_size", "mlp_ratio", "num_heads", "layer_scale")
    inside = ",".join(f"{key}={known[key]!r}" for key in arguments)
    words = ["--models", f"mambavision-n[{inside}]", "--weights", "mambavision_small_1k.pth.tar"]
    done = CliRunner().invoke(
        app, ["eval", *words, "--res", "224", "--images", "20", "--device", "cpu", "--out", "run"]
    )
    assert done.exit_code == 0, done.output
    row = json.loads(Path("run/cells.jsonl").read_text())
    assert row["size"]["random_tensors"] == []
    assert (row["accuracy"]["images"], row["accuracy"]["weights"]) == (20, "mambavision_small_1k.pth.tar")


def test_head_classes_of_other_files_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PK not at all safetensors")
    assert head_classes(tmp_path / "x") is None
    assert head_classes(tmp_path / "gone") is None
    save_weights(nn.Linear(2, 2), tmp_path / "y", {})
    assert head_classes(tmp_path / "y") is None


@pytest.mark.parametrize("shape", ["1", "[]", "[[]]", '["two"]', "{}", "[" * 5000])
def test_head_classes_of_a_header_that_lies_are_unknown(tmp_path: Path, shape: str) -> None:
    header = f'{{"head.weight": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 8]}}}}'.encode()
    (tmp_path / "lies").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    assert head_classes(tmp_path / "lies") is None


def test_the_key_follows_the_images_and_not_the_path(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pets").symlink_to(root)

    def key(path: Path) -> str:
        config = SweepConfig(models=("vit-n",), resolutions=(256,), data=f"folder:{path}", device="cpu")
        return make_plan(config, read_environment()).cells[0].request.key

    before = key(root)
    assert key(tmp_path / "other" / "pets") == before
    (root / "val" / "cat" / "000.png").unlink()
    assert key(root) != before


def test_a_folder_end_to_end(pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures({"cat": 20, "dog": 20}, val=52)
    (root / "val" / "cat" / "000.png").write_bytes(b"broken")
    (tmp_path / "net.py").write_text(NET)
    model = ("--models", "net.py:net", "--res", "64", "--device", "cpu", "--data", f"folder:{root}")
    done = CliRunner().invoke(app, ["train", *model, "--epochs", "1", "--store", "store"])
    assert done.exit_code == 0, done.output
    assert "left out because they cannot be read (1): val/cat/000.png" in " ".join(done.stdout.split())
    weights = next((tmp_path / "store").rglob("*.safetensors"))
    words = ("--weights", str(weights), "--images", "104", "--budget", "0.2", "--quick", "--out", "run")
    monkeypatch.setattr(sys, "argv", ["longvis", "bench", *model, *words])
    done = CliRunner().invoke(app, sys.argv[1:])
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "run" / "cells.jsonl").read_text().splitlines()[-1])
    name = open_data(f"folder:{root}").name
    assert (row["cell"]["data"], row["cell"]["num_classes"]) == (name, 2)
    assert (row["accuracy"]["images"], row["accuracy"]["broken"]) == (103, ["val/cat/000.png"])
    stored = "".join(path.read_text() for path in (tmp_path / "run").iterdir() if path.is_file())
    assert str(tmp_path) not in stored
    run = json.loads((tmp_path / "run" / "run.json").read_text())["invocations"][0]
    assert "folder:pets" in run["command"]
    assert run["cut"] == ["data"]


@pytest.mark.parametrize("path", ["/imagenet", "/data/imagenet", "../data/imagenet", "~/imagenet"])
def test_a_folders_path_is_cut_from_texts(path: str) -> None:
    assert without_paths(f"longvis bench --data folder:{path} --res 64") == (
        "longvis bench --data folder:imagenet --res 64"
    )


def test_pairs_are_measured_and_drawn_by_distance(tmp_path: Path) -> None:
    options = ("--metrics", "accuracy,memory", "--images", "20", "--device", "cpu", "--out", "run")
    words = ("bench", "--models", "longvit-n", "--res", "128,512", "--data", "pairs", *options)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    small, row = map(json.loads, (tmp_path / "run" / "cells.jsonl").read_text().splitlines())
    assert (small["status"], row["status"]) == ("illegal_size", "ok")
    assert small["reason"].startswith("128 px is not a legal size: pairs is drawn at 256 to 4096 px")
    assert (row["cell"]["num_classes"], row["accuracy"]["images"]) == (2, 20)
    assert (tmp_path / "run" / "plots" / "accuracy-distance-512.png").is_file()


def test_lookup_is_trained_on_and_measured_by_distance(tmp_path: Path) -> None:
    """Train, then measure the accuracy of the weights; dials are part of every name."""
    (tmp_path / "net.py").write_text(NET)
    data = ("--models", "net.py:net", "--data", "lookup[clutter=1]", "--res", "64", "--device", "cpu")
    trained = CliRunner().invoke(app, ("train", *data, "--epochs", "1", "--store", "store"))
    assert trained.exit_code == 0, trained.output
    assert "lookup[clutter=1] draws every training image anew: 1600 images in 1 epoch" in trained.output
    (recipe,) = (line for line in trained.output.splitlines() if line.startswith("recipe quick"))
    assert "shift" not in recipe
    (weights,) = (tmp_path / "store").glob("*/*.safetensors")
    options = ("--weights", str(weights), "--images", "120", "--out", "run")
    done = CliRunner().invoke(app, ("eval", *data, *options))
    assert done.exit_code == 0, done.output
    (row,) = map(json.loads, (tmp_path / "run" / "cells.jsonl").read_text().splitlines())
    assert (row["cell"]["data"], row["cell"]["num_classes"]) == ("lookup[clutter=1]", 3)
    assert (row["accuracy"]["dataset"], row["accuracy"]["images"]) == ("lookup[clutter=1]", 120)
    assert (tmp_path / "run" / "plots" / "accuracy-distance-lookup-clutter=1-64.png").is_file()


def test_lookup_needs_room_and_names_the_command_that_trains(tmp_path: Path) -> None:
    options = ("--metrics", "accuracy,memory", "--images", "8", "--device", "cpu", "--out", "run")
    words = ("bench", "--models", "vit-n", "--res", "32,64", "--data", "lookup[clutter=1]", *options)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    small, row = map(json.loads, (tmp_path / "run" / "cells.jsonl").read_text().splitlines())
    assert (small["status"], row["status"]) == ("illegal_size", "ok")
    assert small["reason"].startswith(
        "32 px is not a legal size: lookup[clutter=1] is drawn at 64 to 4096 px"
    )
    assert (
        "longvis train --models vit-n --data 'lookup[clutter=1]' --res 64" in row["null_reasons"]["accuracy"]
    )


COLOURS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes, bias=False)
    def forward(self, x):
        return self.head(x.mean((2, 3)))
def net(*, resolution, num_classes, in_chans=3):
    return Net(num_classes)
"""


def _colours(root: Path, names: dict[str, tuple[int, int, int]]) -> None:
    """Two images of each colour, for a model whose logits are red, green and blue."""
    for split in ("train", "val"):
        for name, colour in names.items():
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (16, 16), colour).save(root / split / name / f"{number}.png")
    Path("net.py").write_text(COLOURS)
    save_file({"head.weight": torch.eye(3)}, "rgb.safetensors")


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def _evaluate(*options: str) -> tuple[float, str]:
    """Top-1 of the model of colours, and what standard error says."""
    done = CliRunner().invoke(app, ["eval", *COLOUR_OPTIONS, *options])
    assert done.exit_code == 0, done.output
    row = json.loads(next(Path("run").glob("cells.jsonl")).read_text())
    return row["accuracy"]["correct_top1"] / row["accuracy"]["images"], done.stderr


COLOUR_OPTIONS = [
    *("--models", "net.py:net", "--res", "16", "--device", "cpu", "--data", "folder:rgb", "--out", "run"),
    "--weights",
]


@pytest.mark.usefixtures("no_figures")
def test_the_order_of_a_class_list_is_that_of_the_logits() -> None:
    _colours(Path("rgb"), {"red": RED, "green": GREEN, "blue": BLUE})
    Path("order.txt").write_text("red\ngreen\nblue\n")
    assert _evaluate("rgb.safetensors", "--classes", "order.txt") == (1.0, "")


@pytest.mark.parametrize("command", ["eval", "bench", "train"])
@pytest.mark.parametrize("order", ["natural", "sorted"])
def test_a_class_list_and_an_order_are_not_both_taken(command: str, order: str) -> None:
    _colours(Path("rgb"), {"1": RED, "2": GREEN, "10": BLUE})
    Path("order.txt").write_text("1\n2\n10\n")
    names = ("--models", "net.py:net", "--res", "16", "--device", "cpu", "--data", "folder:rgb")
    both = ("--classes", "order.txt", "--class-order", order)
    done = CliRunner().invoke(app, [command, *names, *both])
    assert done.exit_code == 2
    assert "--classes order.txt has the order of the logits already" in " ".join(done.output.split())


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("options", "top1"), [((), 1 / 3), (("--class-order", "natural"), 1.0)])
def test_classes_named_by_numbers_get_a_note(options: tuple[str, ...], top1: float) -> None:
    _colours(Path("rgb"), {"1": RED, "2": GREEN, "10": BLUE})
    found, said = _evaluate("rgb.safetensors", *options)
    assert found == pytest.approx(top1)
    assert ("need --class-order natural" in " ".join(said.split())) == (not options)
    (row,) = map(json.loads, Path("run/cells.jsonl").read_text().splitlines())
    assert ("class_order" in [note["code"] for note in row["notes"]]) == (not options)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("options", "metadata", "noted"),
    [
        ((), {}, True),
        (("--class-order", "sorted"), {}, False),
        (("--metrics", "memory"), {}, False),
        ((), {"longvis": json.dumps({"classes": ["1", "2", "10"]})}, False),
    ],
)
def test_a_bench_warns_of_classes_named_by_numbers(
    options: tuple[str, ...], metadata: dict[str, str], noted: bool
) -> None:
    _colours(Path("rgb"), {"1": RED, "2": GREEN, "10": BLUE})
    save_file({"head.weight": torch.eye(3)}, "rgb.safetensors", metadata=metadata)
    metrics = () if "--metrics" in options else ("--metrics", "accuracy,count")
    done = CliRunner().invoke(app, ["bench", *COLOUR_OPTIONS, "rgb.safetensors", *metrics, *options])
    assert done.exit_code == 0, done.output
    assert ("need --class-order natural" in " ".join(done.stderr.split())) == noted
    (row,) = map(json.loads, Path("run/cells.jsonl").read_text().splitlines())
    assert ("class_order" in [note["code"] for note in row["notes"]]) == noted
    assert ("class order: the class folders are numbered" in " ".join(done.stdout.split())) == noted


def _train_colours(*options: str) -> str:
    """What standard error says of a training of one epoch at a rate that moves nothing."""
    rates = "learning_rate = 1e-9\nfinal_learning_rate = 1e-9\nweight_decay = 0\nlabel_smoothing = 0"
    Path("still.toml").write_text(f'epochs = 1\nbatch_size = 2\noptimizer = "sgd"\nwarmup = 0\n{rates}\n')
    names = ("--models", "net.py:net", "--res", "16", "--device", "cpu", "--data", "folder:rgb")
    done = CliRunner().invoke(app, ["train", *names, "--store", "store", "--recipe", "still.toml", *options])
    assert done.exit_code == 0, done.output
    return done.stderr


def _trained() -> float:
    """Top-1 as the card beside the one file of the store says."""
    (card,) = Path("store").rglob("*.json")
    return float(json.loads(card.read_text())["top1"])


@pytest.mark.parametrize(
    ("options", "metadata", "top1", "noted"),
    [
        ((), {}, 1 / 3, True),
        (("--class-order", "natural"), {}, 1.0, False),
        ((), {"longvis": json.dumps({"classes": ["1", "2", "10"]})}, 1.0, False),
        ((), {"longvis": json.dumps({"classes": ["10", "2", "1"]})}, 1.0, False),
    ],
)
def test_training_goes_on_with_the_classes_of_its_weights(
    options: tuple[str, ...], metadata: dict[str, str], top1: float, noted: bool
) -> None:
    _colours(Path("rgb"), {"1": RED, "2": GREEN, "10": BLUE})
    weight = torch.eye(3).flip(0) if "10" in str(metadata)[:30] else torch.eye(3)
    save_file({"head.weight": weight.contiguous()}, "rgb.safetensors", metadata=metadata)
    said = _train_colours("--from", "rgb.safetensors", *options)
    assert _trained() == pytest.approx(top1)
    assert ("need --class-order natural" in " ".join(said.split())) == noted


@pytest.mark.usefixtures("no_figures")
def test_a_bench_and_a_training_choose_among_sets_of_weights() -> None:
    _colours(Path("rgb"), {"0": RED, "1": GREEN, "2": BLUE})
    torch.save({"model": {"head.weight": -torch.eye(3)}, "ema": {"head.weight": torch.eye(3)}}, "both.pth")
    for file, options in (("both.pth", ["--ema"]), ("both.pth#ema", [])):
        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("store", ignore_errors=True)
        found = CliRunner().invoke(
            app, ["bench", *COLOUR_OPTIONS, file, "--metrics", "accuracy,count", *options]
        )
        assert found.exit_code == 0, found.output
        row = json.loads(Path("run/cells.jsonl").read_text())
        assert (row["cell"]["weights"], row["accuracy"]["correct_top1"]) == ("both.pth#ema", 6)
        _train_colours("--from", file, *options)
        assert _trained() == 1.0
    refused = CliRunner().invoke(
        app, ["train", *COLOUR_OPTIONS[:8], "--store", "store", "--from", "both.pth"]
    )
    assert refused.exit_code == 2
    assert "both.pth holds 2 sets of weights: model" in " ".join(refused.stderr.split())


@pytest.mark.usefixtures("no_figures")
def test_parts_that_were_saved_apart_are_joined_and_the_row_names_them() -> None:
    _colours(Path("rgb"), {"0": RED, "1": GREEN, "2": BLUE})
    Path("net.py").write_text(
        COLOURS.replace("self.head = ", "self.encoder = nn.Conv2d(3, 3, 1)\n        self.head = ").replace(
            "self.head(x.mean", "self.head(self.encoder(x).mean"
        )
    )
    encoder = {"weight": torch.eye(3)[..., None, None], "bias": torch.zeros(3)}
    parts = {"encoder": encoder, "head": {"weight": torch.eye(3)}, "epoch": 3}
    torch.save(parts, "parts.pth")
    assert _evaluate("parts.pth")[0] == 1.0
    row = json.loads(Path("run/cells.jsonl").read_text())
    assert row["cell"]["weights"] == "parts.pth#encoder+head"


@pytest.mark.usefixtures("no_figures")
def test_weights_that_name_their_classes_are_matched_by_name() -> None:
    _colours(Path("rgb"), {"1": RED, "2": GREEN, "10": BLUE})
    save_file(
        {"head.weight": torch.eye(3)},
        "rgb.safetensors",
        metadata={"longvis": json.dumps({"classes": ["1", "2", "10"]})},
    )
    assert _evaluate("rgb.safetensors") == (1.0, "")


@pytest.mark.usefixtures("no_figures")
def test_weights_that_know_some_of_the_classes_are_refused() -> None:
    _colours(Path("rgb"), {"1": RED, "2": GREEN, "10": BLUE})
    metadata = {"longvis": json.dumps({"classes": ["1", "2", "3"]})}
    save_file({"head.weight": torch.eye(3)}, "rgb.safetensors", metadata=metadata)
    done = CliRunner().invoke(app, ["eval", *COLOUR_OPTIONS, "rgb.safetensors"])
    assert done.exit_code == 2
    assert "was not trained on 1 of the 3 classes" in " ".join(done.stderr.split())


@pytest.mark.usefixtures("no_figures")
def test_a_file_of_two_sets_is_refused_until_one_is_chosen_and_the_row_names_it() -> None:
    _colours(Path("rgb"), {"0": RED, "1": GREEN, "2": BLUE})
    sets = {"state_dict": {"head.weight": -torch.eye(3)}, "state_dict_ema": {"head.weight": torch.eye(3)}}
    torch.save(sets, "both.pth")
    done = CliRunner().invoke(app, ["eval", *COLOUR_OPTIONS, "both.pth"])
    assert done.exit_code == 2
    assert "both.pth holds 2 sets of weights: state_dict" in " ".join(done.stderr.split())
    for options in (["both.pth#state_dict_ema"], ["both.pth", "--ema"]):
        shutil.rmtree("run", ignore_errors=True)
        assert _evaluate(*options)[0] == 1.0
        row = json.loads(Path("run/cells.jsonl").read_text())
        assert row["cell"]["weights"] == row["accuracy"]["weights"] == "both.pth#state_dict_ema"
    shutil.rmtree("run")
    assert _evaluate("both.pth#state_dict")[0] == 0.0
