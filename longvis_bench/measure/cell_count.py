"""What is known of a cell without data: its operations, its tensors' peak, and the shapes of its maps."""

from __future__ import annotations

from copy import deepcopy

import torch

from longvis_bench.errors import CardError, IllegalSize, MissingDependency, NoMaps, Unsupported
from longvis_bench.measure.cache import Cache
from longvis_bench.measure.exception_status import cause, is_ours
from longvis_bench.measure.flops.counter import CountSummary, count_variant, variant_parameters
from longvis_bench.measure.memory.tensor_peak import TensorPeak, tensor_peak
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import Cell
from longvis_bench.registry.output import build_output
from longvis_bench.registry.registry import Variant


def add_shapes(variant: Variant, cell: Cell, builder: RowBuilder, cache: Cache) -> None:
    """Find the tensor peak; where that fails, the row records why."""
    if cell.compile:
        builder.null_reasons["tensor_peak_bytes"] = "torch.compile decides which tensors there are"
        return
    try:
        builder.tensor_peak = cache.get("shapes", TensorPeak, lambda: tensor_peak(variant, cell))
        if "shapes" in cache.used:
            _rehearse_building(variant, cell)
    except (IllegalSize, MissingDependency, CardError, Unsupported):
        raise
    except Exception as error:
        builder.null_reasons["tensor_peak_bytes"] = f"the model does not run without data: {cause(error)}"


def _rehearse_building(variant: Variant, cell: Cell) -> None:
    """Build and drop the model on the meta device, as executing the shapes would have done.

    Otherwise the measured peak depends on the cache, by the Python objects that only a first building makes:
    8.1 instead of 7.0 MB for atlas-n at 256 px; with this 7.1.
    """
    with torch.device("meta"):
        model = build_output(variant, cell.output, resolution=cell.resolution, num_classes=cell.num_classes)
    deepcopy(model)


def add_count(variant: Variant, cell: Cell, builder: RowBuilder, cache: Cache) -> None:
    """Count operations; a model that cannot run on the meta device keeps the rest of its row."""

    def count() -> CountSummary:
        return count_variant(variant, cell.resolution, cell.num_classes, cell.output).summary()

    try:
        found = cache.get("count", CountSummary, count)
    except (IllegalSize, MissingDependency, CardError, NoMaps):
        raise
    except Exception as error:
        if is_ours(error):
            raise
        builder.null_reasons["count"] = cause(error)
        builder.params = variant_parameters(
            variant,
            cell.resolution,
            cell.num_classes,
            allocate=set(cell.metrics) <= {"count"},
            output=cell.output,
        )
        return
    builder.count, builder.largest_output = found.record, found.largest_output
    if found.features is not None:  # bytes are those of a batch in the cell's dtype, once it has run
        builder.features = found.features.model_copy(update={"held_bytes": None})


def largest_output(variant: Variant, cell: Cell) -> int | None:
    """Elements of the largest output of one image, without which a compiled training step is refused."""
    try:
        return count_variant(variant, cell.resolution, cell.num_classes, cell.output).summary().largest_output
    except (IllegalSize, MissingDependency, CardError, NoMaps):
        raise
    except Exception as error:
        if is_ours(error):
            raise
        return None
