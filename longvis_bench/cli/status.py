"""`longvis status`: how far runs and the parts of a sweep have come, and how to finish them."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longvis_bench import units
from longvis_bench.cli.options import OUTPUT

if TYPE_CHECKING:
    from rich.table import Table

    from longvis_bench.runs.progress import PartState, RunningCell


def status(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs.", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Show planned, finished, failed and running cells per run, shard and device, and how to finish them.

    A run counts as running while a process holds its lock, which another machine sees only on a file system
    that has locks.
    """
    from rich.console import Console

    from longvis_bench.runs.progress import states

    found = [state for run in runs for state in states(run)]
    if as_json:
        typer.echo(json.dumps([_plain(state) for state in found], indent=2))
        return
    console = Console(highlight=False)
    console.print(_table(found))
    lines = [*_running(found), *_to_finish(found), *_absent(found)]
    for line in ["", *lines] if lines else []:
        console.print(line, soft_wrap=True, markup=False)


def _plain(state: PartState) -> dict[str, Any]:
    """A state as values of JSON."""
    return {
        "run": str(state.path),
        "shard": _shard(state) or None,
        "planned": len(state.sweep.own),
        "done": state.done,
        "failed": dict(Counter(state.failed)),
        "running": [cell.model_dump(mode="json") for cell in state.running],
        "left": state.left,
        "is_running": state.is_held,
        "devices": {name: {"done": done, "failed": bad} for name, (done, bad) in state.by_device.items()},
        "finish": _command(state) if state.is_dead else None,
    }


def _shard(state: PartState) -> str:
    return f"{state.sweep.part}/{state.sweep.parts}" if state.sweep.parts > 1 else ""


def _table(found: Iterable[PartState]) -> Table:
    from longvis_bench.report.plain_table import plain_table

    table = plain_table(("run", "shard", "device"), ("planned", "done", "failed", "running", "left"))
    for state in found:
        devices = _devices(state)
        one = next(iter(devices)) if len(devices) == 1 else f"{len(devices)} devices" if devices else ""
        counts = (len(state.sweep.own), state.done, len(state.failed), len(state.running), state.left)
        table.add_row(str(state.path), _shard(state), one, *map(str, counts))
        for name, (done, failed, running) in devices.items() if len(devices) > 1 else ():
            table.add_row("", "", name, "", str(done), str(failed), str(running), "")
    return table


def _devices(state: PartState) -> dict[str, tuple[int, int, int]]:
    """Device -> cells with a result, cells that failed, and running cells."""
    running = Counter(cell.device for cell in state.running)
    names = sorted({*state.by_device, *running})
    return {name: (*state.by_device.get(name, (0, 0)), running[name]) for name in names}


def _running(found: Iterable[PartState]) -> list[str]:
    return [
        f"{state.path} measures {cell.name} on {cell.device}, {_since(cell)}."
        for state in found
        for cell in state.running
    ]


def _since(cell: RunningCell) -> str:
    spent = datetime.now(UTC) - datetime.fromisoformat(cell.started)
    return f"for {units.seconds(max(0, round(spent.total_seconds())))} so far"


def _to_finish(found: Iterable[PartState]) -> list[str]:
    """What to do about runs that have ended before all cells have a result."""
    lines = []
    for state in found:
        if state.is_dead:
            lines.append(f"No process works on {state.path}. To measure the {_cells(state.left)} left:")
            lines.append(f"  {_command(state)}")
        if state.failed and not state.is_held:
            statuses = ",".join(sorted(set(state.failed)))
            lines.append(
                f"To run the {units.several(len(state.failed), 'failed cell')} of {state.path} again:"
            )
            lines.append(f"  {_command(state)} --retry {statuses}")
    return lines


def _absent(found: Sequence[PartState]) -> list[str]:
    """The parts of a sweep that are in none of the directories, and how to run them."""
    sweeps = {(state.sweep.sweep, state.sweep.parts): state for state in found if state.sweep.parts > 1}
    lines = []
    for (sweep, parts), state in sweeps.items():
        there = {one.sweep.part for one in found if (one.sweep.sweep, one.sweep.parts) == (sweep, parts)}
        with_cells = {cell.part for cell in state.sweep.cells}
        absent = sorted(with_cells - there)
        if absent:
            names = units.listing([f"{part}/{parts}" for part in absent], 12)
            lines.append(
                f"None of these directories has shard {names}; for each of them, with a directory of its own:"
            )
            other = replace(state, sweep=state.sweep.model_copy(update={"part": absent[0]}), path=state.path)
            lines.append(f"  {_command(other, 'DIR')}")
    return lines


def _cells(number: int) -> str:
    return units.several(number, "cell")


def _command(state: PartState, out: str | None = None) -> str:
    """The command that measures what is left of a part."""
    shard = ["--shard", _shard(state)] if _shard(state) else []
    config = str(state.path / "run.json")
    return shlex.join(["longvis", "bench", "--config", config, *shard, "--out", out or str(state.path)])
