"""What `longvis train` and `longvis eval` do, without printing: check everything, then work, then keep.

Names, sizes, packages and devices are checked for all models before the first one is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from longvis_bench.data import ImageData, open_data
from longvis_bench.environment import resolve_device, usable_cores
from longvis_bench.errors import CheckpointError, LongvisError
from longvis_bench.measure.accuracy import Accuracy, measure_accuracy
from longvis_bench.registry import Variant
from longvis_bench.training.loop import Progress, TrainReport, train
from longvis_bench.training.recipe import Recipe
from longvis_bench.weights import load_weights, read_metadata, store_weights

EVAL_PIXELS = 8 * 512 * 512
"""Pixels of a batch when accuracy is measured, so that memory stays the same at every size."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model to train."""

    variant: Variant
    data: ImageData
    resolution: int
    recipe: Recipe
    seed: int
    device: str

    def train(self, on_progress: Callable[[Progress], object]) -> TrainReport:
        """See `loop.train`."""
        return train(
            self.variant,
            self.data,
            resolution=self.resolution,
            recipe=self.recipe,
            seed=self.seed,
            device=self.device,
            on_progress=on_progress,
        )

    def keep(self, report: TrainReport, store: Path | None) -> Path:
        """Put the weights into the store; the weight file."""
        return store_weights(
            report.model,
            variant=self.variant.full_name,
            dataset=self.data.name,
            resolution=self.resolution,
            facts=report.facts(),
            store=store,
        )


def start_training(
    variants: Sequence[Variant],
    data: str,
    resolution: int,
    recipe: Recipe,
    seed: int,
    device: str,
    threads: int | None,
) -> list[Run]:
    """The runs, once everything that can be checked has been.

    Raises:
        LongvisError: an unknown name or device, an illegal size, or a package that is not installed.
    """
    images, place = open_data(data), _prepare(device, threads)
    if not variants:
        raise LongvisError("there is no model to train: name at least one.")
    for variant in variants:
        variant.plan(resolution)
        variant.require_packages()
    return [
        Run(variant=variant, data=images, resolution=resolution, recipe=recipe, seed=seed, device=place)
        for variant in variants
    ]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy of one weight file at one resolution, or why there is none."""

    resolution: int
    trained_resolution: int | None
    """What the file says; None for a file of others."""
    accuracy: Accuracy | None
    note: str
    """What was done to the model to fit, or why accuracy is None."""


def evaluate(
    variant: Variant,
    weights: Path,
    data: str,
    resolutions: Sequence[int],
    images: int | None,
    device: str,
    threads: int | None,
) -> Iterator[Evaluation]:
    """Accuracy at each resolution; sizes other than the trained one are allowed unless a tensor is random.

    Raises:
        LongvisError: as `start_training`; or the weights do not fit at any of the resolutions.
    """
    source, place = open_data(data), _prepare(device, threads)
    variant.require_packages()
    for resolution in resolutions:
        variant.plan(resolution)
    faults: list[LongvisError] = []
    for resolution in resolutions:
        try:
            yield _evaluate_one(variant, weights, source, resolution, images, place)
        except CheckpointError as error:
            faults.append(error)
            trained = read_metadata(weights).get("resolution")
            yield Evaluation(
                resolution=resolution, trained_resolution=trained, accuracy=None, note=str(error)
            )
    if len(faults) == len(resolutions):
        raise faults[0]


def _evaluate_one(
    variant: Variant, weights: Path, data: ImageData, resolution: int, images: int | None, device: str
) -> Evaluation:
    with torch.device(device):
        model = variant.build(resolution=resolution, num_classes=data.num_classes)
    report = load_weights(model, weights)
    if report.random:
        why = report.reshaped.get(report.random[0], "random")
        raise CheckpointError(f"{weights.name} does not fit {data.name}: {report.random[0]} is {why}.")
    accuracy = measure_accuracy(
        model,
        data,
        resolution=resolution,
        images=images,
        batch_size=max(1, min(32, EVAL_PIXELS // resolution**2)),
        device=device,
    )
    reshaped = [f"{name} {what}" for name, what in report.reshaped.items()]
    return Evaluation(
        resolution=resolution,
        trained_resolution=read_metadata(weights).get("resolution"),
        accuracy=accuracy,
        note="; ".join(reshaped),
    )


def _prepare(device: str, threads: int | None) -> str:
    """The device to run on; sets the number of CPU threads."""
    place = resolve_device(device)
    torch.set_num_threads(threads or usable_cores())
    return place
