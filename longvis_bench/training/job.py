"""What is trained, how far it is, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from longvis_bench.data.protocol import LoadableData
from longvis_bench.measure.accuracy import Accuracy
from longvis_bench.registry.registry import Variant
from longvis_bench.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to train."""

    variant: Variant
    data: LoadableData
    resolution: int
    recipe: Recipe
    seed: int = 0
    device: str = "cpu"
    initial: Path | None = None
    """Weights to start from, of the same variant at any size; None for fresh ones."""
    micro_batch: int | None = None
    """Images at once on one device; None for all of an update's."""
    workers: int = 0
    """Processes that decode images ahead, for each device."""
    checkpoint: Path | None = None
    """Where the state is kept until training ends; None for nowhere."""
    checkpoint_s: float = 600.0
    """Seconds after which it is written within an epoch too."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where training stands: after every update, and at the end of every epoch."""

    epoch: int
    """From 1."""
    epochs: int
    step: int
    """Updates done."""
    steps: int
    loss: float
    """Of the last update; at the end of an epoch the mean over its images.  With smoothed or mixed labels."""
    learning_rate: float
    """Of the last update."""
    images_s: float
    """Training images a second in this epoch, over all devices, making the batches included."""
    train_s: float
    """Seconds of this epoch's updates, looking at held-out images not included."""
    waited_s: float
    """Seconds of those in which this process had no images to learn from."""
    left_s: float
    """Seconds left at the speed of this epoch."""
    top1: float | None = None
    """Of some held-out images, 0-1; at the end of an epoch only."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """A trained model and how it came to be."""

    model: nn.Module
    job: Job
    processes: int
    history: tuple[TrainProgress, ...]
    """The end of each epoch."""
    curve: tuple[tuple[float, ...], ...]
    """One entry an update: see `curves.UPDATE`."""
    accuracy: Accuracy
    """On all held-out images, in float32, of the weights as their file holds them (fp16)."""
    fresh: tuple[str, ...]
    """Tensors that the initial file does not hold for this size, so that they started random."""

    @property
    def parameters(self) -> int:
        """Of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def train_s(self) -> float:
        """Seconds of all updates."""
        return sum(epoch.train_s for epoch in self.history)

    def facts(self) -> dict[str, Any]:
        """What the card beside the weight file says of their making; plain values."""
        recipe = self.job.recipe
        return {
            "num_classes": self.job.data.num_classes,
            "recipe": recipe.model_dump(mode="json"),
            "epochs": recipe.epochs,
            "seed": self.job.seed,
            "initial": self.job.initial.name if self.job.initial is not None else None,
            "fresh": list(self.fresh),
            "processes": self.processes,
            "parameters": self.parameters,
            "top1": self.accuracy.top1,
            "images": self.accuracy.images,
            "train_s": round(self.train_s, 1),
            "images_s": round(recipe.epochs * self.job.data.size("train") / self.train_s, 2),
        }
