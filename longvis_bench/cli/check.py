"""`longvis check`: the conformance test of a model's adapter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from longvis_bench import units
from longvis_bench.cli.options import HOW, OUTPUT, WHAT, Model, ModelsDirs, reader
from longvis_bench.registry.registry import Registry
from longvis_bench.text import clean

if TYPE_CHECKING:
    from longvis_bench.adapters.conformance import Result


def check(
    name: Model,
    res: Annotated[
        Any,
        typer.Option(
            "--res",
            "-r",
            metavar="PX",
            help="Pixels per side, or width x height, e.g. 2560x1920.",
            show_default="a small legal size",
            parser=reader("--res", units.read_pixels),
            rich_help_panel=WHAT,
        ),
    ] = None,
    on_meta: Annotated[
        bool,
        typer.Option(
            "--meta",
            help="Check shapes only, on the meta device; needs no memory at any size.",
            rich_help_panel=HOW,
        ),
    ] = False,
    models_dir: ModelsDirs = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per check.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Check that a model meets the adapter contract; exit code 1 if it does not."""
    from longvis_bench.adapters.conformance import check_model, smallest_size

    variant = Registry(models_dir or ()).find(name)
    variant.require_packages()
    resolution = res or smallest_size(variant)
    variant.plan(resolution)
    results = check_model(variant, resolution, "meta" if on_meta else "cpu")
    failed = [result for result in results if result.passed is False]
    if as_json:
        for result in results:
            typer.echo(json.dumps(result._asdict()))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"[bold]{escape(name)}[/] at {resolution} px")
        for result in results:
            console.print(f"  {_MARKS[result.passed]}  {result.name}: {escape(clean(result.detail))}")
        console.print(_summary(results))
    raise typer.Exit(1 if failed else 0)


_MARKS = {True: "[green]ok[/]  ", False: "[bold red]FAIL[/]", None: "[dim]--[/]  "}


def _summary(results: list[Result]) -> str:
    """How many checks passed, failed and were not run."""
    given = [result.passed for result in results]
    words = [f"{given.count(True)} of {len(given)} checks passed"]
    words += [f"{given.count(False)} failed"] if False in given else []
    words += [f"{given.count(None)} not run"] if None in given else []
    return ", ".join(words)
