"""How long a sweep takes, roughly: from the cards' MACs, the metrics and the device; for `--dry-run`."""

from __future__ import annotations

from longvis_bench.records import Cell, Request
from longvis_bench.registry.card import COUNTED_AT
from longvis_bench.registry.registry import Variant

CPU_MACS_S = 15e9
"""MACs per second and CPU thread: between 6e9 and 50e9 in the committed runs of two threads."""
GPU_MACS_S = 5e12
START_S = 0.5
COUNT_S = 1.5
"""Seconds of counting and of tracing shapes, whatever the model costs: 0.3 to 1.2 in the committed runs."""
UNKNOWN_S = 3.0
"""Seconds beside the budget of a cell whose model has no counts."""
MEMORY_ITERATIONS, VALIDITY_ITERATIONS, LEAST_TIMED = 3, 6, 6
TRAIN_FACTOR = 3.0


def cell_seconds(request: Request, variant: Variant) -> float:
    """Seconds that a cell takes, within a factor of about three where its card has counts."""
    cell, budget = request.cell, request.settings.budget_s
    seconds = START_S + (COUNT_S if "count" in cell.metrics else 0.0)
    latency = iteration_seconds(cell, variant)
    if latency is None:
        return seconds + (budget + UNKNOWN_S if set(cell.metrics) - {"count"} else 0.0)
    seconds += max(budget, LEAST_TIMED * latency) if "time" in cell.metrics else 0.0
    seconds += MEMORY_ITERATIONS * latency if "memory" in cell.metrics else 0.0
    seconds += VALIDITY_ITERATIONS * latency if "validity" in cell.metrics else 0.0
    if "accuracy" in cell.metrics and cell.weights is not None:
        seconds += cell.images * latency / cell.batch_size
    return min(seconds, request.settings.timeout_s)


def iteration_seconds(cell: Cell, variant: Variant) -> float | None:
    """Seconds of one iteration; None where the card has no count of the variant."""
    entry = None if variant.card is None or variant.overrides else variant.card.variants.get(variant.variant)
    if entry is None or entry.macs is None or variant.card is None:
        return None
    power = 4 if variant.card.growth == "quadratic" else 2
    macs = entry.macs * (cell.resolution / COUNTED_AT.resolution) ** power
    rate = CPU_MACS_S * cell.threads if cell.device == "cpu" else GPU_MACS_S
    return macs * cell.batch_size * (TRAIN_FACTOR if cell.mode == "train" else 1.0) / rate
