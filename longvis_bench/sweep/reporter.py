"""What a sweep tells whoever watches it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from longvis_bench.records import Row
from longvis_bench.sweep.plan import Planned


class Reporter(Protocol):
    """Told what happens, as it happens; the progress display is one."""

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

    def end(self) -> None:
        """The sweep is over, however it ended."""


class Silent:
    """The reporter of Python callers: quiet but for what they should know, which is logged as a warning."""

    def note(self, sentence: str) -> None:
        """See Reporter."""
        logging.getLogger("longvis_bench").warning(sentence)

    def begin(self, cells: Sequence[Planned], done: Sequence[Row]) -> None:
        """See Reporter."""

    def start(self, planned: Planned) -> None:
        """See Reporter."""

    def tick(self) -> None:
        """See Reporter."""

    def finish(self, row: Row) -> None:
        """See Reporter."""

    def end(self) -> None:
        """See Reporter."""
