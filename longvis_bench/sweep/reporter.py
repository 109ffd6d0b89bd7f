"""What a sweep reports to whoever watches it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longvis_bench.records import Row
    from longvis_bench.sweep.plan import Planned


class Reporter:
    """Receives the events of a sweep as they happen, and ignores them; subclasses override what they show."""

    def note(self, sentence: str) -> None:
        """Something the user should know, before or while cells run."""

    def begin(self, cells: Sequence[Planned], done: Sequence[Row]) -> None:
        """A sweep starts: the cells to run, and the rows already there."""

    def start(self, planned: Planned) -> None:
        """A cell starts."""

    def tick(self) -> None:
        """Called several times a second."""

    def finish(self, row: Row) -> None:
        """A row was stored."""

    def refine(self, row: Row) -> None:
        """A row was stored again, timed in one more process."""

    def end(self) -> None:
        """The sweep is over, however it ended."""


class Silent(Reporter):
    """The reporter of Python callers: it logs what they should know as a warning."""

    def note(self, sentence: str) -> None:
        """See Reporter."""
        logging.getLogger("longvis_bench").warning(sentence)
