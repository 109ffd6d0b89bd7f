"""`longvis report`: make tables and plots from stored rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from longvis_bench.cli.options import OUTPUT, WHAT, Baseline, HoursFor

if TYPE_CHECKING:
    from longvis_bench.records import Row
    from longvis_bench.report.grouping import Grouped
    from longvis_bench.runs.merge import RunRows


def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs.", show_default=False)],
    overhead: Annotated[
        bool,
        typer.Option(
            "--overhead", help="Show the time of each cell by phase; write nothing.", rich_help_panel=WHAT
        ),
    ] = False,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Show the parts of each memory peak; write nothing.", rich_help_panel=WHAT
        ),
    ] = False,
    by_class: Annotated[
        bool,
        typer.Option(
            "--by-class", help="Also show the worst classes of each accuracy.", rich_help_panel=WHAT
        ),
    ] = False,
    hours_for: HoursFor = None,
    baseline: Baseline = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Directory to write to.",
            show_default="the run, if only one is given",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write one self-contained page to FILE, and other files only with --out.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Print the table of runs and write summary.csv, summary.md and plots/ again.

    Several runs are shown side by side.  If two runs have the same cell, measured in the same environment by
    the same code, the row of the last one is shown.
    """
    from longvis_bench.report.baseline import with_baseline
    from longvis_bench.report.breakdowns import memory_table, overhead_table
    from longvis_bench.report.grouping import grouped
    from longvis_bench.report.write import restate
    from longvis_bench.runs.merge import read_runs, side_by_side

    if html is not None:
        _check_page(html)
    found = read_runs(runs, one_per_cell=True)
    rows = side_by_side(found)
    if hours_for is not None:
        rows = restate(rows, hours_for)
    if baseline is not None:
        rows = with_baseline(rows, baseline)
    console = Console(highlight=False)
    explained = [
        table(rows) for wanted, table in ((overhead, overhead_table), (memory, memory_table)) if wanted
    ]
    for number, table in enumerate(explained):
        if number:
            console.print()
        console.print(table)
    every = grouped(rows)
    if not explained:
        _show(console, every, runs, found, by_class)
    if html is not None:
        _write_page(html, rows, runs)
        console.print(f"Page: {html}", soft_wrap=True, markup=False)
    if not explained and (html is None or out is not None):
        _write_derived(console, every, runs, out)


def _show(
    console: Console, every: Grouped, runs: Sequence[Path], found: Sequence[RunRows], by_class: bool
) -> None:
    from longvis_bench.report.per_class import worst_classes
    from longvis_bench.report.significance import compared
    from longvis_bench.report.summary import terminal_table
    from longvis_bench.runs.predictions import read_answers

    console.print(terminal_table(every, console.width))
    answers = read_answers(every.rows, runs)
    if by_class:
        console.print(worst_classes(answers))
    for line in compared(every, answers):
        console.print(line, soft_wrap=True, markup=False)
    for run in found:
        if len(found) > 1 or run.earlier or run.torn:
            console.print(run.sentence, soft_wrap=True, markup=False)


def _write_derived(console: Console, every: Grouped, runs: Sequence[Path], out: Path | None) -> None:
    from longvis_bench.report.write import write_derived

    folder = out or (runs[0] if len(runs) == 1 and runs[0].is_dir() else None)
    if folder is None:
        console.print("Nothing was written; add --out DIR to write tables and plots of several runs.")
        return
    write_derived(folder, every, runs)
    console.print(f"Tables and plots: {folder}", soft_wrap=True, markup=False)


def _check_page(html: Path) -> None:
    from longvis_bench.report.html.page import check_page_path

    check_page_path(html)


def _write_page(html: Path, rows: Sequence[Row], runs: Sequence[Path]) -> None:
    from longvis_bench.report.html.page import write_page
    from longvis_bench.runs.directory import read_run
    from longvis_bench.runs.predictions import read_answers

    folders = [run if run.is_dir() else run.parent for run in runs]
    write_page(html, rows, [read_run(folder) for folder in folders], read_answers(rows, folders))
