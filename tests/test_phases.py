"""Every second of a cell is booked once."""

from __future__ import annotations

import pytest

from longvis_bench import phases
from longvis_bench.phases import Phases, finished, measuring, spent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the monotonic clock says."""
    now = [100.0]
    monkeypatch.setattr(phases, "monotonic", lambda: now[0])
    return now


def test_phases_inside_each_other_do_not_overlap(clock: list[float]) -> None:
    watch = Phases({})
    clock[0] += 1
    watch.enter("time")
    clock[0] += 2
    watch.enter("compile")
    clock[0] += 4
    watch.leave()
    clock[0] += 8
    watch.leave()
    clock[0] += 16
    watch.book()
    assert watch.seconds == {"other": 17, "time": 10, "compile": 4}


def test_phases_add_up_to_the_whole() -> None:
    inside = {"start": 0.5, "other": 0.25, "build": 1.0, "time": 2.0, "count": 0.25}
    whole = finished(inside, sent=10.0, ended=15.0, complete=True)
    assert whole["teardown"] == 1.0
    assert sum(whole.values()) == 5.0
    assert spent(whole, *phases.HARNESS) == 1.75
    assert measuring(whole) == 2.25


def test_a_cell_that_broke_off_has_no_teardown() -> None:
    whole = finished({"start": 0.5}, sent=10.0, ended=15.0, complete=False)
    assert whole == {"start": 0.5, "unfinished": 4.5}
    assert measuring(whole) == 4.5


def test_nothing_booked_is_not_known() -> None:
    assert spent({}, "start") is None
    assert measuring({"build": 1.0}) is None
    assert spent({"build": 1.0}, "start") is None
