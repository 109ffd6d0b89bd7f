"""Reach of several models at several sizes, with the weights that ship: for the command and the interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from longvis_bench import stats
from longvis_bench.data.protocol import FOLDER, LoadableData, open_data
from longvis_bench.errors import IllegalSize, LongvisError, MissingDependency, Unsupported
from longvis_bench.measure.exception_status import cause, is_interrupt, is_ours
from longvis_bench.measure.reach import SEEDS, Reach, measure_reach
from longvis_bench.registry.global_state import Snapshot
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Resolution, columns
from longvis_bench.weights.resolving import shipped_weights


@dataclass(frozen=True)
class ReachRow:
    """One model at one size."""

    model: str
    family: str
    resolution: Resolution
    reach: Reach | None
    weights: str | None = None
    """Name of the weights whose radii are `reach.trained`."""
    reason: str | None = None
    """Why there is no reach."""
    fault: LongvisError | None = None
    """The error that says so, where it is one of this package."""

    @property
    def columns(self) -> dict[str, object]:
        """Plain values, with the names of the columns of `bench`."""
        found = None if self.reach is None else self.reach.to_record()
        names = ("radius_50_px", "radius_90_px", "trained_radius_50_px", "trained_radius_90_px")
        radii = {name: None if found is None else stats.median(getattr(found, name)) for name in names}
        return {
            "model": self.model,
            **columns(self.resolution),
            "reach_share": None if found is None else found.share,
            **{f"reach_{name}": value for name, value in radii.items()},
            "reach_basis": None if found is None else found.basis,
            "weights": self.weights,
            "reason": self.reason,
        }


def measure_all(
    models: Sequence[str],
    resolutions: Sequence[Resolution],
    registry: Registry,
    *,
    seeds: int = SEEDS,
    data: str = "digits",
) -> Iterator[ReachRow]:
    """Measure each model at each size, on the CPU.

    Arguments:
        models: names or patterns as on the command line.
        resolutions: pixels per side.
        registry: of the models.
        seeds: fresh models per size, and images for trained weights.
        data: images whose shipped weights are measured, too, where there are some.

    Raises:
        LongvisError: a name or option is wrong.
    """
    if seeds < 1:
        raise LongvisError(f"seeds must be 1 or more, not {seeds}.")
    if data.startswith(FOLDER):
        raise LongvisError("weights ship for digits and pairs, not for folders; give --data digits.")
    images = open_data(data)
    for name in registry.expand(models):
        variant = registry.find(name)
        variant.check_factory()
        for resolution in resolutions:
            yield _row(variant, resolution, seeds, images)


def _row(variant: Variant, resolution: Resolution, seeds: int, images: LoadableData) -> ReachRow:
    row = partial(ReachRow, variant.full_name, variant.family, resolution)
    settings = Snapshot(seeds=True)
    try:
        file = shipped_weights(variant, images.name, resolution)
        found = measure_reach(
            variant,
            resolution,
            num_classes=images.num_classes,
            seeds=seeds,
            weights=Path(file.path) if file else None,
            data=images,
        )
    except (IllegalSize, MissingDependency, Unsupported) as error:
        return row(None, reason=str(error), fault=error)
    except LongvisError:
        raise
    except Exception as error:
        if is_interrupt(error) or is_ours(error):
            raise
        return row(None, reason=cause(error))
    finally:
        settings.restore()
    return row(found, weights=file.name if file else None)


def refuse_hopeless(rows: Sequence[ReachRow]) -> None:
    """Raise the first reason where no row has a reach.

    Raises:
        LongvisError: with the exit code of that reason.
    """
    if rows and all(row.reach is None for row in rows):
        raise rows[0].fault or LongvisError(rows[0].reason or "no model has a reach.")
