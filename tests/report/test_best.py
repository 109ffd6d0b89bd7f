"""The last lines of a table: who is the best at each size, and who cannot be told from it."""

from __future__ import annotations

from typing import Any

from longvis_bench.records import AccuracyRecord, CountRecord, MemoryRecord, Row, TimingRecord
from longvis_bench.report.best import best_lines
from longvis_bench.report.grouping import Grouped


def model(row: Row, name: str, size: int = 64, **more: Any) -> Row:
    cell = row.cell.model_copy(update={"model": name, "resolution": size})
    return row.model_copy(update={"key": f"{name}-{size}", "cell": cell, **more})


def timed(latency: float, width: float = 0.001) -> TimingRecord:
    samples = tuple(latency * (1 + width * (n - 10) / 10) for n in range(21))
    return TimingRecord(samples_s=samples, warmup_s=(), verdict="stable")


def right(images: int, of: int = 1000, dataset: str = "digits") -> AccuracyRecord:
    return AccuracyRecord(correct_top1=images, correct_top5=None, images=of, dataset=dataset, weights="w")


def peak(mib: int) -> MemoryRecord:
    return MemoryRecord(peak_bytes=mib << 20, baseline_bytes=0, source="s")


def lines(*rows: Row) -> list[str]:
    return best_lines(Grouped(rows))


def test_the_best_and_by_how_much(row: Row) -> None:
    rows = [
        model(row, "a", timing=timed(0.01), memory=peak(100), accuracy=right(900)),
        model(row, "b", timing=timed(0.02), memory=peak(50), accuracy=right(500)),
    ]
    assert lines(*rows) == [
        "64 px: fastest a, 100 img/s, 2.00 x b; smallest b, 50.0 MiB, 0.500 x a; "
        "most accurate a, 90.0 %, 40 points ahead of b."
    ]


def test_who_cannot_be_told_from_the_best(row: Row) -> None:
    rows = [
        model(row, "a", timing=timed(0.0100, 0.1), memory=peak(100), accuracy=right(900)),
        model(row, "b", timing=timed(0.0101, 0.1), memory=peak(102), accuracy=right(899)),
        model(row, "c", timing=timed(0.0300, 0.1), memory=peak(110), accuracy=right(100)),
    ]
    assert lines(*rows) == [
        "64 px: fastest a, 100 img/s, not separable from b (95 % intervals overlap); "
        "smallest a, 100 MiB, not separable from b (within 3.0 %); "
        "most accurate a, 90.0 %, not separable from b (95 % intervals overlap)."
    ]


def test_rows_that_failed_hold_no_title_and_one_model_competes_with_nobody(row: Row) -> None:
    failed = model(row, "a", timing=timed(0.001), status="invalid")
    assert lines(failed, model(row, "b", timing=timed(0.01))) == []
    assert lines(model(row, "a", timing=timed(0.01)), model(row, "a", 128, timing=timed(0.01))) == []
    assert lines() == []


def test_accuracies_on_different_data_are_not_compared(row: Row) -> None:
    assert lines(model(row, "a", accuracy=right(9)), model(row, "b", accuracy=right(8, dataset="x"))) == []


def test_counts_alone_are_compared_by_macs(row: Row) -> None:
    rows = [
        model(row, name, count=CountRecord(params=1, macs=macs, flops=0, scan_flops=0, coverage=1.0))
        for name, macs in [("a", 10**9), ("b", 2 * 10**9)]
    ]
    assert lines(*rows) == ["64 px: fewest MACs a, 1.00 G, 0.500 x b."]
