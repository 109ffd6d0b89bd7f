"""`longvis merge`: rows of several runs of one environment into one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs.")],
    out: Annotated[Path, typer.Option(help="Directory of the merged run; must hold no run yet.")],
) -> None:
    """Merge runs of one environment; of a key in several, the row of the run named last counts."""
    from longvis_bench.merging import merge_runs

    counts = merge_runs(runs, out)
    console = Console(highlight=False)
    for run, rows in zip(runs, counts.read, strict=True):
        console.print(f"{run}: {rows} rows", soft_wrap=True)
    console.print(f"{out}: {counts.kept} rows, {counts.replaced} replaced by a later run's", soft_wrap=True)
