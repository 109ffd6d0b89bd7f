"""Where a cell's time goes: every second from the moment it is handed over is booked under one phase.

A row keeps them in `overhead_s`.  Phases do not overlap: what runs inside another interrupts it.
"""

from __future__ import annotations

from time import monotonic

START = "start"
"""From handing the cell over until its process measures; a sweep's first cell waits for torch too."""
IMPORT = "import"
"""The card, and the module that builds the model."""
BUILD = "build"
COMPILE = "compile"
TEARDOWN = "teardown"
"""From the finished row until the process and all that it started are gone."""
UNFINISHED = "unfinished"
"""From what a cell last booked until its process was gone, where it ended without a finished row."""
OTHER = "other"
"""Inside the cell's process, but in no phase of its own: loading data, starting kernel libraries, the row."""
HARNESS = (START, IMPORT, OTHER, TEARDOWN)
"""Neither building the model nor measuring it."""


class Phases:
    """A stopwatch that always runs, for the innermost phase that was entered.

    Arguments:
        seconds: phase -> seconds so far; added to in place.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._inside = [OTHER]
        self._since = monotonic()

    def enter(self, phase: str) -> None:
        """From now on time belongs to this phase."""
        self.book()
        self._inside.append(phase)

    def leave(self) -> None:
        """From now on time belongs to the phase around this one."""
        self.book()
        self._inside.pop()

    def book(self) -> None:
        """Bring `seconds` up to date."""
        now, phase = monotonic(), self._inside[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


def finished(seconds: dict[str, float], *, sent: float, ended: float, complete: bool) -> dict[str, float]:
    """The phases of a cell whose process is gone.

    Arguments:
        seconds: as the cell's process booked them; with their start, where it got that far.
        sent: when the cell was handed over, on the monotonic clock.
        ended: when its process was gone.
        complete: the cell left a finished row; else nobody knows what its last seconds went to.
    """
    last = TEARDOWN if complete else UNFINISHED
    return {**seconds, last: max(0.0, ended - sent - sum(seconds.values()))}


def spent(seconds: dict[str, float], *phases: str) -> float | None:
    """Seconds in some phases; None where none of them was booked."""
    booked = [seconds[phase] for phase in phases if phase in seconds]
    return sum(booked) if booked else None


def measuring(seconds: dict[str, float]) -> float | None:
    """Seconds in all phases that measure: counting, compiling, timing, validity, accuracy, what broke off."""
    return spent(seconds, *(phase for phase in seconds if phase not in (*HARNESS, BUILD)))
