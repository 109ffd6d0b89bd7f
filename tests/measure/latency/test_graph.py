"""A forward replayed as a CUDA graph: timed, compared with the forward, and refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from longvis_bench.errors import Unsupported
from longvis_bench.measure.latency.graph import WARM_UP, graph_samples, time_graph
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import Cell, Mode, Request, TimingRecord
from longvis_bench.report.columns import BY_NAME, null_reason

CUDA = torch.device("cuda")


class Graph:
    """Counts replays."""

    replays = 0

    def replay(self) -> None:
        Graph.replays += 1


class Clock:
    """An iteration takes 2 ms."""

    def __init__(self) -> None:
        self._now = 0.0

    def time(self, iteration: Callable[[], object]) -> float:
        iteration()
        self._now += 0.002
        return 0.002

    def now(self) -> float:
        return self._now


@pytest.fixture(autouse=True)
def _cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(Graph, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: nullcontext())


def samples(iteration: Callable[[], object]) -> tuple[float, ...]:
    return graph_samples(iteration, Clock(), CUDA, budget_s=1.0, precision=0.02, tolerance=1e-3)


def test_replays_are_timed_and_not_the_forward() -> None:
    calls = []

    def forward() -> Tensor:
        calls.append(1)
        return torch.ones(1, 4)

    found = samples(forward)
    assert set(found) == {0.002}
    assert Graph.replays > len(found)
    assert len(calls) == WARM_UP + 2  # captured once, and once for its logits


def test_a_forward_that_cannot_be_captured_says_why() -> None:
    def forward() -> Tensor:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors")

    with pytest.raises(Unsupported, match=r"cannot be captured as a CUDA graph: .*not permitted when stream"):
        samples(forward)


@pytest.mark.parametrize("faulty", [None, 0, 1])
def test_each_map_of_a_replay_is_compared(faulty: int | None) -> None:
    calls = []

    def forward() -> tuple[Tensor, Tensor]:
        calls.append(1)
        maps = [torch.full((1, 4, 2, 2), 1000.0), torch.ones(1, 8, 1, 1)]
        if len(calls) == WARM_UP + 2 and faulty is not None:
            maps[faulty] = maps[faulty] * float("nan") if faulty else maps[faulty] + 10
        return maps[0], maps[1]

    if faulty is None:
        assert samples(forward)
        return
    with pytest.raises(Unsupported, match="outputs of a replayed CUDA graph are others"):
        samples(forward)


@pytest.mark.parametrize("other", [2.0, float("nan")])
def test_a_replay_that_computes_something_else_is_refused(other: float) -> None:
    calls = []

    def forward() -> Tensor:
        calls.append(1)
        return torch.ones(1, 4) if len(calls) < WARM_UP + 2 else torch.full((1, 4), other)

    with pytest.raises(Unsupported, match="outputs of a replayed CUDA graph"):
        samples(forward)


def built(mode: Mode = "infer") -> RowBuilder:
    """A cell on CUDA that has been timed."""
    cell = Cell(
        model="m", family="m", variant="m", implementation="native", resolution=64, device="cuda", mode=mode
    )
    builder = RowBuilder(Request(cell=cell))
    builder.timing = TimingRecord(samples_s=(0.01,) * 6, warmup_s=(), verdict="stable")
    return builder


def test_the_row_has_the_replays_or_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longvis_bench.measure.latency.graph.clock_for", lambda device: Clock())
    builder, images = built(), torch.ones(1)
    time_graph(lambda: torch.ones(1, 4), images, builder)
    row = builder.row()
    column = BY_NAME["graph_latency_s"]
    assert column.value(row) == pytest.approx(0.002)
    assert row.timing is not None
    assert row.timing.samples_s == (0.01,) * 6

    builder = built()
    time_graph(lambda: [][0], images, builder)
    assert column.value(builder.row()) is None
    assert "cannot be captured" in (null_reason(column, builder.row()) or "")

    builder = built("train")
    time_graph(lambda: torch.ones(1, 4), images, builder)
    assert null_reason(column, builder.row()) == ("only forwards are captured as a graph, not training steps")
