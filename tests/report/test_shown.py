"""Columns and remarks of readable tables: what is left out, and what is marked."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from longvis_bench import row_warnings
from longvis_bench.records import CountRecord, Row, Settings, TimingRecord
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.shown import MODEL, NUMBERS, Body, Shown
from longvis_bench.report.summary import summary_markdown, terminal_table

LATENCY = next(shown for shown in NUMBERS if shown.heading == "latency")


def drifting(row: Row, number: int, change: float) -> Row:
    """A row whose latency steps up by a share of itself halfway."""
    samples = tuple(0.01 * (1 + 0.0001 * (n % 5)) * (1 + change * (n >= 20)) for n in range(40))
    timing = TimingRecord(samples_s=samples, warmup_s=(), verdict="stable")
    cell = row.cell.model_copy(update={"model": f"m{number}"})
    settings = Settings(precision=0.5)
    found = row.model_copy(update={"key": str(number), "cell": cell, "timing": timing, "settings": settings})
    return found.model_copy(update={"notes": row_warnings.of(found)})


def printed(rows: list[Row], encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(width=100, color_system=None, file=file, legacy_windows=False)
    console.print(terminal_table(rows, 100))
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(encoding)


def test_a_drift_of_many_rows_is_said_once_and_marked_where_it_matters(row: Row) -> None:
    rows = [drifting(row, n, 0.03) for n in range(12)] + [drifting(row, 12, 0.2), drifting(row, 13, 0.0)]
    marks, notes = Body(Grouped(rows)).marks([MODEL, LATENCY])
    assert marks[LATENCY] == {12: (1,)}
    (line,) = notes.lines
    assert line.startswith(
        "drift: 13 of 14 timed cells; the mark is on changes over 5.0 %: the model became 20.0 %"
    )
    assert "--repeats 3" in line
    assert not any("drift" in line for line in notes.others)


def test_a_small_drift_of_many_rows_marks_none(row: Row) -> None:
    rows = [drifting(row, n, 0.03) for n in range(12)]
    marks, notes = Body(Grouped(rows)).marks([MODEL, LATENCY])
    assert not any("drift" in line for line in notes.lines)
    assert not marks.get(LATENCY)
    (line,) = (line for line in notes.others if "drift" in line)
    assert line.startswith("drift: 12 of 12 timed cells: the model became")
    assert printed(rows).count("drift") == 1
    assert summary_markdown(rows).count("drift") == 1


def test_a_drift_of_few_rows_is_marked(row: Row) -> None:
    rows = [drifting(row, n, 0.03 if n < 3 else 0.0) for n in range(14)]
    marks, _ = Body(Grouped(rows)).marks([MODEL, LATENCY])
    assert set(marks[LATENCY]) == {0, 1, 2}


def test_metrics_nobody_asked_for_have_no_column(row: Row) -> None:
    count = CountRecord(params=5, macs=50, flops=100, scan_flops=0, coverage=1.0)
    rows = [
        row.model_copy(update={"cell": row.cell.model_copy(update={"metrics": ("count",)}), "count": count})
    ]
    text = printed(rows)
    assert "MACs" in text
    for heading in ("latency", "img/s", "memory", "top-1", "verdict", "samples", "validity"):
        assert heading not in text
        assert heading not in summary_markdown(rows)
    assert " - " not in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_marks_are_readable_without_unicode(row: Row, encoding: str) -> None:
    text = printed(
        [drifting(row, 0, 0.2), row.model_copy(update={"key": "x", "status": "oom", "reason": "±1 µs"})],
        encoding,
    )
    assert "oom[1]" in text
    assert "[1] oom: +-1 us." in text
    assert "?" not in text
    assert text.isascii()


def test_marks_of_a_column_that_is_not_shown_go_to_the_model(row: Row) -> None:
    marks, _ = Body(Grouped([drifting(row, 0, 0.2)])).marks([MODEL, Shown("macs", "MACs")])
    assert set(marks[MODEL]) == {0}


def test_a_metric_without_any_value_is_one_sentence_and_no_column(row: Row) -> None:
    asked = {"metrics": ("count", "time", "accuracy")}
    count = CountRecord(params=5, macs=50, flops=100, scan_flops=0, coverage=1.0)
    rows = [
        row.model_copy(
            update={
                "key": f"{n}",
                "cell": row.cell.model_copy(update={**asked, "model": f"m{n}"}),
                "count": count,
                "null_reasons": {"time": "the clock stands still", "accuracy": f"no weights ship for m{n}"},
            }
        )
        for n in range(3)
    ]
    for text in (printed(rows), summary_markdown(rows)):
        assert text.count("no latency: the clock stands still.") == 1
        assert text.count("no top-1: no weights ship for MODEL.") == 1
        for heading in ("img/s", "[95 %]", "verdict", "samples", " - "):
            assert heading not in text
        assert "MACs" in text


def test_rows_that_lack_a_metric_for_several_reasons_have_the_most_common_one_told(row: Row) -> None:
    reasons = ["no clock", "too slow", "no clock"]
    rows = []
    for n, reason in enumerate(reasons):
        cell = row.cell.model_copy(update={"model": f"m{n}", "metrics": ("time",)})
        rows.append(row.model_copy(update={"key": f"{n}", "cell": cell, "null_reasons": {"time": reason}}))
    _, notes = Body(Grouped(rows)).marks([MODEL])
    assert notes.others == ["no latency: 2 of 3 rows: no clock."]
