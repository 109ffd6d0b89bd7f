"""Timing breakdown of a cell: each second, from sending its request on, is counted in exactly one phase.

A row stores the seconds in `overhead_s`.  Phases do not overlap: a nested phase interrupts the outer one.
"""

from __future__ import annotations

from time import monotonic

START = "start"
"""From sending the request until its process starts to measure; the first cell's includes importing torch."""
IMPORT = "import"
"""Reading the card, and importing the module that builds the model."""
BUILD = "build"
COMPILE = "compile"
WAIT = "wait"
"""Waiting for cells of the same sweep that ran at the same time on other CPU devices."""
TEARDOWN = "teardown"
"""From the finished row until the process and all its child processes have ended."""
UNFINISHED = "unfinished"
"""If the cell ended without a finished row: from its last update of the seconds to the end of its process."""
OTHER = "other"
"""Time of the cell's process in no other phase: loading data, starting kernel libraries, writing the row."""
HARNESS = (START, IMPORT, OTHER, TEARDOWN)
"""Phases that neither build nor measure the model."""


class Phases:
    """A stopwatch that runs all the time and counts for the innermost active phase.

    Arguments:
        seconds: phase -> seconds so far; updated in place.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._inside = [OTHER]
        self._since = monotonic()

    def enter(self, phase: str) -> None:
        """Count time in this phase from now on."""
        self.book()
        self._inside.append(phase)

    def leave(self) -> None:
        """Count time in the enclosing phase from now on."""
        self.book()
        self._inside.pop()

    def book(self) -> None:
        """Bring `seconds` up to date."""
        now, phase = monotonic(), self._inside[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


def finished(seconds: dict[str, float], *, sent: float, ended: float, complete: bool) -> dict[str, float]:
    """The phases of a cell whose process has ended.

    Arguments:
        seconds: phase -> seconds, as the cell's process last stored them.
        sent: time at which the request was sent, in seconds of the monotonic clock.
        ended: time at which the process ended, on the same clock.
        complete: whether the cell stored a finished row; if not, its last seconds are `UNFINISHED`.
    """
    last = TEARDOWN if complete else UNFINISHED
    return {**seconds, last: max(0.0, ended - sent - sum(seconds.values()))}


def spent(seconds: dict[str, float], *phases: str) -> float | None:
    """Total seconds of some phases; None if none of them occurred."""
    booked = [seconds[phase] for phase in phases if phase in seconds]
    return sum(booked) if booked else None


def measuring(seconds: dict[str, float]) -> float | None:
    """Total seconds of all phases but the harness's, the build and waiting; None if none of them occurred."""
    return spent(seconds, *(phase for phase in seconds if phase not in (*HARNESS, BUILD, WAIT)))
