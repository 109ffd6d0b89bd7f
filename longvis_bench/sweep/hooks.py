"""Reporters of other packages: entry points `longvis_bench.reporters` that receive each row of a sweep.

An entry point names a class, or a function, without arguments, whose object has three methods:

    begin(run: str, cells: int)    the sweep starts: name of the run's directory, number of cells to measure
    row(row: dict)                 a row was stored: every column of results/README.md, None for unknown
    end()                          the sweep ended, completely or not

A row is reported again, with the same `key`, after each further process of its cell; the last one counts.
An error in a reporter is shown once and ends that reporter, not the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from longvis_bench.sweep.reporter import Reporter

if TYPE_CHECKING:
    from longvis_bench.records import Row
    from longvis_bench.sweep.plan import Planned

GROUP = "longvis_bench.reporters"


class Hook(Protocol):
    """What an entry point makes."""

    def begin(self, run: str, cells: int) -> None:
        """The sweep starts."""

    def row(self, row: dict[str, Any]) -> None:
        """A row was stored."""

    def end(self) -> None:
        """The sweep ended."""


class Hooked(Reporter):
    """Hands every event to a reporter, and rows to the installed hooks as well.

    Arguments:
        shown: receives all events.
        run: directory of the run; hooks get its name without the path.
        found: the entry points; by default the installed ones.
    """

    def __init__(self, shown: Reporter, run: Path, found: Sequence[EntryPoint] | None = None) -> None:
        self._shown, self._run = shown, run.name
        self._found = list(entry_points(group=GROUP)) if found is None else list(found)
        self._hooks: dict[str, Hook] = {}

    def note(self, sentence: str) -> None:
        """See Reporter."""
        self._shown.note(sentence)

    def begin(self, cells: Sequence[Planned], done: Sequence[Row]) -> None:
        """See Reporter; makes the hooks."""
        self._shown.begin(cells, done)
        for entry in self._found:
            self._try(entry.name, lambda entry=entry: self._make(entry))  # type: ignore[misc]
        self._each(lambda hook: hook.begin(self._run, len(cells)))

    def start(self, planned: Planned) -> None:
        """See Reporter."""
        self._shown.start(planned)

    def tick(self) -> None:
        """See Reporter."""
        self._shown.tick()

    def finish(self, row: Row) -> None:
        """See Reporter."""
        self._shown.finish(row)
        self._report(row)

    def refine(self, row: Row) -> None:
        """See Reporter."""
        self._shown.refine(row)
        self._report(row)

    def end(self) -> None:
        """See Reporter."""
        self._shown.end()
        self._each(lambda hook: hook.end())

    def _make(self, entry: EntryPoint) -> None:
        self._hooks[entry.name] = entry.load()()

    def _report(self, row: Row) -> None:
        from longvis_bench.report.columns import COLUMNS

        if self._hooks:
            self._each(lambda hook: hook.row({column.name: column.value(row) for column in COLUMNS}))

    def _each(self, tell: Callable[[Hook], None]) -> None:
        for name, hook in list(self._hooks.items()):
            self._try(name, lambda hook=hook: tell(hook))  # type: ignore[misc]

    def _try(self, name: str, act: Callable[[], None]) -> None:
        """Run code of another package, whose errors must not end the sweep."""
        try:
            act()
        except Exception as error:
            self._hooks.pop(name, None)
            self._shown.note(
                f"the reporter {name} failed ({type(error).__name__}: {error}) and gets no more rows"
            )
