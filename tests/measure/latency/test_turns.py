"""Turns of cells that run at the same time: one times alone, the others do the rest together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread

import pytest

from longvis_bench.measure.latency.turns import DOOR, ROOM, Turns, has_turns, waited_s
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import Cell, Request

pytestmark = pytest.mark.skipif(not has_turns(), reason="this system has no such locks")


def in_threads(number: int, work: object) -> None:
    threads = [Thread(target=work, args=(index,)) for index in range(number)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_nothing_else_runs_while_a_cell_times(tmp_path: Path) -> None:
    events: list[tuple[str, int]] = []

    def cell(index: int) -> None:
        for _ in range(5):
            turns = Turns(tmp_path)
            with turns.together():
                events.append(("busy", index))
                time.sleep(0.002)
                events.append(("idle", index))
                with turns.alone():
                    events.append(("timed", index))
                    time.sleep(0.004)
                    events.append(("done", index))
                events.append(("busy", index))
                time.sleep(0.002)
                events.append(("idle", index))

    in_threads(4, cell)
    assert len(events) == 4 * 5 * 6
    for position, (what, index) in enumerate(events):
        if what == "timed":
            assert events[position + 1] == ("done", index)
            busy = {i for w, i in events[:position] if w == "busy"}
            open_now = {i for i in busy if _last(events[:position], i) == "busy"}
            assert not open_now


def _last(events: list[tuple[str, int]], index: int) -> str:
    return [what for what, i in events if i == index][-1]


def test_cells_that_do_not_time_run_together(tmp_path: Path) -> None:
    barrier = Barrier(3)

    def cell(index: int) -> None:
        with Turns(tmp_path).together():
            barrier.wait(timeout=10)  # breaks unless all three are inside

    in_threads(3, cell)
    assert not barrier.broken


def test_a_cell_alone_waits_for_nothing_and_makes_no_files(tmp_path: Path) -> None:
    turns = Turns(None, tmp_path / "note")
    with turns.together(), turns.alone():
        pass
    assert turns.waited == 0.0
    assert list(tmp_path.iterdir()) == []


def test_waiting_is_noted_and_is_a_phase_of_its_own(tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    builder = RowBuilder(Request(cell=CELL, turns=tmp_path, turn_note=note))
    with taken(tmp_path):
        thread = Thread(target=lambda: Turns(tmp_path, tmp_path / "other.json").together().__enter__())
        thread.start()
        time.sleep(0.3)
        assert waited_s(tmp_path / "other.json") >= 0.2  # while it waits
    thread.join(10)
    assert waited_s(tmp_path / "other.json") == pytest.approx(waited_s(tmp_path / "other.json"))
    with builder.turns.together(), builder.timed("time"), builder.turns.alone():
        time.sleep(0.05)
    row = builder.row()
    assert row.overhead_s["wait"] == pytest.approx(waited_s(note), abs=0.05)
    assert 0.05 <= row.overhead_s["time"] < 1


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "7", "[2.5, null]"])
def test_a_note_that_is_no_note_is_no_waiting(content: str | None, tmp_path: Path) -> None:
    note = tmp_path / "note"
    if content is not None:
        note.write_text(content)
    assert waited_s(note) == (2.5 if content and "2.5" in content else 0.0)
    assert waited_s(None) == 0.0


CELL = Cell(model="m", family="f", variant="v", implementation="user", resolution=64)


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Inside, a cell of somebody else is timed."""
    import fcntl

    (folder / DOOR).touch()
    with (folder / ROOM).open("wb") as room:
        fcntl.flock(room, fcntl.LOCK_EX)
        yield
