"""Turns of cells that run at the same time on CPU devices: one times alone, others do the rest together.

Cells on neighbouring cores share caches, memory bandwidth and the clock, so nothing else of the sweep runs
while one of its cells is timed.  Counting, building, validity and accuracy of several cells run at the same
time.  Two file locks do it, as they are released when a process dies: all share `room`, and a cell that times
has it alone; `door` keeps others from entering before a cell that waits for the room.

The time limit of a cell does not include waiting, so a waiting process notes for how long it has waited.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import monotonic
from typing import IO

DOOR, ROOM = "door.lock", "room.lock"


class Turns:
    """The turns of one cell's process.

    Arguments:
        folder: the same for all cells of a sweep; None where a cell is the only one, which waits for nothing.
        note: file in which the process notes its waiting; see `waited_s`.
        waiting: makes the context in which it waits.
    """

    def __init__(
        self,
        folder: Path | None,
        note: Path | None = None,
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._folder, self._note, self._phase = folder, note, waiting
        self._room: IO[bytes] | None = None
        self.waited = 0.0
        """Seconds waited so far."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do inside what may run beside other cells, but not beside one that is timed."""
        if self._folder is None:
            yield
            return
        with ExitStack() as opened:
            self._room = opened.enter_context((self._folder / ROOM).open("wb"))
            self._take(alone=False)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, which is within `together`, no other cell of the sweep does anything."""
        if self._folder is None:
            yield
            return
        self._take(alone=True)
        try:
            yield
        finally:
            self._take(alone=False)

    def _take(self, *, alone: bool) -> None:
        """Wait until the room is free, or free of cells that time, and have it."""
        import fcntl

        assert self._folder is not None
        assert self._room is not None
        room = self._room
        with (self._folder / DOOR).open("wb") as door, self._waiting(), self._phase():
            fcntl.flock(room, fcntl.LOCK_UN)  # two cells that both shared it would wait for each other
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = monotonic()
        self._write(start)
        try:
            yield
        finally:
            self.waited += monotonic() - start
            self._write(None)

    def _write(self, since: float | None) -> None:
        if self._note is not None:
            self._note.write_text(json.dumps([self.waited, since]))


def waited_s(note: Path | None, now: Callable[[], float] = monotonic) -> float:
    """Seconds that a cell's process has waited so far; 0 where it has noted none.

    Arguments:
        note: the file of the process.
        now: seconds of the clock that all processes of the machine share.
    """
    try:
        waited, since = json.loads(note.read_text()) if note is not None else (0.0, None)
    except (OSError, ValueError, TypeError):  # not written yet, or being written
        return 0.0
    return float(waited) + (0.0 if since is None else max(0.0, now() - since))


def has_turns() -> bool:
    """Whether this system has the locks."""
    try:
        import fcntl
    except ImportError:
        return False
    return hasattr(fcntl, "flock")
