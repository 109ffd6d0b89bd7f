"""`longvis check`: the conformance test that an adapter passes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from longvis_bench.cli.options import ModelsDirs
from longvis_bench.registry.registry import Registry
from longvis_bench.text import clean

if TYPE_CHECKING:
    from longvis_bench.adapters.conformance import Result


def check(
    name: Annotated[str, typer.Argument(help="A model, as for bench.")],
    res: Annotated[
        int | None, typer.Option(help="Pixels per side; default: a small legal size.", min=1)
    ] = None,
    models_dir: ModelsDirs = None,
    on_meta: Annotated[
        bool, typer.Option("--meta", help="Shapes only, on the meta device: no memory, whatever the size.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a check.")] = False,
) -> None:
    """Check that a model keeps the adapter contract; exit code 1 if it does not."""
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
