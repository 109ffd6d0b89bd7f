"""Data through the command line: bad input is one sentence and exit code 2, and no path is stored."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from longvis_bench.data import open_data
from longvis_bench.environment import read_environment
from longvis_bench.heads import head_classes
from longvis_bench.planning import SweepConfig, make_plan
from longvis_bench.privacy import without_paths
from longvis_bench.weights import save_weights

Longvis = Callable[..., "subprocess.CompletedProcess[str]"]
Pictures = Callable[..., Path]

NET = """
from torch import nn
def net(*, resolution, num_classes, in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""
BENCH = ("bench", "--models", "vit-n", "--res", "256", "--device", "cpu", "--dry-run")
TRAIN = ("train", "--models", "vit-n", "--res", "256", "--device", "cpu")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        ("rm -r val", (), "has no val/: a data set is train/ and val/"),
        ("rm -r train/cat val/cat", (), "train/ has one class only (dog)"),
        ("rm val/dog/*", (), "the class dog has no images in val/"),
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
        ("true", ("--window", "4"), "--window takes two numbers, like 100,4000, not '4'"),
    ],
)
def test_bad_data_is_one_sentence(
    spoil: str, options: tuple[str, ...], message: str, pictures: Pictures, longvis: Longvis, tmp_path: Path
) -> None:
    subprocess.run(spoil, shell=True, check=True, cwd=pictures())
    done = longvis(*BENCH, "--data", "folder:pets", *options)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", [TRAIN, ("eval", "--models", "vit-n", "--res", "256", "--weights", "w")])
def test_train_and_eval_refuse_alike(command: tuple[str, ...], longvis: Longvis) -> None:
    done = longvis(*command, "--data", "folder:gone")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no folder gone; folder:PATH needs one that holds train/ and val/" in done.stderr


@pytest.mark.parametrize("command", [BENCH, ("eval", "--models", "vit-n", "--res", "256")])
def test_weights_of_other_classes_are_refused(
    command: tuple[str, ...], pictures: Pictures, longvis: Longvis, tmp_path: Path
) -> None:
    pictures({"ant": 1, "bee": 1, "cat": 1})
    head = nn.Sequential()
    head.add_module("head", nn.Linear(4, 2))
    save_weights(head, tmp_path / "two.safetensors", {})
    assert head_classes(tmp_path / "two.safetensors") == 2
    done = longvis(*command, "--data", "folder:pets", "--weights", "two.safetensors")
    assert done.returncode == 2
    assert "two.safetensors knows 2 classes and folder:pets-" in done.stderr
    assert "has 3: choose weights of this data" in " ".join(done.stderr.split())


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


def test_a_folder_end_to_end(pictures: Pictures, longvis: Longvis, tmp_path: Path) -> None:
    root = pictures({"cat": 60, "dog": 60}, val=60)
    (root / "val" / "cat" / "000.png").write_bytes(b"broken")
    (tmp_path / "net.py").write_text(NET)
    model = ("--models", "net.py:net", "--res", "64", "--device", "cpu", "--data", f"folder:{root}")
    done = longvis("train", *model, "--epochs", "1", "--store", "store")
    assert done.returncode == 0, done.stderr
    assert "left out, cannot be read (1): val/cat/000.png" in " ".join(done.stdout.split())
    weights = next((tmp_path / "store").rglob("*.safetensors"))
    done = longvis(
        "bench", *model, "--weights", weights, "--images", "120", "--budget", "0.2", "--out", "run"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "run" / "cells.jsonl").read_text())
    name = open_data(f"folder:{root}").name
    assert (row["cell"]["data"], row["cell"]["num_classes"]) == (name, 2)
    assert (row["accuracy"]["images"], row["accuracy"]["broken"]) == (119, ["val/cat/000.png"])
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


def test_pairs_are_planned(longvis: Longvis) -> None:
    done = longvis(*BENCH, "--data", "pairs")
    assert done.returncode == 0, done.stderr
    assert open_data("pairs").batch("val", [0], 256)[0].dtype == torch.float32
