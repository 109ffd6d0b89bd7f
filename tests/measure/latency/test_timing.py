"""Latency on clocks whose samples are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest
import torch

from longvis_bench.measure.latency.clock import HostClock, clock_for
from longvis_bench.measure.latency.timing import measure_latency


class FakeClock:
    """Yields given samples and counts their seconds as elapsed."""

    def __init__(self, samples: Iterator[float]) -> None:
        self._samples = samples
        self.elapsed = 0.0
        self.calls = 0

    def time(self, iteration: Callable[[], object]) -> float:
        iteration()
        self.calls += 1
        sample = next(self._samples)
        self.elapsed += sample
        return sample

    def now(self) -> float:
        return self.elapsed


def test_a_constant_clock_is_stable_at_once() -> None:
    record = measure_latency(lambda: None, FakeClock(repeat(0.01)), budget_s=30)
    assert record.verdict == "stable"
    assert set(record.samples_s) == {0.01}
    assert len(record.samples_s) < 30


def test_the_first_iteration_never_counts() -> None:
    record = measure_latency(lambda: None, FakeClock(chain([5.0], repeat(0.01))), budget_s=30)
    assert record.warmup_s[0] == 5.0
    assert 5.0 not in record.samples_s


def test_a_falling_warm_up_does_not_count() -> None:
    falling = [1.0 * 0.7**k + 0.01 for k in range(20)]
    record = measure_latency(lambda: None, FakeClock(chain(falling, repeat(0.01))), budget_s=60)
    assert record.verdict == "stable"
    assert max(record.samples_s) < 0.05
    assert record.warmup_s[:8] == tuple(falling[:8])


def test_a_slow_iteration_runs_twice_and_says_budget() -> None:
    clock = FakeClock(repeat(100.0))
    record = measure_latency(lambda: None, clock, budget_s=30)
    assert clock.calls == 2
    assert record.verdict == "budget"
    assert record.samples_s == (100.0,)


def test_a_restless_clock_is_noisy() -> None:
    record = measure_latency(
        lambda: None, FakeClock(iter([0.5, 1.0, 2.0, 0.7, 1.4] * 100)), budget_s=60, precision=0.01
    )
    assert record.verdict == "noisy"
    assert len(record.samples_s) >= 6


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_devices_are_waited_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda: waits.append(kind))
    clock = clock_for(torch.device(kind))
    clock.time(lambda: None)
    assert waits == [kind, kind]


def test_the_host_clock_measures() -> None:
    from time import sleep

    assert 0.02 <= HostClock().time(lambda: sleep(0.02)) < 1.0
