"""Merge runs: rows of one environment, one a key, nothing dropped without a count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from longvis_bench.errors import RunDirectoryError
from longvis_bench.records import Environment, Row
from longvis_bench.session import write_derived
from longvis_bench.store import ROWS, RunDirectory, check_environment, latest, read_rows, read_run


class MergeCounts(NamedTuple):
    """Rows read of each run, kept, and replaced by the same key of a later run."""

    read: tuple[int, ...]
    kept: int
    replaced: int


def merge_runs(runs: Sequence[Path], out: Path) -> MergeCounts:
    """Merge the latest rows of runs into a new run directory and write its tables and plots.

    Arguments:
        runs: directories; where a key is in several, the row of the last one counts.
        out: made where it does not exist; must hold no rows.

    Raises:
        RunDirectoryError: a run cannot be read, environments differ, or `out` is taken.
    """
    if (out / ROWS).exists():
        raise RunDirectoryError(f"{out} holds a run already; choose another --out.")
    first = _run_file(runs[0])
    environment = Environment.model_validate(first["environment"])
    merged: dict[str, Row] = {}
    read = []
    for run in runs:
        check_environment(run, _run_file(run), environment)
        rows = latest(read_rows(run))
        read.append(len(rows))
        merged.update({row.key: row for row in rows})
    with RunDirectory(out) as directory:
        directory.write_run({**first, "merged": [run.name for run in runs]})
        for row in merged.values():
            directory.append(row)
    write_derived(out)
    return MergeCounts(tuple(read), len(merged), sum(read) - len(merged))


def _run_file(path: Path) -> dict[str, object]:
    run = read_run(path)
    if run is None:
        raise RunDirectoryError(f"{path} holds no run.json: give the directory of a longvis run.")
    return run
