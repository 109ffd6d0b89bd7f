"""The last lines of a table: who is the best at each size, and who cannot be told from it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longvis_bench.records import AccuracyRecord, CountRecord, MemoryRecord, Row, TimingRecord
from longvis_bench.report.best import best_keys, best_lines
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


def few(latency: float) -> TimingRecord:
    """Too few samples for an interval."""
    return TimingRecord(samples_s=(latency, latency * 1.01), warmup_s=(), verdict="budget")


def test_a_leader_without_an_interval_wins_nothing(row: Row) -> None:
    rows = [model(row, "a", timing=few(0.001)), model(row, "b", timing=timed(0.01))]
    rows.append(model(row, "c", timing=timed(0.02)))
    assert lines(*rows) == ["64 px: fastest not decided (no interval: a)."]


def test_of_two_rows_one_without_an_interval_decides_nothing(row: Row) -> None:
    rows = [model(row, "a", timing=timed(0.01)), model(row, "b", timing=few(1.0))]
    assert lines(*rows) == ["64 px: fastest not decided (no interval: b)."]


def test_a_slower_row_without_an_interval_is_said_not_to_be_compared(row: Row) -> None:
    rows = [model(row, "a", timing=timed(0.01)), model(row, "b", timing=timed(0.02))]
    rows.append(model(row, "c", timing=few(0.5)))
    assert lines(*rows) == ["64 px: fastest a, 100 img/s, 2.00 x b (not compared, no interval: c)."]


def disturbed(latency: float) -> TimingRecord:
    return timed(latency).model_copy(update={"verdict": "disturbed"})


def test_a_disturbed_latency_is_not_ranked(row: Row) -> None:
    slow = [model(row, "a", timing=timed(0.01)), model(row, "b", timing=timed(0.02))]
    rows = [*slow, model(row, "c", timing=disturbed(0.5)), model(row, "d", timing=few(0.6))]
    said = "64 px: fastest a, 100 img/s, 2.00 x b (not compared, disturbed: c; no interval: d)."
    assert lines(*rows) == [said]
    assert best_keys(Grouped(rows))["throughput_img_s"] == {"a-64"}
    first = [*slow, model(row, "c", timing=disturbed(0.001))]
    assert lines(*first) == ["64 px: fastest not decided (disturbed: c)."]


def test_a_disturbed_row_still_competes_in_memory(row: Row) -> None:
    rows = [
        model(row, name, timing=disturbed(1.0), memory=peak(mib)) for name, mib in [("a", 100), ("b", 50)]
    ]
    assert lines(*rows) == ["64 px: fastest not decided (disturbed: a, b); smallest b, 50.0 MiB, 0.500 x a."]


@pytest.mark.parametrize(
    ("field", "values", "said"),
    [
        ("batch_size", (1, 8), ("batch 1", "batch 8")),
        ("dtype", ("bf16", "fp32"), ("bf16", "fp32")),
        ("mode", ("infer", "train"), ("infer", "train")),
        ("device", ("cpu", "cuda"), ("cpu", "cuda")),
    ],
)
def test_rows_of_different_conditions_are_not_compared(
    row: Row, field: str, values: tuple[object, object], said: tuple[str, str]
) -> None:
    rows = []
    for value, factor in zip(values, (1, 100), strict=True):
        for name, latency in (("a", 0.01), ("b", 0.02)):
            made = model(row, name, timing=timed(latency / factor))
            cell = made.cell.model_copy(update={field: value})
            rows.append(made.model_copy(update={"key": f"{name}-{value}", "cell": cell}))
    first, second = lines(*rows)
    assert re.fullmatch(rf"64 px, {said[0]}: fastest a, 100 img/s, 2\.00 x b\.", first)
    assert re.fullmatch(rf"64 px, {said[1]}: fastest a, \d+ img/s, 2\.00 x b\.", second)


def test_searched_batches_compete_and_ways_to_run_a_model_are_named(row: Row) -> None:
    rows = []
    for name, batch, fused in (("a", 8, True), ("b", 4, False)):
        made = model(row, name, timing=timed(0.01 * batch))
        more = {"batch_size": batch, "batch_auto": True, "fuse": fused}
        rows.append(made.model_copy(update={"cell": made.cell.model_copy(update=more)}))
    assert lines(*rows) == [
        "64 px, best batch: fastest a, fused, 100 img/s, not separable from b (95 % intervals overlap)."
    ]


def test_equal_counts_are_the_same(row: Row) -> None:
    count = CountRecord(params=1, macs=10**9, flops=0, scan_flops=0, coverage=1.0)
    rows = [model(row, name, count=count) for name in "ab"]
    assert lines(*rows) == ["64 px: fewest MACs a, 1.00 G, the same as b."]


def test_maps_and_logits_do_not_compete(row: Row) -> None:
    fast = model(row, "a", timing=timed(0.01))
    features = fast.cell.model_copy(update={"output": "features"})
    rows = [fast.model_copy(update={"cell": features}), model(row, "b", timing=timed(0.02))]
    assert lines(*rows) == []
