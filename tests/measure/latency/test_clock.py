"""Which device a clock waits for and records its events on."""

from __future__ import annotations

import pytest
import torch

from longvis_bench.measure.latency.clock import clock_for, use_device


class Event:
    """Stands for a CUDA event: remembers its stream, 2 s lie between any two."""

    def __init__(self, calls: list[tuple[str, object]]) -> None:
        self._calls = calls

    def record(self, stream: object = None) -> None:
        self._calls.append(("record", stream))

    def elapsed_time(self, end: Event) -> float:
        return 2000.0


def test_cuda_is_timed_on_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []
    device = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: calls.append(("synchronize", device)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(calls))
    assert clock_for(device).time(lambda: calls.append(("run", None))) == 2.0
    stream = ("record", "stream of cuda:1")
    wait: tuple[str, object] = ("synchronize", device)
    assert calls == [wait, stream, ("run", None), stream, wait]


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_numbered_device_becomes_the_current_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[object] = []
    monkeypatch.setattr(getattr(torch, kind), "set_device", chosen.append)
    for name in ("cpu", "mps", kind, f"{kind}:1"):
        use_device(torch.device(name))
    assert chosen == [torch.device(kind, 1)]


def test_every_accelerator_with_a_number_is_waited_for_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.xpu, "synchronize", waited.append)
    clock_for(torch.device("xpu:1")).time(lambda: None)
    assert waited == [torch.device("xpu", 1)] * 2
