"""`longvis claims`: published numbers beside counted and measured ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longvis_bench import units
from longvis_bench.cli.options import (
    MODELS_HELP,
    NO_CACHE_HELP,
    OUTPUT,
    WHAT,
    ModelsDirs,
    complete_models,
    joined,
    names,
)
from longvis_bench.registry.registry import Registry
from longvis_bench.text import clean

if TYPE_CHECKING:
    from longvis_bench.published.measured import Relative
    from longvis_bench.published.numbers import Claim
    from longvis_bench.published.verdicts import Checked


def claims(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Directories of runs: their models and sizes only.", show_default=False),
    ] = None,
    models: Annotated[
        list[Any] | None,
        typer.Option(
            "--models",
            "-m",
            metavar="NAMES",
            help=MODELS_HELP,
            show_default="all with published numbers",
            parser=names("--models"),
            autocompletion=complete_models,
            rich_help_panel=WHAT,
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help=NO_CACHE_HELP, rich_help_panel=WHAT)] = False,
    models_dir: ModelsDirs = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per number.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Check the published numbers of the models: reproduced, contradicted, or not comparable, and why.

    Parameters and MACs are counted at the published size, without allocating anything.

    Accuracies, throughputs and runtimes are compared with the rows of RUNS.
    """
    from longvis_bench.published.measured import of_runs, relatives
    from longvis_bench.published.verdicts import check
    from longvis_bench.runs.merge import read_runs, side_by_side

    rows = side_by_side(read_runs(runs, one_per_cell=True)) if runs else []
    found = check(Registry(models_dir or ()), joined(models), rows=rows if runs else None, cache=not no_cache)
    ratios = relatives(found, rows)
    found = of_runs(found, rows) if runs else found
    if as_json:
        for record in (*(one.record for one in found), *(one.record for one in ratios)):
            typer.echo(json.dumps(record))
        return
    _show(Console(highlight=False), found, ratios)


def _show(console: Console, found: Sequence[Checked], ratios: Sequence[Relative]) -> None:
    from longvis_bench.published.verdicts import sentence

    sources = Sources()
    console.print(sentence(found), style="bold", markup=False)
    console.print()
    console.print(_tally(found))
    measured = [one for one in found if one.conditions and one.verdict != "contradicted"]
    tables = {
        "Contradicted": _numbers([one for one in found if one.verdict == "contradicted"], sources),
        "Measured": _numbers(measured, sources),
        "Times over those of another model of the same table": _ratios(ratios, sources),
    }
    for title, table in tables.items():
        if table.row_count:
            console.print(f"\n{title}", style="bold")
            console.print(table)
    _list(console, "Sources", {text: f"[{number}]" for text, number in sources.numbers.items()})
    missing = Counter(one.why for one in found if one.verdict == "not comparable" and not one.conditions)
    _list(console, "Not comparable, for want of", {why: str(n) for why, n in missing.most_common()})


class Sources:
    """Numbers of sources, which are listed once below the tables."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, *where: str) -> str:
        """`[1] [3]`: the numbers of sources, in the order in which they occur first."""
        found = (self.numbers.setdefault(one, len(self.numbers) + 1) for one in where)
        return " ".join(f"[{number}]" for number in found)

    def marked(self, why: str) -> str:
        """A reason with the number of another source that prints our count, instead of its name."""
        return re.sub(r"(?:^|(?<=; ))([^;]+) prints ", lambda found: f"{self.mark(found[1])} prints ", why)


def _list(console: Console, title: str, lines: dict[str, str]) -> None:
    if not lines:
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for text, mark in lines.items():
        grid.add_row(Text(mark), Text(clean(text)))
    console.print(f"\n{title}", style="bold")
    console.print(grid)


def _tally(found: Sequence[Checked]) -> Table:
    from longvis_bench.published.verdicts import VERDICTS, tally
    from longvis_bench.report.plain_table import plain_table

    table = plain_table(["quantity"], VERDICTS)
    for quantity, numbers in tally(found).items():
        table.add_row(quantity, *(str(numbers[verdict]) for verdict in VERDICTS))
    return table


def _numbers(found: Sequence[Checked], sources: Sources) -> Table:
    from longvis_bench.published.verdicts import by_source, ratio_text
    from longvis_bench.report.plain_table import plain_table

    table = plain_table(["model"], ["px", "published", "here", "ratio"])
    table.add_column("why", overflow="fold", ratio=1)
    table.add_column("source", overflow="fold")
    for one, where in by_source(found):
        claim = one.claim
        cells = (
            claim.model,
            units.plain(claim.entry.resolution),
            f"{claim.text} {'params' if claim.quantity == 'params' else claim.quantity}",
            _here(one),
            ratio_text(one),
            "; ".join(filter(None, [sources.marked(one.why), one.conditions])) or one.verdict,
            sources.mark(*where),
        )
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table


def _here(one: Checked) -> str:
    """Our value, with its interval if it was measured."""
    if one.ours is None:
        return units.UNKNOWN
    shown = [_short(one.claim, value) for value in (one.ours, one.low, one.high) if value is not None]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else shown[0]


def _short(claim: Claim, value: float) -> str:
    """As in other forms, but with at most six digits: some sources print ten."""
    return min(claim.write(value), units.significant(value, 6), key=len)


def _ratios(found: Sequence[Relative], sources: Sources) -> Table:
    from longvis_bench.report.compare import ratio_text
    from longvis_bench.report.plain_table import plain_table

    table = plain_table(["model / reference"], ["px", "published", "here [95 %]"])
    table.add_column("verdict", overflow="fold", ratio=1)
    table.add_column("source", overflow="fold")
    for one in found:
        cells = (
            f"{one.claim.model} / {one.reference.model}",
            units.plain(one.claim.entry.resolution),
            units.significant(one.published[0]),
            ratio_text(one.time),
            "; ".join(filter(None, [one.verdict, one.why, one.conditions])),
            sources.mark(one.claim.where),
        )
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table
