"""Estimate the duration of cells from MACs, metrics and device: for `--dry-run`, shards and devices."""

from __future__ import annotations

from longvis_bench.measure.latency.processes import ITERATIONS
from longvis_bench.records import Cell, Request
from longvis_bench.registry.card import COUNTED_AT
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import side

CPU_MACS_S = 25e9
"""MACs per second and CPU thread.  The committed runs on two threads have 3e9 to 16e9 for small models at 256
px and up to 55e9 at 2048 px; the large cells dominate the duration of a sweep."""
GPU_MACS_S = 5e12
"""MACs per second on a GPU: an assumption, as no run on a GPU is committed yet."""
START_S = 0.5
COUNT_S = 1.5
"""Seconds to count operations and trace shapes, for any model: 0.3 to 1.2 in the committed runs."""
UNKNOWN_S = 3.0
"""Seconds on top of the timing budget for a cell whose MACs are unknown."""
PROCESS_S = 1.5
"""Seconds that a further process takes to start, and to build the model, before it times."""
MEMORY_ITERATIONS, VALIDITY_ITERATIONS, LEAST_TIMED = 3, 6, 6
REACH_ITERATIONS = 60
"""Forwards that the passes of 9 tokens and 3 seeds take as long as."""
TRAIN_FACTOR = 3.0


def cell_seconds(request: Request, variant: Variant, processes: int = 1, counted: int | None = None) -> float:
    """Estimated duration of a cell in seconds, within a factor of about three where its MACs are known.

    Arguments:
        request: the cell and its budget, which its processes share.
        variant: the model.
        processes: those that time the cell at least; one where a few iterations take the whole budget.
        counted: MACs per image at the cell's size, for a model whose card has none.
    """
    cell, budget = request.cell, request.settings.budget_s
    seconds = START_S + (COUNT_S if "count" in cell.metrics else 0.0)
    latency = iteration_seconds(cell, variant, counted)
    if "time" in cell.metrics and ITERATIONS * (latency or 0.0) <= budget:
        seconds += (processes - 1) * PROCESS_S
    if latency is None:
        timed = budget if "time" in cell.metrics else 0.0
        return seconds + (timed + UNKNOWN_S if set(cell.metrics) - {"count"} else 0.0)
    seconds += max(budget, LEAST_TIMED * latency) if "time" in cell.metrics else 0.0
    seconds += MEMORY_ITERATIONS * latency if "memory" in cell.metrics else 0.0
    seconds += VALIDITY_ITERATIONS * latency if "validity" in cell.metrics else 0.0
    if "reach" in cell.metrics and cell.mode == "infer":
        seconds += REACH_ITERATIONS * latency / cell.batch_size
    if "accuracy" in cell.metrics and cell.weights is not None:
        seconds += cell.images * latency / cell.batch_size
    return min(seconds, request.settings.timeout_s)


def iteration_seconds(cell: Cell, variant: Variant, counted: int | None = None) -> float | None:
    """Estimated seconds per iteration; None where neither the card has MACs nor a count is given."""
    macs = counted if counted is not None else _card_macs(cell, variant)
    if macs is None:
        return None
    rate = CPU_MACS_S * cell.threads if cell.device == "cpu" else GPU_MACS_S
    return macs * cell.batch_size * (TRAIN_FACTOR if cell.mode == "train" else 1.0) / rate


def _card_macs(cell: Cell, variant: Variant) -> float | None:
    """MACs per image at the cell's size, from those of the card and its growth."""
    entry = None if variant.card is None or variant.overrides else variant.card.variants.get(variant.variant)
    if entry is None or entry.macs is None or variant.card is None:
        return None
    power = 4 if variant.card.growth == "quadratic" else 2
    return float(entry.macs * (side(cell.resolution) / COUNTED_AT.resolution) ** power)
