"""What a run has planned and what it is doing, for `longvis status` and for the missing cells of a merge.

    planned.json    per command that differs: all cells of the sweep with their parts, and the part run here
    running.json    the cells that are being measured, while the run holds its lock

A part of a sweep lists the cells of all parts, so one directory is enough to know what the others owe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from longvis_bench.errors import RunDirectoryError
from longvis_bench.files import absence, write_whole
from longvis_bench.records import ACCEPTED, Cell, Row
from longvis_bench.runs.directory import LOCK, ROWS, RunDirectory, latest, read_rows
from longvis_bench.runs.lock import is_held

PLANNED = "planned.json"
RUNNING = "running.json"
INTERRUPTED = "interrupted"
"""The reason of a row whose cell the user interrupted, and which a resumed sweep measures again."""


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PlannedCell(_File):
    """A cell of a sweep."""

    key: str
    name: str
    """The conditions by which a reader of a table identifies the cell, e.g. `vit-s 1024 px`."""
    part: int
    """The number of its part, from 1."""
    seconds: float
    """Estimated duration."""


class PlannedSweep(_File):
    """The cells of one sweep, all parts included."""

    sweep: str
    """Equal for the parts of one sweep, and for the same command given again."""
    part: int
    """The part that this directory runs."""
    parts: int
    cells: tuple[PlannedCell, ...]

    @property
    def own(self) -> list[PlannedCell]:
        """The cells of this directory's part."""
        return [cell for cell in self.cells if cell.part == self.part]


class RunningCell(_File):
    """A cell that is being measured."""

    key: str
    name: str
    device: str
    started: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class PartState:
    """How far a run has come with one sweep, or with one part of it."""

    path: Path
    sweep: PlannedSweep
    done: int
    """Cells with a row that is a result."""
    failed: tuple[str, ...]
    """Statuses of the cells that have a row which is none, one per cell."""
    running: tuple[RunningCell, ...]
    """The cells that are being measured; empty if no process works on the run."""
    is_held: bool
    """Whether a process works on the run; False, too, where the file system does not tell."""
    by_device: dict[str, tuple[int, int]]
    """Device -> cells with a result, and cells that failed."""

    @property
    def left(self) -> int:
        """Cells that have no row and are not being measured."""
        return len(self.sweep.own) - self.done - len(self.failed) - len(self.running)

    @property
    def is_dead(self) -> bool:
        """Whether cells are left, or are said to be running, and no process works on them."""
        return self.left > 0 and not self.is_held


def name_of(cell: Cell) -> str:
    """The conditions of a cell in words, without those that are the default of most sweeps."""
    batch = "batch auto" if cell.batch_auto else f"batch {cell.batch_size}" if cell.batch_size != 1 else ""
    mode = cell.mode if cell.mode != "infer" else ""
    return ", ".join(filter(None, [f"{cell.model} {cell.resolution} px", batch, mode, cell.dtype]))


def write_planned(directory: RunDirectory, sweep: PlannedSweep) -> None:
    """Record what a command plans; the same part of the same sweep is replaced.

    Arguments:
        directory: open for writing.
        sweep: all cells of the sweep.
    """
    others = [
        old for old in read_planned(directory.path) if (old.sweep, old.part) != (sweep.sweep, sweep.part)
    ]
    content = {"sweeps": [one.model_dump(mode="json") for one in (*others, sweep)]}
    directory.write(PLANNED, json.dumps(content) + "\n")


def read_planned(path: Path) -> list[PlannedSweep]:
    """The sweeps of a run, the last command's last; empty where the file is missing or damaged.

    The command of the run, given again, writes the file anew.
    """
    try:
        found = json.loads((path / PLANNED).read_text(encoding="utf-8"))["sweeps"]
        return [PlannedSweep.model_validate(sweep) for sweep in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_running(path: Path, cells: Iterable[RunningCell]) -> None:
    """Record which cells are being measured; that a disk takes no files is said when the row is written."""
    content = json.dumps({"cells": [cell.model_dump(mode="json") for cell in cells]}).encode()
    with suppress(OSError):
        write_whole(path / RUNNING, lambda file: file.write(content), durable=False)


def read_running(path: Path) -> list[RunningCell]:
    """The cells that the process which works on a run measures, as it last said; empty if it has not."""
    try:
        cells: list[Any] = json.loads((path / RUNNING).read_text(encoding="utf-8"))["cells"]
        return [RunningCell.model_validate(cell) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def states(path: Path) -> list[PartState]:
    """How far a run has come, one state per sweep, or part of a sweep, that it was started for.

    Raises:
        RunDirectoryError: there is no run, or it cannot be read.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{absence(path, 'run directory')}: give the directory of a longvis run.")
    sweeps = read_planned(path)
    if not sweeps and not (path / ROWS).exists():
        raise RunDirectoryError(f"{path} holds no run: give the directory of a longvis run.")
    if not sweeps:
        raise RunDirectoryError(
            f"{path} has no readable {PLANNED}, so what it planned is not known: the command of the run, "
            "given again, writes it."
        )
    rows = {row.key: row for row in latest(read_rows(path))} if (path / ROWS).exists() else {}
    held = is_held(path / LOCK)
    running = read_running(path) if held else []
    return [_state(path, sweep, rows, running, held) for sweep in sweeps]


def _state(
    path: Path, sweep: PlannedSweep, rows: dict[str, Row], running: Sequence[RunningCell], held: bool
) -> PartState:
    keys = {cell.key for cell in sweep.own}
    busy = tuple(cell for cell in running if cell.key in keys)
    again = {cell.key for cell in busy}
    ended = [rows[key] for key in keys if key in rows and not _is_open(rows[key]) and key not in again]
    by_device: dict[str, tuple[int, int]] = {}
    for row in ended:
        done, failed = by_device.get(device_of(row), (0, 0))
        good = row.status in ACCEPTED
        by_device[device_of(row)] = (done + good, failed + (not good))
    statuses = tuple(sorted(row.status for row in ended if row.status not in ACCEPTED))
    return PartState(
        path, sweep, len(ended) - len(statuses), statuses, busy, held, dict(sorted(by_device.items()))
    )


def _is_open(row: Row) -> bool:
    """Whether a resumed sweep measures the cell of a row again."""
    return row.status == "skipped" and row.reason == INTERRUPTED


def device_of(row: Row) -> str:
    """Where a row was measured, with the GPU's index if it is known."""
    return row.cell.device if row.gpu_index is None else f"{row.cell.device}:{row.gpu_index}"


def missing(sweeps: Sequence[PlannedSweep], rows: Iterable[Row]) -> list[PlannedCell]:
    """Cells that sweeps planned and that have no row, in the order of the plan.

    Arguments:
        sweeps: parts of one sweep may have other keys for a cell where the measuring code changed.
        rows: of all parts.
    """
    there = {row.key for row in rows if not _is_open(row)}
    cells = [((sweep.sweep, cell.name), cell) for sweep in sweeps for cell in sweep.cells]
    measured = {condition for condition, cell in cells if cell.key in there}
    lacking = {condition: cell for condition, cell in reversed(cells) if condition not in measured}
    return list(reversed(lacking.values()))
