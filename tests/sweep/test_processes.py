"""A sweep times each cell in several processes, keeps every one, and goes on where it was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import longvis_bench as lv
from longvis_bench.records import Row
from longvis_bench.runs.directory import latest, read_rows
from longvis_bench.sweep.execute import Outcome
from longvis_bench.sweep.reporter import Silent
from longvis_bench.sweep.session import start

pytestmark = pytest.mark.usefixtures("no_figures")
FAMILIES = Path(__file__).parents[1] / "families"
RUN = Path("run")


def run(reporter: Silent | None = None, **options: Any) -> Outcome:
    given = {
        "models": ("moody-fine",),
        "resolutions": (32, 64),
        "metrics": ("time",),
        "models_dirs": (FAMILIES,),
        "device": "cpu",
        "budget_s": 0.3,
    } | options
    return start(given, out=RUN).run(reporter=reporter)


def processes(row: Row) -> int:
    assert row.timing is not None
    return len(row.timing.processes)


def test_every_cell_is_timed_in_three_processes_and_stays_one_row() -> None:
    order: list[tuple[object, int]] = []

    class Watch(Silent):
        def refine(self, row: Row) -> None:
            order.append((row.cell.resolution, processes(row)))

    outcome = run(Watch())
    assert all(processes(row) >= 3 for row in outcome.rows)
    assert order[:4] == [(32, 2), (64, 2), (32, 3), (64, 3)], "passes go over all cells"
    assert len(latest(read_rows(RUN))) == len(lv.load_results(RUN)) == 2
    for row in outcome.rows:
        assert row.timing is not None
        assert len(row.timing.samples_s) == sum(process.samples for process in row.timing.processes)
        assert all(process.yardstick_s for process in row.timing.processes)
        assert row.timing.verdict in ("stable", "noisy", "disturbed")
        assert row.attempt == 1


def test_a_first_look_is_one_process_and_says_so() -> None:
    outcome = run(repeats=1)
    assert [processes(row) for row in outcome.rows] == [1, 1]
    assert {row.timing.verdict for row in outcome.rows if row.timing} <= {"single", "disturbed"}
    assert len(read_rows(RUN)) == 2


def test_a_sweep_that_was_cut_off_goes_on_with_the_processes_that_are_missing() -> None:
    class Cut(Silent):
        def refine(self, row: Row) -> None:
            raise KeyboardInterrupt

    first = run(Cut())
    assert first.interrupted
    assert sorted(map(processes, latest(read_rows(RUN)))) == [1, 2]
    samples = {row.key: row.timing.samples_s for row in latest(read_rows(RUN)) if row.timing}
    second = run()
    assert not second.was_complete
    for row in second.rows:
        assert processes(row) >= 3
        assert row.timing is not None
        assert row.timing.samples_s[: len(samples[row.key])] == samples[row.key]


def test_a_complete_run_is_complete() -> None:
    run(budget_s=1e-3, repeats=2)
    again = run(budget_s=1e-3, repeats=2)
    assert again.was_complete


@pytest.mark.parametrize("metrics", [("count",), ("memory",)])
def test_what_is_not_timed_gets_one_process(metrics: tuple[str, ...]) -> None:
    outcome = run(metrics=metrics, resolutions=(32,))
    assert len(read_rows(RUN)) == len(outcome.rows) == 1
