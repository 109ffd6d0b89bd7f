"""Training with models so small that an epoch takes a second: determinism, divergence, recipe, store."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from longvis_bench.data import ImageData, Split, open_data
from longvis_bench.errors import LongvisError, UnknownName
from longvis_bench.measure.accuracy import measure_accuracy
from longvis_bench.registry import Registry, Variant
from longvis_bench.training.loop import Progress, TrainReport, shifted, train
from longvis_bench.training.recipe import QUICK, Recipe, read_recipe
from longvis_bench.training.session import evaluate, start_training
from longvis_bench.weights import load_weights

TINY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.norm(self.stem(x)).relu(), 4)
        return self.head(self.drop(x.flatten(1)))

def tiny(*, resolution, num_classes, in_chans=3, width=8):
    return Tiny(num_classes, width)
"""


class Few:
    """The first digits of each split, so that an epoch is short."""

    name = "digits"
    num_classes = 10

    def __init__(self, train: int = 96, val: int = 40) -> None:
        self._data, self._sizes = open_data("digits"), {"train": train, "val": val}
        self.asked: set[str] = set()

    def size(self, split: Split) -> int:
        return self._sizes[split]

    def batch(self, split: Split, indices: Any, resolution: int, **where: Any) -> tuple[Tensor, Tensor]:
        self.asked.add(f"{split} {torch.is_grad_enabled()}")
        return self._data.batch(split, indices, resolution, **where)


@pytest.fixture
def tiny(tmp_path: Path) -> Variant:
    (tmp_path / "net.py").write_text(TINY)
    return Registry((), tmp_path).find("net.py:tiny")


def _train(variant: Variant, data: ImageData | None = None, seed: int = 0, **changes: Any) -> TrainReport:
    recipe = read_recipe("quick", epochs=2, batch_size=32, **changes)
    return train(variant, data or Few(), resolution=32, recipe=recipe, seed=seed)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_same_seed_gives_the_same_weights_bit_for_bit(tiny: Variant) -> None:
    first, again, other = _train(tiny, seed=3), _train(tiny, seed=3), _train(tiny, seed=4)
    assert _equal(first.model, again.model)
    assert [epoch.loss for epoch in first.history] == [epoch.loss for epoch in again.history]
    assert not _equal(first.model, other.model)


def test_callers_randomness_and_settings_are_left_alone(tiny: Variant) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    _train(tiny)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_learns(tiny: Variant) -> None:
    data = Few(train=600, val=200)
    recipe = read_recipe("quick", epochs=6, shift=0.0)
    report = train(tiny, data, resolution=32, recipe=recipe)
    assert report.accuracy.top1 > 0.6
    assert report.history[-1].loss < report.history[0].loss
    assert data.asked == {"train True", "val False"}


def test_history_is_complete(tiny: Variant) -> None:
    seen: list[Progress] = []
    recipe = read_recipe("quick", epochs=3, batch_size=40, warmup=0.2)
    report = train(tiny, Few(), resolution=32, recipe=recipe, on_progress=seen.append)
    assert [(p.step, p.steps) for p in seen if p.top1 is None] == [(n, 9) for n in range(1, 10)]
    assert tuple(p for p in seen if p.top1 is not None) == report.history
    assert [epoch.epoch for epoch in report.history] == [1, 2, 3]
    assert all(epoch.images_s > 0 and epoch.train_s > 0 for epoch in report.history)
    assert report.history[-1].left_s == 0
    rates = [p.learning_rate for p in seen if p.top1 is None]
    assert max(rates) <= recipe.learning_rate
    assert rates.index(max(rates)) == 2  # 0.2 of 9 updates of warm-up, rounded up
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < recipe.learning_rate / 10


def test_accuracy_is_that_of_the_file(tiny: Variant, tmp_path: Path) -> None:
    (run,) = start_training([tiny], "digits", 32, read_recipe("quick", epochs=1), 0, "cpu", None)
    run = replace(run, data=Few())
    report = run.train(lambda progress: None)
    path = run.keep(report, tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    assert Recipe.model_validate(card["recipe"]) == report.recipe
    assert (card["seed"], card["epochs"], card["images"], card["num_classes"]) == (0, 1, 40, 10)
    model = tiny.build(resolution=32, num_classes=10)
    load_weights(model, path)
    assert _equal(model, report.model)
    again = measure_accuracy(model, Few(), resolution=32, batch_size=7)
    assert again.top1 == card["top1"] == report.accuracy.top1


@pytest.mark.parametrize("changes", [{"learning_rate": 1e30, "clip_norm": None}, {"learning_rate": 1e4}])
def test_divergence_stops_with_the_step_and_what_to_change(tiny: Variant, changes: dict[str, Any]) -> None:
    with pytest.raises(LongvisError, match=r"diverged at step \d+ of 6: .* lower the recipe's learning_rate"):
        _train(tiny, optimizer="sgd", warmup=0.0, **changes)


def test_nan_stops_at_its_step(tiny: Variant) -> None:
    class Spoilt(Few):
        count = 0

        def batch(self, split: Split, indices: Any, resolution: int, **where: Any) -> tuple[Tensor, Tensor]:
            self.count += 1
            images, labels = super().batch(split, indices, resolution, **where)
            return (images * float("nan") if self.count == 2 else images), labels

    with pytest.raises(LongvisError, match="diverged at step 2 of 6: the loss is nan"):
        _train(tiny, Spoilt())


def test_gradients_that_are_not_finite_stop(tmp_path: Path) -> None:
    code = TINY.replace(
        "return self.head(", "x = x + (x - x.detach()).pow(2).sum().sqrt()\n        return self.head("
    )
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(LongvisError, match="diverged at step 1 of 6: the norm of the gradients is"):
        _train(Registry((), tmp_path).find("net.py:tiny"))


# Shifts


def test_shift_moves_whole_images_and_repeats_borders() -> None:
    ramp = torch.arange(32.0).expand(64, 3, 32, 32).contiguous()
    moved = shifted(ramp, 0.25, torch.Generator().manual_seed(0))
    first = moved[:, 0, 0]
    offsets = 16 - first[:, 16]
    assert offsets.abs().max() <= 8
    assert len(set(offsets.tolist())) > 8
    for row, offset in zip(first, offsets, strict=True):
        assert torch.equal(row, (torch.arange(32.0) - offset).clamp(0, 31))
    assert torch.equal(moved, first[:, None, None, :].expand_as(moved))
    down = shifted(ramp.mT.contiguous(), 0.25, torch.Generator().manual_seed(0))
    assert not torch.equal(down.mT, moved)  # each axis has its own draw


def test_no_shift_is_the_image_itself() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert shifted(images, 0.0, torch.Generator()) is images


# Recipe


def test_quick_is_found_and_changed() -> None:
    assert read_recipe("quick") == QUICK
    assert read_recipe("quick", epochs=3, seed=None).epochs == 3
    assert all(f"{name} " in QUICK.describe() for name in Recipe.model_fields if name != "name")


def test_recipe_from_a_file(tmp_path: Path) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in QUICK.model_dump().items() if value is not None]
    (tmp_path / "mine.toml").write_text("\n".join(line for line in lines if not line.startswith("name")))
    assert read_recipe(str(tmp_path / "mine.toml")) == QUICK.model_copy(update={"name": "mine"})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("epochs = 'many'", "is not valid: epochs: input should be a valid integer"),
        ("epocs = 3", "is not valid: epochs: field required"),
        ("epochs =", "is not valid TOML"),
    ],
)
def test_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "bad.toml").write_text(content)
    with pytest.raises(LongvisError, match=sentence):
        read_recipe(str(tmp_path / "bad.toml"))


def test_unknown_recipe_shows_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown recipe 'quik': did you mean quick"):
        read_recipe("quik")
    with pytest.raises(LongvisError, match=r"cannot read the recipe .*: No such file"):
        read_recipe(str(tmp_path / "absent.toml"))


# Evaluation and commands


def _trained(variant: Variant, tmp_path: Path) -> Path:
    (run,) = start_training([variant], "digits", 32, read_recipe("quick", epochs=1), 0, "cpu", None)
    run = replace(run, data=Few())
    return run.keep(run.train(lambda progress: None), tmp_path / "store")


def test_evaluation_at_other_sizes_is_marked(tiny: Variant, tmp_path: Path) -> None:
    file = _trained(tiny, tmp_path)
    results = list(evaluate(tiny, file, "digits", [32, 64], 20, "cpu", None))
    assert [(r.resolution, r.trained_resolution) for r in results] == [(32, 32), (64, 32)]
    assert all(r.accuracy is not None and r.accuracy.images == 20 for r in results)


def test_evaluation_refuses_weights_of_another_head(tiny: Variant, tmp_path: Path) -> None:
    torch.save(tiny.build(resolution=32, num_classes=1000).state_dict(), tmp_path / "in1k.pth")
    with pytest.raises(LongvisError, match=r"does not fit digits: head.weight is left fresh: 1000 classes"):
        list(evaluate(tiny, tmp_path / "in1k.pth", "digits", [32], 20, "cpu", None))


def test_commands_print_accuracy_and_where_the_file_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longvis_bench.cli.app import app

    (tmp_path / "net.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    options = ["--models", "net.py:tiny", "--data", "digits", "--res", "32"]
    made = CliRunner().invoke(app, ["train", *options, "--epochs", "1", "--store", "store"])
    assert made.exit_code == 0, made.output
    (file,) = (tmp_path / "store" / "net.py_tiny").glob("digits-32-*.safetensors")
    assert file.name in made.output
    assert "epoch 1/1" in made.output
    read = CliRunner().invoke(app, ["eval", *options, "--weights", str(file), "--images", "50"])
    assert read.exit_code == 0, read.output
    assert re.search(r"32 px +32 px +[\d.]+ % \([\d.]+-[\d.]+\) +[\d.]+ % \([\d.]+-[\d.]+\) +50", read.output)
