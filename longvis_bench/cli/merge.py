"""`longvis merge`: copy the rows of several runs of one environment into one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from longvis_bench import units
from longvis_bench.cli.options import OUTPUT


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Directory of the merged run; must not hold a run yet.",
            rich_help_panel=OUTPUT,
        ),
    ],
) -> None:
    """Merge runs of one environment; a cell in several runs keeps the row of the last run."""
    from longvis_bench.report.write import write_derived
    from longvis_bench.runs.merge import merge_runs

    found = merge_runs(runs, out)
    console = Console(highlight=False)
    for run in found:
        console.print(run.sentence, soft_wrap=True, markup=False)
    total = units.several(sum(len(run.rows) for run in found), "row")
    console.print(f"Merged: {total} in {out}", soft_wrap=True, markup=False)
    write_derived(out)
