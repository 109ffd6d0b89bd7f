"""Training with models so small that an epoch takes a second: determinism, divergence, recipe, store."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from longvis_bench.data.digits import Digits
from longvis_bench.data.loader import epoch_order
from longvis_bench.data.lookup import Lookup
from longvis_bench.data.protocol import Split
from longvis_bench.errors import CheckpointError, LongvisError, UnknownName, Unsupported
from longvis_bench.measure.accuracy import measure_accuracy
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Resolution
from longvis_bench.training.augment import BatchAugment, shifted
from longvis_bench.training.checkpoint import read_checkpoint, save_checkpoint
from longvis_bench.training.job import Job, TrainProgress, TrainReport
from longvis_bench.training.jobs import Options, keep, start_training
from longvis_bench.training.loop import train
from longvis_bench.training.recipe import ATLAS, QUICK, Recipe, read_recipe
from longvis_bench.training.setup import synchronised
from longvis_bench.weights.matching import load_weights

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


class Few(Digits):
    """The first digits of each split, so that an epoch is short."""

    def __init__(self, train: int = 96, val: int = 40) -> None:
        self._sizes = {"train": train, "val": val}
        self.asked: set[str] = set()

    def size(self, split: Split) -> int:
        return self._sizes[split]

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        self.asked.add(split)
        return super().load(split, index, resolution)


@pytest.fixture
def tiny(tmp_path: Path) -> Variant:
    (tmp_path / "net.py").write_text(TINY)
    return Registry((), tmp_path).find("net.py:tiny")


def _job(variant: Variant, data: Few | None = None, **more: Any) -> Job:
    fields = {name: more.pop(name) for name in list(more) if name in Job.__dataclass_fields__}
    recipe = read_recipe("quick", **{"epochs": 2, "batch_size": 32, **more})
    return Job(**{"variant": variant, "data": data or Few(), "resolution": 32, "recipe": recipe, **fields})


def _train(variant: Variant, data: Few | None = None, **more: Any) -> TrainReport:
    report = train(_job(variant, data, **more))
    assert report is not None
    return report


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


ROUNDING = (
    TINY
    + """
SEEN = set()

def rounds(module, images):
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    SEEN.add((module.training, products.fp32_precision == "tf32", convolutions.fp32_precision == "tf32"))

def rounding(*, resolution, num_classes, in_chans=3):
    model = Tiny(num_classes, 8)
    model.register_forward_pre_hook(rounds)
    return model
"""
)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_tf32_is_the_recipes_choice_and_never_rounds_the_accuracy(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's default rounds the inputs of convolutions alone: it favours convolutional families."""
    monkeypatch.setattr("longvis_bench.training.setup.require_tf32", lambda device, advice: None)
    (tmp_path / "net.py").write_text(ROUNDING)
    variant = Registry((), tmp_path).find("net.py:rounding")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _train(variant, epochs=1, precision=precision)
    after = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert after == before
    rounds = precision == "tf32"
    seen = variant.load_factory().__globals__["SEEN"]
    assert seen == {(True, rounds, rounds), (False, False, False)}


def test_learns(tiny: Variant) -> None:
    data = Few(train=600, val=200)
    report = _train(tiny, data, epochs=6, batch_size=16, shift=0.0)
    assert report.accuracy.top1 > 0.6
    assert report.history[-1].loss < report.history[0].loss
    assert report.curve[0][2] > 2.0


def test_history_is_complete(tiny: Variant) -> None:
    seen: list[TrainProgress] = []
    job = _job(tiny, epochs=3, batch_size=40, warmup=0.2)
    report = train(job, seen.append)
    assert report is not None
    assert [(p.step, p.steps) for p in seen if p.top1 is None] == [(n, 9) for n in range(1, 10)]
    assert tuple(p for p in seen if p.top1 is not None) == report.history
    assert [epoch.epoch for epoch in report.history] == [1, 2, 3]
    assert all(epoch.images_s > 0 and epoch.train_s > 0 for epoch in report.history)
    assert report.history[-1].left_s == 0
    rates = [p.learning_rate for p in seen if p.top1 is None]
    assert max(rates) <= job.recipe.learning_rate
    assert rates.index(max(rates)) == 2  # 0.2 of 9 updates of warm-up, rounded up
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < job.recipe.learning_rate / 10


def test_accuracy_is_that_of_the_file(tiny: Variant, tmp_path: Path) -> None:
    report = _train(tiny, epochs=1)
    path = keep(report, tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    assert Recipe.model_validate(card["recipe"]) == report.job.recipe
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
        def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
            image, label = super().load(split, index, resolution)
            return (image * float("nan") if index in order[32:64] else image), label

    order = epoch_order(96, 0, 1)
    with pytest.raises(LongvisError, match="diverged at step 2 of 6: the loss is nan"):
        _train(tiny, Spoilt())


def test_gradients_that_are_not_finite_stop(tmp_path: Path) -> None:
    code = TINY.replace(
        "return self.head(", "x = x + (x - x.detach()).pow(2).sum().sqrt()\n        return self.head("
    )
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(LongvisError, match="diverged at step 1 of 6: the norm of the gradients is"):
        _train(Registry((), tmp_path).find("net.py:tiny"))


# Going on after an interruption


class Killed(BaseException):
    """As if the process had gone: nothing of ours catches it."""


@pytest.mark.parametrize("at", [1, 4, 6])
def test_killed_training_ends_with_the_same_weights_bit_for_bit(
    tiny: Variant, tmp_path: Path, at: int
) -> None:
    """Killed in the first epoch, in the second and at the very end; a checkpoint after every update."""

    def kill(progress: TrainProgress) -> None:
        if progress.step == at and progress.top1 is None:
            raise Killed

    alone = _train(tiny, shift=0.1)
    job = _job(tiny, shift=0.1, checkpoint=tmp_path / "state.pt", checkpoint_s=0.0)
    with pytest.raises(Killed):
        train(job, kill)
    seen: list[int] = []
    report = train(job, lambda progress: seen.append(progress.step))
    assert report is not None
    assert _equal(alone.model, report.model)
    assert [update[2] for update in report.curve] == [update[2] for update in alone.curve]
    assert [epoch.loss for epoch in report.history] == [epoch.loss for epoch in alone.history]
    assert min(seen, default=6) >= at  # nothing but the update that was not yet kept is done twice


class Scenes(Lookup):
    """A few scenes per epoch; notes which are drawn."""

    def __init__(self, drawn: list[int]) -> None:
        super().__init__(train_images=40, val_images=12)
        self.drawn = drawn

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        if split == "train":
            self.drawn.append(index)
        return super().load(split, index, resolution)


def test_every_epoch_draws_new_scenes_and_resumes_among_them(tiny: Variant, tmp_path: Path) -> None:
    def run(**more: Any) -> tuple[TrainReport, list[int]]:
        drawn: list[int] = []
        job = replace(_job(tiny, batch_size=16, shift=0.0), data=Scenes(drawn), resolution=64, **more)
        report = train(job, more_progress)
        assert report is not None
        return report, drawn

    def more_progress(progress: TrainProgress) -> None:
        if progress.step == stop:
            raise Killed

    stop = 0
    alone, drawn = run()
    first = drawn.count(0) - 1  # the loader looks at one image to plan its memory
    assert first in (0, 1)
    assert sorted(drawn[-80:]) == [*range(40, 120)]
    stop = 4
    with pytest.raises(Killed):
        run(checkpoint=tmp_path / "state.pt", checkpoint_s=0.0)
    stop = 0
    again, drawn = run(checkpoint=tmp_path / "state.pt", checkpoint_s=0.0)
    assert _equal(alone.model, again.model)
    assert min(index for index in drawn if index) >= 80


def test_another_recipe_does_not_continue_a_checkpoint(tiny: Variant, tmp_path: Path) -> None:
    options = Options(device="cpu", store=tmp_path)
    (one,) = start_training([tiny], "digits", 32, read_recipe("quick"), options)
    (same,) = start_training([tiny], "digits", 32, read_recipe("quick"), options)
    (other,) = start_training([tiny], "digits", 32, read_recipe("quick", epochs=3), options)
    assert one.checkpoint == same.checkpoint != other.checkpoint


def test_damaged_checkpoint_is_named(tiny: Variant, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half a check")
    with pytest.raises(CheckpointError, match=r"state.pt is damaged .*; delete it to train from the start"):
        _train(tiny, checkpoint=tmp_path / "state.pt")


def test_a_checkpoint_of_longvis_0_2_is_read(tmp_path: Path) -> None:
    """Until then the position had another name in the file."""
    torch.save({"place": {"epoch": 2, "update": 3}, "states": {}}, tmp_path / "old.pt")
    found = read_checkpoint(tmp_path / "old.pt", torch.device("cpu"))
    assert found is not None
    assert (found.position.epoch, found.position.update) == (2, 3)
    save_checkpoint(tmp_path / "new.pt", found)
    assert read_checkpoint(tmp_path / "new.pt", torch.device("cpu")) == found


def test_checkpoint_runs_no_code(tiny: Variant, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"position": {}, "states": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        _train(tiny, checkpoint=tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


# Cutting an update into parts


def test_micro_batches_give_the_same_training(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(TINY.replace("BatchNorm2d(width)", "Identity()").replace("0.1", "0.0"))
    net = Registry((), tmp_path).find("net.py:tiny")
    whole, cut = _train(net, Few(train=80)), _train(net, Few(train=80), micro_batch=8)
    losses = [[update[2] for update in report.curve] for report in (whole, cut)]
    assert len(losses[0]) == 6  # the last update of an epoch has 16 images
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"micro_batch": 24}, "a micro-batch of 24 does not divide the 32 images of an update"),
        ({"micro_batch": 1, "mixup": 0.8}, "mix pairs: a micro-batch of 1 is odd"),
        ({"batch_size": 128, "cutmix": 1.0}, "has 96 training images, fewer than the 128 of one update"),
        ({"precision": "fp16"}, "training in fp16 needs CUDA"),
        ({"precision": "tf32"}, "no TF32 tensor cores .* set the recipe's precision to fp32"),
        ({"auto_augment": "rund-m9"}, "timm has no augmentation 'rund-m9'"),
        ({"drop_path": 0.1}, r"cannot be called: .*'drop_path'; it takes"),
    ],
)
def test_recipe_that_does_not_suit_is_refused(tiny: Variant, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LongvisError, match=sentence):
        _train(tiny, **more)


def test_whole_recipe_of_the_atlas_paper_learns(tiny: Variant) -> None:
    """Every option on: crops, policies, erasing, mixing, bf16 and accumulation, small enough for a test."""
    recipe = ATLAS.with_batch(32).model_copy(update={"epochs": 8, "drop_path": 0.0, "learning_rate": 1e-2})
    job = replace(_job(tiny, Few(train=64), micro_batch=16, seed=5), recipe=recipe)
    first, again = train(job), train(job)
    assert first is not None
    assert again is not None
    assert _equal(first.model, again.model)
    assert len(first.curve) == 16
    assert first.history[-1].loss < first.history[0].loss


def test_learning_rate_grows_with_the_batch() -> None:
    larger = ATLAS.with_batch(4096)
    assert (larger.learning_rate, larger.final_learning_rate) == (1e-3, 2e-6)
    assert ATLAS.with_batch(None) == ATLAS.with_batch(2048) == ATLAS


def test_mixed_targets_sum_to_one() -> None:
    torch.manual_seed(0)
    recipe = ATLAS.with_batch(8)
    images, targets = BatchAugment(recipe, 10, torch.device("cpu"))(
        torch.randn(8, 3, 16, 16), torch.arange(8), [(0, 0, index) for index in range(8)]
    )
    assert images.shape == (8, 3, 16, 16)
    assert torch.allclose(targets.sum(dim=1), torch.ones(8))
    assert targets.amin() > 0  # smoothed


# Several processes


def test_synchronised_norms_are_converted_and_refused_off_cuda() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    with pytest.raises(Unsupported, match="synchronised batch norms run on CUDA only, not on cpu"):
        synchronised(net, torch.device("cpu"))
    assert isinstance(synchronised(net, torch.device("cuda"))[1], nn.SyncBatchNorm)  # type: ignore[index]
    without = nn.Sequential(nn.LayerNorm(4))
    assert synchronised(without, torch.device("cpu")) is without


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same losses, within what the order of sums changes: gloo on the CPU, two families."""
    options = [
        "--models",
        "vit-n,convnext-n",
        "--res",
        "32",
        "--epochs",
        "1",
        "--batch",
        "40",
        "--device",
        "cpu",
    ]
    command = ["-m", "longvis_bench", "train", *options, "--threads", "1", "--store"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, before in (("one", []), ("two", torchrun)):
        call = [sys.executable, *before, *command, str(tmp_path / name)]
        subprocess.run(call, check=True, capture_output=True, timeout=300)
    for model in ("vit-n", "convnext-n"):
        one, two = (_losses(tmp_path / name / model) for name in ("one", "two"))
        assert len(one) == 35
        assert one == pytest.approx(two, rel=1e-3)
        assert one[:3] == pytest.approx(two[:3], rel=1e-5)  # before differences grow


def _losses(folder: Path) -> list[float]:
    (table,) = folder.glob("*.csv")
    with table.open() as file:
        return [float(line["loss"]) for line in csv.DictReader(file)]


# Shifts


def test_shift_moves_whole_images_and_repeats_borders() -> None:
    seeds = [(0, 1, index) for index in range(64)]
    ramp = torch.arange(32.0).expand(64, 3, 32, 32).contiguous()
    moved = shifted(ramp, 0.25, seeds)
    first = moved[:, 0, 0]
    offsets = 16 - first[:, 16]
    assert offsets.abs().max() <= 8
    assert len(set(offsets.tolist())) > 8
    for row, offset in zip(first, offsets, strict=True):
        assert torch.equal(row, (torch.arange(32.0) - offset).clamp(0, 31))
    assert torch.equal(moved, first[:, None, None, :].expand_as(moved))
    down = shifted(ramp.mT.contiguous(), 0.25, seeds)
    assert not torch.equal(down.mT, moved)  # each axis has its own draw
    assert torch.equal(shifted(ramp[5:7], 0.25, seeds[5:7]), moved[5:7])  # an image's own, whatever the batch


def test_each_side_of_a_rectangle_is_shifted_by_its_share() -> None:
    seeds = [(0, 1, index) for index in range(64)]
    across = torch.arange(64.0).expand(64, 1, 16, 64).contiguous()
    moved = shifted(across, 0.25, seeds)
    assert moved.shape == across.shape
    offsets = 32 - moved[:, 0, 0, 32]
    assert 8 < offsets.abs().max() <= 16
    lying = torch.arange(16.0)[:, None].expand(64, 1, 16, 64).contiguous()
    offsets = 8 - shifted(lying, 0.25, seeds)[:, 0, 8, 0]
    assert 2 <= offsets.abs().max() <= 4


def test_no_shift_is_the_image_itself() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert shifted(images, 0.0, [(0,), (1,)]) is images


# Recipe


def test_quick_is_found_and_changed() -> None:
    assert read_recipe("quick") == QUICK
    assert read_recipe("quick", epochs=3, seed=None).epochs == 3
    said = [name for name, value in QUICK if value and name not in ("name", "mixup_switch")]
    assert all(f"{name} " in QUICK.describe() for name in said)


def test_recipe_from_a_file(tmp_path: Path) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in QUICK.model_dump().items() if value is not None]
    (tmp_path / "mine.toml").write_text("\n".join(line for line in lines if not line.startswith("name")))
    assert read_recipe(str(tmp_path / "mine.toml")) == QUICK.model_copy(update={"name": "mine"})


def test_recipe_with_a_byte_order_mark(tmp_path: Path) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in QUICK.model_dump().items() if value is not None]
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert read_recipe(str(tmp_path / "mine.toml")) == QUICK


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
    options[-1] = "32,64"
    read = CliRunner().invoke(
        app, ["eval", *options, "--weights", str(file), "--images", "50", "--out", "run", "--threads", "1"]
    )
    assert read.exit_code == 0, read.output
    for size in (32, 64):
        interval = r"[\d.]+ \[[\d.]+, [\d.]+\][¹²·]*"
        found = rf" {size} +ok +{interval} +{interval} +50 +32 +{file.name}"
        assert re.search(found, read.output), read.output
    assert "other resolution: the weights were trained at 32 px." in read.output
    assert re.search(r"tiny, 64 px: (\d of|all) 10 classes.*, the worst first", read.output)
    again = CliRunner().invoke(app, ["report", "run", "--by-class"])
    assert (
        read.output.partition("tiny, 32 px")[2].splitlines()[:5]
        == (again.output.partition("tiny, 32 px")[2].splitlines()[:5])
    )
    assert "not separable with n = 50" not in again.output  # one model, two sizes: nothing to compare
