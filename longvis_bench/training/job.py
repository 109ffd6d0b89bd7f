"""The description of a training, its progress, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from longvis_bench.data.protocol import LoadableData
from longvis_bench.measure.accuracy import Accuracy
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution
from longvis_bench.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to train, and how."""

    variant: Variant
    data: LoadableData
    resolution: Resolution
    recipe: Recipe
    seed: int = 0
    device: str = "cpu"
    initial: Path | None = None
    """Initial weights, of the same variant at any size; None for random ones."""
    micro_batch: int | None = None
    """Images per forward pass and device; None for all images of an update."""
    workers: int = 0
    """Processes that decode images ahead, per device."""
    checkpoint: Path | None = None
    """Path of the checkpoint, which is deleted at the end; None for no checkpoint."""
    checkpoint_s: float = 600.0
    """Seconds between checkpoints within an epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Progress of a training, after every update and at the end of every epoch."""

    epoch: int
    """From 1."""
    epochs: int
    step: int
    """Finished updates of all epochs."""
    steps: int
    loss: float
    """Loss of the last update, or the mean over an epoch at its end; with smoothed or mixed labels."""
    learning_rate: float
    """Learning rate of the last update."""
    images_s: float
    """Training images per second in this epoch, over all devices, loading included."""
    train_s: float
    """Seconds of this epoch's updates, without the evaluation on held-out images."""
    waited_s: float
    """Seconds of these in which this process waited for images."""
    left_s: float
    """Estimated remaining seconds at the speed of this epoch."""
    top1: float | None = None
    """Accuracy on some held-out images, 0-1; None except at the end of an epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """A trained model and its training."""

    model: nn.Module
    job: Job
    processes: int
    history: tuple[TrainProgress, ...]
    """Progress at the end of each epoch."""
    curve: tuple[tuple[float, ...], ...]
    """One entry per update; see `curves.UPDATE`."""
    accuracy: Accuracy
    """Accuracy on all held-out images, in float32, of the weights rounded to fp16 as in their file."""
    fresh: tuple[str, ...]
    """Tensors missing from the initial file for this size, which were initialised at random."""

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def train_s(self) -> float:
        """Seconds of all updates."""
        return sum(epoch.train_s for epoch in self.history)

    def facts(self) -> dict[str, Any]:
        """Facts of the training for the card next to the weight file; plain values."""
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
