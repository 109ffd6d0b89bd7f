"""The training loop: one device, plain, the same for every family.

On the CPU the same seed gives the same weights bit for bit, on the same machine with the same versions and
number of threads.  Nothing is selected on the held-out images: the first `WATCHED_IMAGES` of them are looked
at after each epoch, all of them once at the end, and the last weights are the result.

Not here: several devices, mixed precision and continuing after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite, log
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F

from longvis_bench.data import ImageData
from longvis_bench.errors import LongvisError
from longvis_bench.measure.accuracy import Accuracy, measure_accuracy
from longvis_bench.registry import Variant
from longvis_bench.training.recipe import Recipe
from longvis_bench.weights import round_weights

WATCHED_IMAGES = 128
DIVERGED = 10.0
"""A loss of this many times that of guessing, log(classes), will not come back."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands: after every update, and at the end of every epoch."""

    epoch: int
    """From 1."""
    epochs: int
    step: int
    """Updates done."""
    steps: int
    loss: float
    """Of the last update; at the end of an epoch the mean over its images.  With smoothed labels."""
    learning_rate: float
    """Of the last update."""
    images_s: float
    """Training images a second in this epoch, making the batches included."""
    train_s: float
    """Seconds of this epoch's updates, looking at held-out images not included."""
    left_s: float
    """Seconds left at the speed so far."""
    top1: float | None = None
    """Of the first held-out images, 0-1; at the end of an epoch only."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """A trained model and how it came to be."""

    model: nn.Module
    variant: str
    num_classes: int
    resolution: int
    recipe: Recipe
    seed: int
    parameters: int
    history: tuple[Progress, ...]
    """The end of each epoch."""
    accuracy: Accuracy
    """On all held-out images, in float32, of the weights as their file holds them (fp16)."""

    @property
    def train_s(self) -> float:
        """Seconds of all updates."""
        return sum(epoch.train_s for epoch in self.history)

    def facts(self) -> dict[str, Any]:
        """What the card beside the weight file says of their making; plain values."""
        return {
            "num_classes": self.num_classes,
            "recipe": self.recipe.model_dump(mode="json"),
            "epochs": self.recipe.epochs,
            "seed": self.seed,
            "parameters": self.parameters,
            "top1": self.accuracy.top1,
            "images": self.accuracy.images,
            "train_s": round(self.train_s, 1),
        }


def train(
    variant: Variant,
    data: ImageData,
    *,
    resolution: int,
    recipe: Recipe,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[Progress], object] = lambda progress: None,
) -> TrainReport:
    """Train a variant from fresh weights.

    Arguments:
        variant: what is built.
        data: labelled images; only the split "train" is learnt from.
        resolution: pixels per side.
        recipe: everything that training does.
        seed: of the weights, the order of the images and their shifts.
        device: where it runs.
        on_progress: called after every update and at the end of every epoch.

    Raises:
        LongvisError: the loss is no number or far too large; the message says at which step.
        IllegalSize: the model cannot take the resolution.
    """
    device = torch.device(device)
    with _reproducible(seed, device):
        with device:
            model = variant.build(resolution=resolution, num_classes=data.num_classes)
        model = model.to(memory_format=torch.channels_last)
        trainer = _Trainer(model, data, resolution, recipe, seed, device, on_progress)
        history = tuple(trainer.epoch(number) for number in range(1, recipe.epochs + 1))
        round_weights(model)
        accuracy = trainer.measure(data.size("val"))
    return TrainReport(
        model=model.eval(),
        variant=variant.name,
        num_classes=data.num_classes,
        resolution=resolution,
        recipe=recipe,
        seed=seed,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        history=history,
        accuracy=accuracy,
    )


class _Trainer:
    """A model with its optimiser, its schedule and its source of randomness."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        resolution: int,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        on_progress: Callable[[Progress], object],
    ) -> None:
        self.model, self.data, self.resolution = model, data, resolution
        self.recipe, self.device, self.on_progress = recipe, device, on_progress
        self.random = torch.Generator().manual_seed(seed)
        self.updates = ceil(data.size("train") / recipe.batch_size)
        self.steps = recipe.epochs * self.updates
        self.step = 0
        self.started = time.perf_counter()
        options: dict[str, Any] = {} if recipe.betas is None else {"betas": recipe.betas}
        self.optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            **options,
        )
        self.schedule, _ = create_scheduler_v2(
            self.optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            warmup_epochs=ceil(recipe.warmup * self.steps) / self.updates,  # type: ignore[arg-type]
            warmup_lr=recipe.learning_rate / 1000,
            min_lr=recipe.final_learning_rate,
            step_on_epochs=False,
            updates_per_epoch=self.updates,
        )

    def epoch(self, number: int) -> Progress:
        """One pass over the training images in a new order, then a look at held-out ones."""
        images = self.data.size("train")
        started, seen, total = time.perf_counter(), 0, 0.0
        self.model.train()
        for indices in torch.split(torch.randperm(images, generator=self.random), self.recipe.batch_size):
            loss = self.update(indices.tolist())
            seen, total = seen + len(indices), total + len(indices) * loss
            progress = self.progress(number, loss, seen, time.perf_counter() - started)
            self.on_progress(progress)
        end = replace(progress, loss=total / images, top1=self.measure(WATCHED_IMAGES).top1)
        self.on_progress(end)
        return end

    def progress(self, epoch: int, loss: float, seen: int, spent: float) -> Progress:
        """After an update: `seen` images of this epoch in `spent` seconds."""
        return Progress(
            epoch=epoch,
            epochs=self.recipe.epochs,
            step=self.step,
            steps=self.steps,
            loss=loss,
            learning_rate=self.learning_rate,
            images_s=seen / spent,
            train_s=spent,
            left_s=(time.perf_counter() - self.started) / self.step * (self.steps - self.step),
        )

    def update(self, indices: list[int]) -> float:
        """One step of the optimiser on these training images; their mean loss."""
        recipe = self.recipe
        self.schedule.step_update(self.step)
        self.step += 1
        images, labels = self.data.batch("train", indices, self.resolution, device=self.device)
        images = shifted(images, recipe.shift, self.random)
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm or inf)
        self.check("loss", loss.item(), DIVERGED * log(self.data.num_classes))
        self.check("norm of the gradients", norm.item(), inf)
        self.optimizer.step()
        return loss.item()

    def check(self, what: str, value: float, limit: float) -> None:
        """Raise unless training can go on."""
        if isfinite(value) and value <= limit:
            return
        raise LongvisError(
            f"training diverged at step {self.step} of {self.steps}: the {what} is {value:.3g} "
            f"at a learning rate of {self.learning_rate:.2g}; lower the recipe's learning_rate, "
            "lengthen its warmup or lower its clip_norm."
        )

    def measure(self, images: int) -> Accuracy:
        """Accuracy on the first held-out images."""
        return measure_accuracy(
            self.model,
            self.data,
            resolution=self.resolution,
            images=images,
            batch_size=self.recipe.batch_size,
            device=self.device,
        )

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])


def shifted(images: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Each image moved by whole pixels, up to `share` of its side along each axis; borders repeated.

    Arguments:
        images: (batch, channels, side, side).
        share: 0 to 0.5.
        random: on the CPU; draws are uniform and independent for each image and axis.
    """
    side = images.shape[-1]
    most = int(share * side)
    if most == 0:
        return images
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    corners = torch.randint(0, 2 * most + 1, (len(images), 2), generator=random).tolist()
    cut = [
        image[:, top : top + side, left : left + side]
        for image, (top, left) in zip(padded, corners, strict=True)
    ]
    return torch.stack(cut)


@contextmanager
def _reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded, with algorithms that give the same sums each time; the caller's settings are put back."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            # Filling memory that is about to be overwritten only costs time, a fifth for small models.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(before or device.type == "cpu", warn_only=before_warn)
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=before_warn)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
