"""Which validity checks a cell gets, given how long they take.

`checks.py` has the checks.  This module decides which of them run: a check may not take longer than the
measurement, nor lose a result to the cell's time limit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from longvis_bench import units
from longvis_bench.measure.iteration import DTYPES, Step
from longvis_bench.measure.latency.clock import clock_for
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.measure.validity.checks import (
    canary,
    check_validity,
    reference_dtype,
    refuse_unchecked,
)
from longvis_bench.measure.validity.outputs import check_outputs, form_of
from longvis_bench.measure.validity.sample_indices import INT32_ELEMENTS
from longvis_bench.records import ValidityRecord

BATCH_LIMIT_S = 30.0
"""Seconds that a forward of two images may take, where one was measured; otherwise it is skipped."""
REFERENCE_LIMIT_S = 30.0
"""Seconds that the reference may take, at most the timing budget; otherwise operators are sampled."""
REFERENCE_COST = 10
"""Duration of the float64 reference on a CPU, in iterations; float64 convolutions have no fast kernels."""
REFERENCE_TENSORS = 3
"""Number of largest tensors (attention scores) that the reference holds at once."""
PRODUCT_SIDE = 2048
"""Side of the matrix whose product measures the rate of a dtype: 0.1 s in float64 on the slowest GPUs."""
PAIR_COST = 2
"""Duration of a batch of two, in iterations."""
CHECK_COST = 3
"""Duration of the smallest check, in iterations, with a margin."""


def check_cell(
    model: nn.Module, images: Tensor, measured: object, builder: RowBuilder, other: Callable[[], Tensor]
) -> None:
    """Check what an inference cell gave: always its shape, finiteness and indices, the rest if asked.

    Arguments:
        model: as it was measured.
        images: (batch, channels, height, width), what was measured.
        measured: what the model gave for them; None: unknown.
        builder: of the row: what is known so far, and where the record goes.
        other: makes one more image, (1, channels, height, width).

    Raises:
        InvalidOutput: the logits or maps are wrong.
        Unsupported: an index may have overflowed where no check can look.
    """
    cell, may_overflow = builder.request.cell, _may_overflow(images, builder)
    form = form_of(cell, model, images)
    logits = None if measured is None else check_outputs(measured, cell.batch_size, form)
    asked = "validity" in cell.metrics
    if not asked and not may_overflow:
        if logits is None:
            with torch.inference_mode():
                check_outputs(model(images[:1]), 1, form)
        return
    late = None if may_overflow else why_too_late(builder)
    if late is not None:
        builder.validity = ValidityRecord(verdict="not checked", reference=late)
        return
    pair = (
        asked
        and cell.batch_size == 1
        and PAIR_COST * builder.latency_s <= BATCH_LIMIT_S
        and 2 * (_largest(images, builder) or 0) < INT32_ELEMENTS
    )
    checked = check_validity(
        model,
        images,
        form,
        measured=measured,
        other=other() if pair else None,
        skip_reference=why_no_reference(builder) if asked else "not asked for (--metrics)",
        sample=may_overflow,
    )
    if asked:
        builder.validity = checked.record
    checked.require(cell.model)


def check_step(iteration: Step, images: Tensor, builder: RowBuilder) -> None:
    """Check tensors past 2^31 elements in a training step, which has no other validity check.

    Raises:
        InvalidOutput: an operator's result is wrong.
        Unsupported: an operator cannot be checked.
    """
    cell = builder.request.cell
    if not _may_overflow(images, builder):
        return
    if cell.compile:
        refuse_unchecked(("all of the compiled training step",))
    with canary(DTYPES[cell.dtype]):
        iteration()


def _may_overflow(images: Tensor, builder: RowBuilder) -> bool:
    """Whether a tensor may be past 2^31 elements; True if the size is unknown."""
    largest = _largest(images, builder)
    return largest is None or largest >= INT32_ELEMENTS


def _largest(images: Tensor, builder: RowBuilder) -> int | None:
    """Upper bound of the largest tensor's elements; None where shapes were neither traced nor counted."""
    if builder.tensor_peak is not None:
        return builder.tensor_peak.largest
    counted = builder.largest_output
    return None if counted is None else max(counted * len(images), images.numel())


def why_too_late(builder: RowBuilder) -> str | None:
    """Why the time limit leaves no room for one more forward, so that the measurement is kept unchecked."""
    builder.phases.book()
    left = builder.request.settings.timeout_s - sum(builder.overhead_s.values())
    if builder.latency_s * CHECK_COST < left:
        return None
    return (
        f"not run: it would take about {units.seconds(builder.latency_s * CHECK_COST)}, "
        f"and the cell's time limit leaves {units.seconds(max(0.0, left))} (--timeout)"
    )


def why_no_reference(builder: RowBuilder) -> str | None:
    """Why the reference is not run; its unfused attention holds score matrices that the model does not."""
    import psutil

    memory, cell = builder.memory, builder.request.cell
    if memory is None or builder.timing is None or builder.largest_output is None:
        return "not run: without count, time and memory its cost is unknown"
    limit = min(REFERENCE_LIMIT_S, builder.request.settings.budget_s)
    if cell.device == "cpu" and REFERENCE_COST * builder.latency_s > limit:
        return f"not run: it would take about {units.seconds(REFERENCE_COST * builder.latency_s)}"
    needed = 2 * memory.peak_bytes + REFERENCE_TENSORS * 8 * builder.largest_output
    available = psutil.virtual_memory().available
    if cell.device.startswith("cuda"):
        available = torch.cuda.mem_get_info(torch.device(cell.device))[0]
    if needed > available:
        return f"not run: it would take about {units.size(needed)} of memory"
    if cell.device.startswith("cuda"):
        dtype = DTYPES[cell.dtype]
        slower = slowdown(torch.device(cell.device), dtype, reference_dtype(dtype))
        seconds = slower * builder.latency_s / cell.batch_size  # it is of one image
        if seconds > limit:
            return f"not run: it would take about {units.seconds(seconds)}"
    return None


def slowdown(device: torch.device, dtype: torch.dtype, higher: torch.dtype) -> float:
    """How many times longer a matrix product takes in a higher dtype: 2 to 64 in float64, by the GPU.

    Measured, as no driver tells the rate; at least 1.
    """
    clock = clock_for(device)

    def seconds(of: torch.dtype) -> float:
        matrix = torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, device=device, dtype=of)
        return min(clock.time(lambda: matrix @ matrix) for _ in range(3))  # the first starts the library

    fast, slow = seconds(dtype), seconds(higher)
    return max(1.0, slow / fast) if fast else 1.0
