"""Probes of frozen features: no leak, no trap in the order of classes, weights named truly, refusals."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.cli.probing import PROBES
from longvis_bench.data.digits import Digits
from longvis_bench.data.protocol import Split
from longvis_bench.errors import CheckpointError, DataError, Unsupported
from longvis_bench.records import DataSpec
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import Resolution
from longvis_bench.training import probe
from longvis_bench.training.probe import (
    FOLDS,
    NEIGHBOURS,
    STRENGTHS,
    Extractor,
    Features,
    Kind,
    Source,
    find_source,
    fit_probe,
    measure_probe,
)

Pictures = Callable[..., Path]
BOTH: tuple[Kind, ...] = get_args(Kind)
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 4, 4)
        self.head = nn.Linear(6 * 16, classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.body(x).relu(), 4)
        return self.head(x.flatten(1))

def net(*, resolution, num_classes, in_chans=3):
    return Net(num_classes)
"""


def _clusters(images: int, classes: int = 4, *, noise: float = 0.3, seed: int = 0) -> Features:
    """Features around one direction per class, sorted by class as a folder is."""
    random = np.random.default_rng(seed)
    labels = np.sort(np.arange(images) % classes)
    values = np.eye(classes, 8)[labels] + noise * random.normal(size=(images, 8))
    return Features(values=values.astype(np.float32), labels=labels)


@pytest.mark.parametrize("kind", BOTH)
def test_images_sorted_by_class_are_no_trap(kind: Kind) -> None:
    """Folds of neighbouring images would be validated on classes that the fit has never seen."""
    fitted = fit_probe(kind, _clusters(200))
    assert fitted.validated > 0.9
    held_out = _clusters(400, seed=1)
    assert (fitted.predict(held_out.values) == held_out.labels).mean() > 0.9
    order = np.random.default_rng(2).permutation(400)
    assert (fitted.predict(held_out.values[order]) == held_out.labels[order]).mean() > 0.9


@pytest.mark.parametrize("kind", BOTH)
def test_features_without_information_give_chance(kind: Kind) -> None:
    """Neither the order of the images nor that of the classes is in the result."""
    fitted = fit_probe(kind, _clusters(400, noise=1e4))
    held_out = _clusters(2000, noise=1e4, seed=1)
    right = (fitted.predict(held_out.values) == held_out.labels).mean()
    assert right == pytest.approx(0.25, abs=0.05)
    assert fitted.validated == pytest.approx(0.25, abs=0.12)


@pytest.mark.parametrize(("kind", "settings"), [("knn", NEIGHBOURS), ("linear", STRENGTHS)])
def test_the_setting_is_one_of_the_grid_and_not_the_one_that_fits_errors(
    kind: Kind, settings: Sequence[float]
) -> None:
    """A third of the labels are random, and the single nearest image would reproduce them."""
    train = _clusters(400, noise=0.6)
    train.labels[::3] = np.random.default_rng(0).integers(4, size=len(train.labels[::3]))
    fitted = fit_probe(kind, train)
    name, value = fitted.setting.split("=")
    assert name == ("k" if kind == "knn" else "C")
    assert float(value) in settings
    assert fitted.setting != "k=1"
    assert fitted.validated < 0.85
    held_out = _clusters(400, noise=0.6, seed=1)
    assert (fitted.predict(held_out.values) == held_out.labels).mean() > fitted.validated


def test_settings_suit_few_images() -> None:
    fitted = fit_probe("knn", _clusters(8))  # folds of 2: four images are left to be neighbours
    assert fitted.setting == "k=1"
    with pytest.raises(DataError, match="needs two training images per class; d has one"):
        fit_probe(
            "knn",
            Features(values=np.zeros((7, 2), np.float32), labels=np.array([0, 0, 1, 1, 2, 2, 3])),
            "abcd",
        )
    with pytest.raises(DataError, match="two classes or more"):
        fit_probe("linear", Features(values=np.zeros((3, 2), np.float32), labels=np.zeros(3, np.int64)))
    assert FOLDS == 5


class Watched(Digits):
    """Few digits; notes in which order images are asked for, and may lie about held-out labels."""

    def __init__(self, asked: list[str], *, lie: bool = False) -> None:
        self.asked, self._lie = asked, lie

    def size(self, split: Split) -> int:
        return {"train": 300, "val": 100}[split]

    def batch(
        self, split: Split, indices: Sequence[int], resolution: Resolution, **more: Any
    ) -> tuple[Tensor, Tensor]:
        self.asked.append(split)
        images, labels = super().batch(split, indices, resolution, **more)
        return images, (labels + 1) % 10 if self._lie and split == "val" else labels


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize("kind", BOTH)
def test_held_out_images_cannot_enter_the_fit(kind: Kind, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are loaded after the fit, and other labels of theirs change the result but not the probe."""
    variant = Registry((), net).find("net.py:net")
    results = []
    for lie in (False, True):
        asked: list[str] = []
        monkeypatch.setattr(probe, "open_data", lambda spec, asked=asked, lie=lie: Watched(asked, lie=lie))
        fit = probe.fit_probe

        def noted(*arguments: Any, asked: list[str] = asked, fit: Any = fit) -> Any:
            asked.append("fit")
            return fit(*arguments)

        monkeypatch.setattr(probe, "fit_probe", noted)
        results.append(measure_probe(variant, DataSpec("digits"), 32, kind, Source()))
        monkeypatch.setattr(probe, "fit_probe", fit)
        assert list(dict.fromkeys(asked)) == ["train", "fit", "val"]
        assert asked.index("fit") == asked.count("train")
    honest, lied = results
    assert honest.fitted.validated == lied.fitted.validated
    assert honest.fitted.setting == lied.fitted.setting
    assert honest.correct / honest.images > 0.5  # random features still tell digits apart
    assert lied.correct / lied.images < 0.2


def test_random_weights_are_named_and_the_same_each_time(net: Path) -> None:
    variant = Registry((), net).find("net.py:net")
    first, second = (
        measure_probe(
            variant,
            DataSpec("digits"),
            16,
            "knn",
            find_source(variant, DataSpec("digits"), 16, None, False),
        )
        for _ in range(2)
    )
    assert first.weights == "random"
    assert (first.correct, first.features, first.images) == (second.correct, 96, 397)
    assert first.fitted.train_images == 1400


def test_features_are_what_enters_the_classifier() -> None:
    variant, data = Registry().find("vit-n"), Digits()
    torch.manual_seed(3)
    model = variant.build(resolution=32, num_classes=10).eval()
    found = Extractor(model, {"head.weight": 0, "head.bias": 0}, data, 32, "cpu").features("val", 5)
    assert found.labels.tolist() == [data.load("val", index * 397 // 5, 32)[1] for index in range(5)]
    images, _ = data.batch("val", [index * 397 // 5 for index in range(5)], 32)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
        torch.testing.assert_close(torch.from_numpy(found.values), expected)
    assert not any(module._forward_pre_hooks for module in model.modules())


class PerPosition(nn.Module):
    """Applies a classifier to each position: linear on channels last, or a convolution."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        self.conv = conv
        self.head: nn.Module = nn.Conv2d(3, 4, 1) if conv else nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x if self.conv else x.permute(0, 2, 3, 1))
        return scores.mean((2, 3) if self.conv else (1, 2))


@pytest.mark.parametrize("conv", [False, True])
def test_a_classifier_of_positions_gives_mean_features(conv: bool) -> None:
    found = Extractor(PerPosition(conv), {"head.weight": 0}, Digits(), 16, "cpu").features("val", 3)
    images, _ = Digits().batch("val", [0, 132, 264], 16)
    np.testing.assert_allclose(found.values, images.mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_a_model_without_a_classifier_is_refused() -> None:
    with pytest.raises(Unsupported, match="no classifier was found in the model"):
        Extractor(nn.Flatten(), {}, Digits(), 8, "cpu").features("val", 3)


def test_weights_of_other_classes_serve_and_torn_ones_do_not(net: Path, pictures: Pictures) -> None:
    """A backbone of 1000 classes on a folder of two: only the classifier may be missing."""
    variant, spec = Registry((), net).find("net.py:net"), DataSpec(f"folder:{pictures(size=(20, 20))}")
    model = variant.build(resolution=16, num_classes=1000)
    state = model.state_dict()
    save_file(state, net / "big.safetensors")
    source = find_source(variant, spec, 16, net / "big.safetensors", False)
    result = measure_probe(variant, spec, 16, "knn", source)
    assert (result.weights, result.features) == ("big.safetensors", 96)
    save_file(
        {name: value for name, value in state.items() if name.startswith("head")}, net / "torn.safetensors"
    )
    torn = find_source(variant, spec, 16, net / "torn.safetensors", False)
    with pytest.raises(CheckpointError, match=r"torn.safetensors does not fit .*body.weight, body.bias"):
        measure_probe(variant, spec, 16, "knn", torn)
    with pytest.raises(CheckpointError, match=r"nosuch\.pth"):
        find_source(variant, spec, 16, net / "nosuch.pth", False)


# The command -------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_it(net: Path) -> None:
    assert get_args(Kind) == PROBES
    command = "eval --models net.py:net --res 16 --data digits --probe knn --device cpu --out here"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    assert "knn probe of frozen features, digits" in result.output
    assert "random" in result.output
    assert "Fitted on 1400 training images" in result.output
    with Path("here/probes.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["probe"], row["images"], row["weights"]) == ("knn", "397", "random")
    assert float(row["top1"]) == pytest.approx(int(row["correct"]) / 397, abs=1e-6)
    assert float(row["top1_low"]) < float(row["top1"]) < float(row["top1_high"])
    assert row["setting"].removeprefix("k=") in map(str, NEIGHBOURS)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--probe svm", 2, "--probe takes knn, linear, not 'svm'"),
        ("--probe knn --fresh", 2, "--probe always computes anew; leave out --fresh"),
        ("--probe knn --weights nosuch.pth", 2, "nosuch.pth"),
        ("--probe knn --data folder:nosuch", 2, "nosuch"),
    ],
)
def test_bad_options_are_one_sentence(options: str, code: int, message: str) -> None:
    result = CliRunner().invoke(app, f"eval --models vit-n --res 32 --device cpu {options}".split())
    said = " ".join(result.output.split())
    assert (result.exit_code, message in said) == (code, True), said
    assert "Traceback" not in said


def test_without_scikit_learn_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    options = "--models vit-n --res 32 --device cpu --probe knn"
    result = CliRunner().invoke(app, ["eval", *options.split()])
    assert result.exit_code == 3
    assert "python -m pip install 'longvis-bench[probes]'" in " ".join(result.output.split())
