"""`longvis compare`: two runs, or two models, cell by cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from longvis_bench.cli.options import OUTPUT, WHAT, joined, names, reader
from longvis_bench.errors import LongvisError

if TYPE_CHECKING:
    from longvis_bench.report.compare import Check, Comparison


def _limits(text: str) -> dict[str, float]:
    from longvis_bench.report.compare import read_limits

    return read_limits(text)


def compare(
    before: Annotated[Path, typer.Argument(help="Directory of a run.", show_default=False)],
    after: Annotated[
        Path | None,
        typer.Argument(help="Another run; may be left out with --models.", show_default=False),
    ] = None,
    models: Annotated[
        list[Any] | None,
        typer.Option(
            "--models",
            "-m",
            metavar="A,B",
            help="Compare model B (of the second run, if there are two) with model A; of two runs, "
            "one name is enough.",
            parser=names("--models"),
            rich_help_panel=WHAT,
        ),
    ] = None,
    fail: Annotated[
        Any,
        typer.Option(
            "--fail",
            metavar="LIMITS",
            help="Exit with 1 where a cell exceeds a threshold, e.g. slower:5%,memory:2%,macs:0%,top1:1%.",
            parser=reader("--fail", _limits),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with 4 where a threshold of --fail is undecided.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per cell.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Compare two runs, or two models of one run, cell by cell.

    Ratios are AFTER / BEFORE: over 1 is slower or larger.

    A cell is faster or slower if the ratio's 95 % interval over processes excludes 1.

    It is the same if that interval is within 5 % of 1, else unclear.
    """
    from longvis_bench.report.compare import UNCLEAR, check, records
    from longvis_bench.report.compare import compare as compared

    if strict and fail is None:
        raise LongvisError("--strict needs thresholds: add --fail, like --fail slower:5%.")
    found = compared(before, after, joined(models))
    checks = check(found, fail or {})
    console = Console(stderr=as_json, highlight=False)
    if as_json:
        for record in records(found):
            typer.echo(json.dumps(record))
    else:
        _show(console, found)
    _show_checks(console, checks)
    if any(one.exceeded for one in checks):
        raise typer.Exit(1)
    if strict and (checks or found.only_before):
        raise typer.Exit(UNCLEAR)


def _show(console: Console, found: Comparison) -> None:
    from longvis_bench.report.compare import sentences

    for line in sentences(found):
        console.print(line, markup=False)
    console.print()
    console.print(_table(found))
    console.print()
    for line in found.notes:
        console.print(line, markup=False)


def _table(found: Comparison) -> Any:
    from longvis_bench.report.compare import accuracy_text, conditions, exact_text, label, ratio_text
    from longvis_bench.report.plain_table import plain_table
    from longvis_bench.text import clean

    where = conditions(found)
    shown = [
        {
            "model": label(pair),
            "conditions": where[index],
            "size": str(pair.before.cell.resolution),
            "time [95 %]": ratio_text(pair.time),
            "verdict": pair.verdict or _status(pair.before.status, pair.after.status),
            "memory": exact_text(pair.memory),
            "MACs": exact_text(pair.macs),
            "top-1": accuracy_text(pair.accuracies),
        }
        for index, pair in enumerate(found.pairs)
    ]
    used = [name for name in shown[0] if any(row[name] not in ("", "-") for row in shown)]
    table = plain_table()
    for name in used:
        number = name in ("size", "time [95 %]", "memory", "MACs")
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in shown:
        table.add_row(*(clean(row[name]) for name in used))
    return table


def _status(before: str, after: str) -> str:
    return "not timed" if before == after == "ok" else f"{before}, then {after}"


def _show_checks(console: Console, checks: Sequence[Check]) -> None:
    from longvis_bench.report.compare import label

    for one in checks:
        word = "exceeded" if one.exceeded else "undecided"
        where = f"{label(one.pair)} {one.pair.before.cell.resolution} px"
        console.print(f"{word}: {where}: {one.sentence}", markup=False, soft_wrap=True)
