"""Progress display of a sweep: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.stats import median
from longvis_bench.sweep.reporter import Reporter
from longvis_bench.text import clean

if TYPE_CHECKING:
    from longvis_bench.sweep.plan import Planned
    from longvis_bench.sweep.session import Session

LAST_ROWS = 6
SHOW_CURSOR = b"\x1b[?25h"


class Progress(Reporter):
    """The reporter of the command line.

    Arguments:
        quiet_output: print to standard error, so that standard output has only --json.
    """

    def __init__(self, quiet_output: bool = False) -> None:
        self._console = Console(stderr=quiet_output, highlight=False)
        self._live: Live | None = None
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[eta]}"),
        )
        self._last: deque[Text] = deque(maxlen=LAST_ROWS)
        self._started = monotonic()
        self._done, self._total = 0, 0
        self._running: dict[str, tuple[str, float]] = {}
        """Key of a cell -> what is done with it, and when that began."""

    def note(self, sentence: str) -> None:
        """See sweep.Reporter."""
        self._print(sentence, soft_wrap=self._live is None)

    def begin(self, cells: Sequence[Planned], done: Sequence[Row]) -> None:
        """See sweep.Reporter."""
        self._total, self._started = len(cells), monotonic()
        self._task = self._bar.add_task("starting", total=len(cells), eta="")
        if done:
            already = units.several(len(done), "cell")
            self._print(f"{already} measured already; {len(cells)} to measure.")
        if self._console.is_terminal:
            self._live = Live(self._render(), console=self._console, refresh_per_second=5, transient=True)
            self._live.start()

    def start(self, planned: Planned) -> None:
        """See sweep.Reporter."""
        shown = f"{clean(planned.cell.model)} {planned.cell.resolution} px"
        self._running[planned.request.key] = shown, monotonic()
        self.tick()

    def tick(self) -> None:
        """See sweep.Reporter."""
        if self._live is not None:
            self._bar.update(self._task, description=self._described(), eta=self._eta())
            self._live.update(self._render())

    def finish(self, row: Row) -> None:
        """See sweep.Reporter."""
        self._done += 1
        self._running.pop(row.key, None)
        if self._live is None:
            self._print(f"[{self._done}/{self._total}] ", line(row), soft_wrap=True)
            return
        self._last.append(line(row))
        self._bar.update(self._task, completed=self._done)
        self._live.update(self._render())

    def refine(self, row: Row) -> None:
        """See sweep.Reporter."""
        assert row.timing is not None
        done = f"{len(row.timing.processes)} processes so far"
        shown = f"timing again: {clean(row.cell.model)} {row.cell.resolution} px, {done}"
        self._running = {row.key: (shown, monotonic())}  # the one that was timed last
        self.tick()

    def end(self) -> None:
        """See sweep.Reporter."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def leave_at_once(self) -> None:
        """Restore the terminal of a process that ends at once, without waiting for anything."""
        if self._console.is_terminal:
            os.write(self._console.file.fileno(), SHOW_CURSOR)
        os.write(2, b"\nEnded at once; finished rows are kept, and the same command resumes.\n")

    def _print(self, *texts: str | Text, soft_wrap: bool = False) -> None:
        """A line, unless the output takes none: the sweep goes on, and what is printed last reports it."""
        try:
            self._console.print(*texts, sep="", markup=False, soft_wrap=soft_wrap)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has left
                raise

    def _described(self) -> str:
        """What is being measured, and for how long; of several cells the one that has run longest."""
        shown, begun = min(
            self._running.values(), key=lambda running: running[1], default=("", self._started)
        )
        others = f" and {len(self._running) - 1} more" if len(self._running) > 1 else ""
        return f"{shown}{others} ({units.seconds(round(monotonic() - begun, 1))})"

    def _eta(self) -> str:
        if not self._done:
            return ""
        left = (monotonic() - self._started) / self._done * (self._total - self._done)
        return f"about {units.seconds(round(left))} left"

    def _render(self) -> Group:
        return Group(*self._last, self._bar)


def line(row: Row) -> Text:
    """One row in one line: model, size, status, latency and memory, or the reason of a failure."""
    text = Text(f"{clean(row.cell.model)} {row.cell.resolution} px  ", no_wrap=True, overflow="ellipsis")
    text.append(row.status, style="green" if row.status == "ok" else "bold red")
    if row.timing is not None:
        text.append(f"  {units.seconds(median(row.timing.samples_s))}")
    if row.memory is not None:
        text.append(f"  {units.size(row.memory.peak_bytes)}")
    if row.status != "ok" and row.reason:
        text.append(f"  {clean(row.reason)}")
    return text


def show_plan(session: Session, as_json: bool) -> None:
    """Print the cells of a sweep with their estimated durations, and the sum, for --dry-run."""
    from longvis_bench.sweep.counts import with_counts

    plan = session.plan
    if as_json:
        for planned in plan.cells:
            typer.echo(planned.cell.model_dump_json())
        return
    plan = with_counts(plan)
    console = Console(highlight=False, soft_wrap=True)
    for planned, seconds in zip(plan.cells, plan.seconds, strict=True):
        cell = planned.cell
        weights = f", weights {cell.weights}" if cell.weights else ""
        batch = "auto" if cell.batch_auto else cell.batch_size
        about = f"  about {_about(seconds)}"
        decided = f"  {planned.decided.status}: {planned.decided.reason}" if planned.decided else about
        console.print(
            f"{clean(cell.model)}  {cell.resolution} px, batch {batch}, {cell.mode}, {cell.dtype}, "
            f"{cell.device}{weights}{decided}",
            markup=False,
        )
    about = units.seconds(round(plan.estimated_s))
    cells = units.several(len(plan.cells), "cell")
    console.print(f"{cells}, roughly {about}; into {session.path}", markup=False)


def _about(seconds: float) -> str:
    """An estimate without digits that promise more than it knows."""
    return units.seconds(round(seconds)) if seconds >= 60 else f"{units.significant(seconds, 2)} s"
