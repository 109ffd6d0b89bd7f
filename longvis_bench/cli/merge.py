"""`longvis merge`: copy the rows of several runs of one environment into one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from longvis_bench import units
from longvis_bench.cli.options import OUTPUT

NAMED = 12
"""Missing cells that are named; of more, the number."""


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
    from longvis_bench.runs.merge import merge_runs, missing_cells

    found = merge_runs(runs, out)
    console = Console(highlight=False)
    for run in found:
        console.print(run.sentence, soft_wrap=True, markup=False)
    total = units.several(sum(len(run.rows) for run in found), "row")
    console.print(f"Merged: {total} in {out}", soft_wrap=True, markup=False)
    lacking = missing_cells(runs, [row for run in found for row in run.rows])
    if lacking:
        names = units.listing([f"{cell.name} (shard {cell.part})" for cell in lacking], NAMED)
        console.print(
            f"Missing: {units.several(len(lacking), 'cell')} that the sweep planned: {names}. "
            "`longvis status` says how to measure them.",
            soft_wrap=True,
            markup=False,
        )
    write_derived(out)
