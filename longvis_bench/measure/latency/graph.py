"""Latency without the host: an iteration captured once as a CUDA graph, and replayed.

At small batches the GPU waits for Python, which launches hundreds of kernels per forward.  A graph launches
all of them at once, so that its replay takes what the kernels take.  A forward can be captured if it never
waits for the device and uses the same memory every time.

Reference: PyTorch, "CUDA semantics", section "CUDA Graphs".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from longvis_bench.errors import Unsupported
from longvis_bench.measure.latency.clock import Clock, clock_for
from longvis_bench.measure.latency.timing import measure_latency
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.measure.validity.checks import tolerance_for
from longvis_bench.text import message_of

WARM_UP = 3
"""Iterations on the stream of the capture before it: libraries and the allocator start there."""
BUDGET_SHARE = 0.25
"""Share of a process's timing budget that the replays may take."""


def time_graph(iteration: Callable[[], object], images: Tensor, builder: RowBuilder) -> None:
    """Time the replays of an inference cell on CUDA; where that fails, the row says why.

    Arguments:
        iteration: runs one batch and returns its logits or maps.
        images: the batch, on the device.
        builder: of the row, whose timing receives the samples.
    """
    request = builder.request
    if request.cell.mode == "train":
        builder.null_reasons["graph_latency_s"] = "only forwards are captured as a graph, not training steps"
        return
    try:
        samples = graph_samples(
            iteration,
            clock_for(images.device),
            images.device,
            budget_s=request.timing_budget_s,
            precision=request.settings.precision,
            tolerance=tolerance_for(images),
        )
    except Unsupported as error:
        builder.null_reasons["graph_latency_s"] = str(error)
        return
    assert builder.timing is not None
    builder.timing = builder.timing.model_copy(update={"graph_s": samples})


def graph_samples(
    iteration: Callable[[], object],
    clock: Clock,
    device: torch.device,
    *,
    budget_s: float,
    precision: float,
    tolerance: float,
) -> tuple[float, ...]:
    """Seconds of each counted replay.

    Arguments:
        iteration: runs one batch and returns its logits or maps.
        clock: times a replay.
        device: a CUDA device.
        budget_s: seconds for timing the cell in this process.
        precision: see `measure_latency`.
        tolerance: largest accepted difference of the replayed logits, as a share of the largest logit.

    Raises:
        Unsupported: the iteration cannot be captured, or its replay computes something else.
    """
    graph: torch.cuda.CUDAGraph = torch.cuda.CUDAGraph()
    try:
        outputs = _capture(graph, iteration, device)
    except Exception as error:
        raise Unsupported(f"the forward cannot be captured as a CUDA graph: {message_of(error)}") from error
    record = measure_latency(graph.replay, clock, budget_s=BUDGET_SHARE * budget_s, precision=precision)
    for off in _differences(outputs, iteration()):
        if not off <= tolerance:  # NaN is none, too
            raise Unsupported(f"the outputs of a replayed CUDA graph are others, by {off:.1e} of the largest")
    return record.samples_s


def _capture(graph: torch.cuda.CUDAGraph, iteration: Callable[[], object], device: torch.device) -> object:
    """What the iteration returned while it was captured: tensors that each replay fills anew."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            iteration()
    torch.cuda.current_stream(device).wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        return iteration()


def _differences(replayed: object, outputs: object) -> list[float]:
    """Largest difference / largest logit; of maps for each, against its own largest value."""
    pairs = zip(tree_leaves(replayed), tree_leaves(outputs), strict=True)
    return [_relative(ours.double(), theirs.double()) for ours, theirs in pairs]


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
