"""Run a sweep from the command line, show it and end with its exit code, also on Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from longvis_bench.cli.guard import INTERRUPTED

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from longvis_bench.cli.progress import Progress
    from longvis_bench.sweep.execute import Outcome
    from longvis_bench.sweep.session import Session


def run_session(
    session: Session,
    progress: Progress,
    show: Callable[[Outcome], None],
    *,
    retry: Sequence[str] = (),
    only_missing: bool = False,
) -> NoReturn:
    """Run a session, show its outcome, and end the command.

    Arguments:
        session: the checked plan.
        progress: receives every event.
        show: prints the outcome.
        retry: see `Session.run`.
        only_missing: see `Session.run`.

    Raises:
        typer.Exit: always, unless an internal error is raised.
    """
    with _ending_gently(progress) as signals:
        try:
            outcome = session.run(reporter=progress, retry=retry, only_missing=only_missing)
            show(outcome)
        except KeyboardInterrupt:  # while tables and plots are written; all rows are kept
            raise typer.Exit(_exit_code(signals)) from None
    if signals:
        raise typer.Exit(_exit_code(signals))
    if outcome.faults:
        raise outcome.faults[0]
    if outcome.unwritten is not None:
        raise outcome.unwritten
    raise typer.Exit(outcome.exit_code)


def note_data(session: Session) -> None:
    """Say before anything runs what was found in a folder, and where the order of its classes is in doubt.

    Rows whose classes are in doubt have a warning.
    """
    for sentence in session.plan.notes:
        note(sentence)
    doubts = {planned.request.class_doubt for planned in session.plan.cells}
    for doubt in sorted(filter(None, doubts)):
        note(f"{doubt}, and need --class-order natural")


def note(text: str) -> None:
    """A sentence on standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"note: {text}.", markup=False, soft_wrap=True)


def show_ending(console: Console, outcome: Outcome) -> None:
    """Print the run's path and how to continue."""
    if outcome.was_complete:
        console.print("Nothing was measured: this run was complete. To measure again, add --fresh.")
    if outcome.interrupted:
        console.print(
            f"Interrupted. To continue, give the same command with --out {outcome.path}", markup=False
        )
    what = "Rows" if outcome.unwritten else "Rows, tables and plots"
    console.print(f"{what}: {outcome.path}", soft_wrap=True, markup=False)


@contextmanager
def _ending_gently(progress: Progress) -> Iterator[list[int]]:
    """On Ctrl-C or SIGTERM end the running cell, then the sweep; on a second signal end at once.

    Yields:
        The received signals, a list that grows while the sweep runs.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            progress.leave_at_once()
            os._exit(_exit_code(came))  # the fork server then ends the running cell
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(signals: list[int]) -> int:
    return 128 + signals[0] if signals else INTERRUPTED
