"""What a check may cost, and what it would cost on the device."""

from __future__ import annotations

import pytest
import torch

from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.measure.validity import policy
from longvis_bench.measure.validity.policy import slowdown, why_no_reference
from longvis_bench.records import Cell, Dtype, MemoryRecord, Request, TimingRecord


def builder(latency_s: float, batch: int = 1, dtype: Dtype = "fp32") -> RowBuilder:
    """An inference cell on CUDA that has been measured."""
    cell = Cell(
        model="m",
        family="m",
        variant="m",
        implementation="native",
        resolution=64,
        device="cuda",
        dtype=dtype,
        batch_size=batch,
    )
    built = RowBuilder(Request(cell=cell))
    built.timing = TimingRecord(samples_s=(latency_s,) * 6, warmup_s=(), verdict="stable")
    built.memory = MemoryRecord(peak_bytes=1, baseline_bytes=0, source="s")
    built.largest_output = 1
    return built


@pytest.mark.parametrize(
    ("slower", "batch", "reason"),
    [(2.0, 1, None), (64.0, 1, "not run: it would take about 1 min 04 s"), (64.0, 4, None)],
)
def test_the_reference_is_priced_with_the_devices_own_rate(
    slower: float, batch: int, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float64 has half the rate of float32 on an H100, and a 64th of it on an RTX 4090."""
    asked: list[tuple[torch.dtype, torch.dtype]] = []

    def measured(device: torch.device, dtype: torch.dtype, higher: torch.dtype) -> float:
        asked.append((dtype, higher))
        return slower

    monkeypatch.setattr(policy, "slowdown", measured)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    assert why_no_reference(builder(1.0, batch)) == reason
    assert asked == [(torch.float32, torch.float64)]
    why_no_reference(builder(1.0, dtype="bf16"))
    assert asked[-1] == (torch.bfloat16, torch.float32)


def test_the_rate_is_measured_by_the_devices_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([9.0, 0.001, 0.002, 9.0, 0.064, 0.070])  # the first product of each dtype starts the library

    class Clock:
        def time(self, iteration: object) -> float:
            return next(taken)

    monkeypatch.setattr(policy, "PRODUCT_SIDE", 4)
    monkeypatch.setattr(policy, "clock_for", lambda device: Clock())
    assert slowdown(torch.device("cpu"), torch.float32, torch.float64) == pytest.approx(64.0)
