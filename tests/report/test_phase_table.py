"""Where a run's seconds went: every phase of every process, and their sum beside the time that passed."""

from __future__ import annotations

import pytest
from rich.console import Console

from longvis_bench.measure.latency.processes import with_process
from longvis_bench.phases import BUILD, START
from longvis_bench.records import ProcessRecord, Row, TimingRecord
from longvis_bench.report.phase_table import YARDSTICK, phase_table

PHASES = {START: 4.0, "count": 1.0, BUILD: 2.0, "time": 10.0, "validity": 3.0, "accuracy": 30.0}
AGAIN = {START: 5.0, BUILD: 2.0, "time": 8.0}


def process(**changes: object) -> ProcessRecord:
    """One that took a sample and ran the yardstick for 3 s."""
    return ProcessRecord(samples=1, yardstick_s=(1.0, 2.0)).model_copy(update=changes)


def timing(*processes: ProcessRecord) -> TimingRecord:
    """Of as many samples as there are processes."""
    samples = (1.0,) * len(processes)
    return TimingRecord(samples_s=samples, warmup_s=(), verdict="stable", processes=processes)


@pytest.fixture
def timed(row: Row) -> Row:
    """A row of two processes, the second 20 s after the first one's end."""
    first, more = process(started="2026-11-21T09:00:00+00:00"), process(started="2026-11-21T09:01:10+00:00")
    more = more.model_copy(update={"overhead_s": AGAIN, "seconds": 15.0})
    return row.model_copy(
        update={
            "overhead_s": PHASES,
            "started": "2026-11-21T09:00:00+00:00",
            "timing": timing(first, more),
        }
    )


def text(*rows: Row, width: int = 80) -> str:
    """The table as a terminal shows it."""
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(phase_table(rows))
    return captured.get()


def numbers(shown: str) -> dict[str, list[str]]:
    """Phase -> seconds of first and further processes."""
    lines = (line.split() for line in shown.splitlines() if line.strip())
    return {words[0]: words[1:3] for words in lines}


def test_every_phase_of_every_process_is_named(timed: Row) -> None:
    found = numbers(text(timed))
    assert found[START] == ["4.00", "5.00"]
    assert found["accuracy"] == ["30.0", "-"]
    assert found["validity"] == ["3.00", "-"]
    assert found["time"] == ["7.00", "5.00"]
    assert found[YARDSTICK] == ["3.00", "3.00"]
    assert list(found).index(BUILD) < list(found).index("time") < list(found).index("accuracy")


def test_the_sum_stands_beside_the_time_that_passed(timed: Row) -> None:
    shown = " ".join(text(timed).split())
    assert "2 processes took 1 min 05 s; from the first one's start to the last one's end" in shown
    assert "1 min 24 s passed" in shown  # 09:01:10 - 5 s + 15 s - (09:00:00 - 4 s)


def test_an_unknown_phase_is_shown_and_none_is_lost(timed: Row) -> None:
    phases = {**PHASES, "polishing": 50.0}
    assert numbers(text(timed.model_copy(update={"overhead_s": phases})))["polishing"] == ["50.0", "-"]


def test_further_processes_of_older_rows_are_not_recorded(timed: Row) -> None:
    older = timed.model_copy(update={"timing": timing(process(), process(seconds=15.0))})
    shown = text(older, width=120)
    (line,) = (line.split() for line in shown.splitlines() if line.startswith("not recorded"))
    assert line[2:4] == ["-", "15.0"]
    assert "the rows do not tell how much time passed" in shown


def test_what_came_from_the_cache_is_said(timed: Row) -> None:
    assert "cache" not in text(timed)
    assert "1 cell read counts, shapes or accuracy from the cache" in text(
        timed.model_copy(update={"cached": ("count",)}), width=120
    )


@pytest.mark.parametrize("status", ["ok", "timeout"])
def test_a_further_process_keeps_its_phases(row: Row, status: str) -> None:
    more = row.model_copy(
        update={
            "status": status,
            "overhead_s": AGAIN,
            "timing": timing(process()) if status == "ok" else None,
        }
    )
    assert with_process(timing(process()), more, 15.0).processes[1].overhead_s == AGAIN


def test_a_time_that_cannot_be_read_is_unknown(timed: Row) -> None:
    assert "the rows do not tell how much time passed" in text(
        timed.model_copy(update={"started": "yesterday"}), width=120
    )
