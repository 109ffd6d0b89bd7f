"""Rows of several runs: shown side by side, or merged if the runs have the same environment.

Both use the same rule for duplicates: within a run the last row of a key counts, and of a key in several runs
the row of the run named last.  The number of rows that do not count is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longvis_bench import units
from longvis_bench.errors import RunDirectoryError
from longvis_bench.files import absence, copy_whole
from longvis_bench.records import Environment, Row
from longvis_bench.runs.directory import (
    PREDICTIONS,
    ROWS,
    RunDirectory,
    cannot_write,
    check_environment,
    current,
    has_torn_tail,
    latest,
    read_rows,
    read_run,
)
from longvis_bench.runs.progress import PlannedCell, PlannedSweep, missing, read_planned, write_planned


class RunRows(NamedTuple):
    """The rows of a run that count, and the number of those that do not."""

    path: Path
    rows: tuple[Row, ...]
    earlier: int
    """Number of rows that later rows of the same run replace."""
    torn: bool
    """Whether the file of rows ends in an unfinished line."""
    replaced: int
    """Number of rows that rows of a run named later replace, because they have the same keys."""

    @property
    def sentence(self) -> str:
        """The number of rows that count, and why others do not."""
        left_out = [
            f"{self.earlier} replaced by later rows of the run" if self.earlier else "",
            f"{self.replaced} replaced by a run named later" if self.replaced else "",
            "an unfinished last line was skipped" if self.torn else "",
        ]
        detail = "; ".join(filter(None, left_out))
        return f"{self.path}: {units.several(len(self.rows), 'row')}{f' ({detail})' if detail else ''}"


def read_runs(runs: Sequence[Path], *, one_per_cell: bool) -> list[RunRows]:
    """The rows of runs, each key once.

    Arguments:
        runs: run directories, or files of rows.
        one_per_cell: leave out rows of older code if the run has newer rows of the same cell.

    Raises:
        RunDirectoryError: a run cannot be read.
    """
    lines = [read_rows(run) for run in runs]
    chosen = [current(rows) if one_per_cell else latest(rows) for rows in lines]
    owner = {row.key: number for number, rows in enumerate(chosen) for row in rows}
    found = []
    for number, (run, read, rows) in enumerate(zip(runs, lines, chosen, strict=True)):
        kept = tuple(row for row in rows if owner[row.key] == number)
        found.append(
            RunRows(run, kept, len(read) - len(rows), has_torn_tail(run), replaced=len(rows) - len(kept))
        )
    return found


def side_by_side(runs: Sequence[RunRows]) -> list[Row]:
    """All rows of runs, distinguished by machine.

    If two runs of one machine have rows of the same cell, from another environment or other code, the run's
    name is appended to the machine's name.
    """
    if len(runs) == 1:
        return list(runs[0].rows)
    counts = Counter(_condition(row) for run in runs for row in run.rows)
    ambiguous = {row.machine for run in runs for row in run.rows if counts[_condition(row)] > 1}
    names = _short_names([run.path for run in runs])
    return [
        row.model_copy(update={"machine": f"{row.machine} ({name})"}) if row.machine in ambiguous else row
        for run, name in zip(runs, names, strict=True)
        for row in run.rows
    ]


def _condition(row: Row) -> tuple[str, str]:
    return row.machine, row.cell.identity()


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest trailing parts of paths that distinguish them."""
    folders = [(path if path.is_dir() else path.parent).resolve() for path in paths]
    for parts in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            return names
    return [folder.name for folder in folders]


def missing_cells(runs: Sequence[Path], rows: Sequence[Row]) -> list[PlannedCell]:
    """Cells that the sweeps of runs planned, parts that are not among them included, and that have no row.

    Arguments:
        runs: run directories; those of older versions, which did not store what they planned, say nothing.
        rows: of all of them.
    """
    return missing([sweep for run in runs for sweep in read_planned(run)], rows)


def merge_runs(runs: Sequence[Path], out: Path) -> list[RunRows]:
    """Merge the latest rows of runs, and their predictions, into a new run directory, without derived files.

    Arguments:
        runs: run directories; of a key in several, the row of the last run counts.
        out: directory of the merged run; it is created if necessary and must have no rows.

    Returns:
        The rows of each run that were merged, and the number of those that were not.

    Raises:
        RunDirectoryError: a run cannot be read, environments differ, or `out` has rows.
    """
    if (out / ROWS).exists():
        raise RunDirectoryError(f"{out} is a run already; choose another --out.")
    files = [_run_file(run) for run in runs]
    environment = Environment.model_validate(files[0]["environment"])
    for run, file in zip(runs, files, strict=True):
        advice = "merge runs of one environment only; `longvis report` shows any runs side by side"
        check_environment(run, file, environment, advice)
    found = read_runs(runs, one_per_cell=False)
    invocations = [invocation for file in files for invocation in file["invocations"]]
    with RunDirectory(out) as directory:
        directory.write_run({**files[0], "invocations": invocations, "merged": [run.name for run in runs]})
        for sweep in _whole_sweeps(runs):
            write_planned(directory, sweep)
        for part in found:
            for row in part.rows:
                _copy_predictions(part.path, out, row.key)
                directory.append(row)
    return found


def _whole_sweeps(runs: Sequence[Path]) -> list[PlannedSweep]:
    """The sweeps of runs, each once and undivided."""
    whole: dict[str, dict[str, PlannedCell]] = {}
    for sweep in (sweep for run in runs for sweep in read_planned(run)):
        cells = {cell.key: cell.model_copy(update={"part": 1}) for cell in sweep.cells}
        whole.setdefault(sweep.sweep, {}).update(cells)
    return [
        PlannedSweep(sweep=name, part=1, parts=1, cells=tuple(cells.values()))
        for name, cells in whole.items()
    ]


def _copy_predictions(run: Path, out: Path, key: str) -> None:
    source = run / PREDICTIONS / f"{key}.npz"
    if not source.exists():
        return
    try:
        copy_whole(source, out / PREDICTIONS / source.name)
    except OSError as error:
        raise cannot_write(out, error) from error


def _run_file(path: Path) -> Mapping[str, Any]:
    run = read_run(path)
    if run is None:
        what = f"{path} holds no run.json" if path.exists() else absence(path, "run directory")
        raise RunDirectoryError(f"{what}: give the directory of a longvis run.")
    return run
