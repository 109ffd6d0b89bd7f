"""Rounds of a repeated sweep: the spread between them, what tables show, and that nothing is dropped."""

from __future__ import annotations

import csv
import io

import pytest

from longvis_bench import stats
from longvis_bench.records import Row, TimingRecord
from longvis_bench.report import summary as tables
from longvis_bench.report.repeats import once, with_repeats


def timed(row: Row, turn: int, latency: float, width: float = 0.01) -> Row:
    """A round whose samples lie evenly around a latency."""
    samples = tuple(latency * (1 + width * (i - 10) / 10) for i in range(21))
    return row.model_copy(
        update={
            "key": f"{turn}",
            "cell": row.cell.model_copy(update={"round": turn}),
            "timing": TimingRecord(samples_s=samples, warmup_s=(1.0,), verdict="stable"),
        }
    )


def test_the_spread_is_between_the_medians_of_the_rounds(row: Row) -> None:
    rows = [timed(row, turn, latency) for turn, latency in enumerate([1.0, 1.3, 1.1])]
    found = tables.frame(rows)
    assert list(found["rounds"]) == [3, 3, 3]
    assert list(found["round_spread"]) == pytest.approx([0.3 / 1.1] * 3)
    assert found.notes.str.contains("rounds").all()
    assert "differ by 27.3 %" in with_repeats(rows)[0].notes[0].message


def test_one_round_has_no_spread(row: Row) -> None:
    found = tables.frame([timed(row, 0, 1.0)])
    assert list(found["rounds"]) == [1]
    assert found["round_spread"].isna().all()
    assert "needs two repeats" in found.null_reasons[0]


def test_rounds_that_agree_within_their_intervals_are_no_warning(row: Row) -> None:
    wide = [timed(row, turn, latency, 0.3) for turn, latency in enumerate([1.0, 1.05])]
    assert all(not found.notes for found in with_repeats(wide))
    near = [timed(row, turn, latency) for turn, latency in enumerate([1.0, 1.015])]
    assert all(not found.notes for found in with_repeats(near))


def test_other_cells_and_machines_are_not_rounds(row: Row) -> None:
    other = row.model_copy(update={"machine": "another"})
    larger = row.model_copy(update={"cell": row.cell.model_copy(update={"resolution": 128})})
    rows = [timed(row, 0, 1.0), timed(other, 1, 2.0), timed(larger, 1, 3.0)]
    assert all(not found.repeats_s for found in with_repeats(rows))


@pytest.mark.parametrize(
    ("latencies", "shown"), [([1.0, 1.3, 1.1], 1.1), ([1.3, 1.0], 1.0), ([1.0], 1.0), ([4, 1, 3, 2], 2)]
)
def test_a_cell_is_shown_by_its_middle_round(row: Row, latencies: list[float], shown: float) -> None:
    (found,) = once([timed(row, turn, latency) for turn, latency in enumerate(latencies)])
    assert found.timing is not None
    assert stats.median(found.timing.samples_s) == shown


def test_a_round_that_failed_is_shown_too(row: Row) -> None:
    failed = timed(row, 1, 1.0).model_copy(update={"status": "timeout", "timing": None, "reason": "late"})
    rows = [timed(row, 0, 1.0), failed, timed(row, 2, 1.1)]
    assert [found.cell.round for found in once(rows)] == [0, 1]
    assert "| round |" in tables.summary_markdown(rows)


def test_rounds_without_timing_are_shown_once(row: Row) -> None:
    rows = [row.model_copy(update={"cell": row.cell.model_copy(update={"round": turn})}) for turn in (0, 1)]
    assert len(once(rows)) == 1
    assert with_repeats(rows) == rows


def test_the_csv_has_every_round_and_the_tables_one(row: Row) -> None:
    rows = [timed(row, turn, latency) for turn, latency in enumerate([0.1, 0.13, 0.11])]
    assert len(list(csv.DictReader(io.StringIO(tables.summary_csv(rows))))) == 3
    text = tables.summary_markdown(rows)
    assert text.count("| moody-fine |") == 1
    assert "| between repeats (%) |" in text
    assert "shown once, by the repeat of median latency" in text
    assert "| round |" not in text


def test_what_is_added_on_reading_is_not_stored(row: Row) -> None:
    added = with_repeats([timed(row, turn, latency) for turn, latency in enumerate([1.0, 1.3])])[0]
    assert added.repeats_s
    assert "repeats_s" not in added.to_json()
    assert Row.model_validate_json(added.to_json()).repeats_s == ()
