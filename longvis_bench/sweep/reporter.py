"""Events of a sweep for a display or log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longvis_bench.records import Row
    from longvis_bench.sweep.plan import Planned


class Reporter:
    """Receives the events of a sweep and ignores them; subclasses override the methods that they need."""

    def note(self, sentence: str) -> None:
        """A sentence for the user, before or while cells run."""

    def begin(self, cells: Sequence[Planned], done: Sequence[Row]) -> None:
        """The sweep starts, with the cells to run and the rows that exist already."""

    def start(self, planned: Planned) -> None:
        """A cell starts."""

    def tick(self) -> None:
        """Called several times a second."""

    def finish(self, row: Row) -> None:
        """A row was stored."""

    def refine(self, row: Row) -> None:
        """A row was stored again, with one more process."""

    def end(self) -> None:
        """The sweep has ended, completely or not."""


class Silent(Reporter):
    """The reporter of the Python interface, which logs notes as warnings."""

    def note(self, sentence: str) -> None:
        """See Reporter."""
        logging.getLogger("longvis_bench").warning(sentence)
