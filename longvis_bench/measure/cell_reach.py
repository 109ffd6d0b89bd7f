"""The reach of a cell's model at its size; or the reason why it has none."""

from __future__ import annotations

from longvis_bench.data.protocol import open_data
from longvis_bench.errors import CardError, IllegalSize, MissingDependency
from longvis_bench.measure.cache import Cache
from longvis_bench.measure.exception_status import cause, is_interrupt, is_ours
from longvis_bench.measure.reach import measure_reach
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import ReachRecord, Request
from longvis_bench.registry.registry import Variant

MOST_OF_TIMEOUT = 0.5
"""Share of the cell's time limit that reach may take."""


def add_reach(request: Request, variant: Variant, builder: RowBuilder, cache: Cache) -> None:
    """Add the reach to the row, or the reason why it has none; a failure costs the row nothing else.

    Arguments:
        request: the cell, and its weights.
        variant: its model, which is built anew.
        builder: receives the reach.
        cache: may have it already.
    """
    if request.cell.mode == "train":
        builder.null_reasons["reach"] = "measured in inference cells only"
        return
    if request.cell.output == "features":
        builder.null_reasons["reach"] = "measured of models with their head only (--output logits)"
        return
    with builder.timed("reach"):
        try:
            builder.reach = cache.get("reach", ReachRecord, lambda: _measure(request, variant))
        except (IllegalSize, MissingDependency, CardError):
            raise
        except Exception as error:
            if is_interrupt(error) or is_ours(error):
                raise
            builder.null_reasons["reach"] = cause(error)


def _measure(request: Request, variant: Variant) -> ReachRecord:
    cell = request.cell
    trained = request.weights_path is not None
    reach = measure_reach(
        variant,
        cell.resolution,
        num_classes=cell.num_classes,
        first_seed=cell.seed,
        weights=request.weights_path,
        data=open_data(request.source or cell.data) if trained else None,
        limit_s=MOST_OF_TIMEOUT * request.settings.timeout_s,
    )
    return reach.to_record()
