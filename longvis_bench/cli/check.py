"""`longvis check`: the conformance test that an adapter passes."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from longvis_bench.cli.options import ModelsDirs
from longvis_bench.registry import Registry
from longvis_bench.texts import clean


def check(
    name: Annotated[str, typer.Argument(help="A model, as for bench.")],
    res: Annotated[
        int | None, typer.Option(help="Pixels per side; default: a small legal size.", min=1)
    ] = None,
    models_dir: ModelsDirs = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a check.")] = False,
) -> None:
    """Check that a model keeps the adapter contract; exit code 1 if it does not."""
    from longvis_bench.conformance import check_model, smallest_size

    variant = Registry(models_dir or ()).find(name)
    variant.require_packages()
    resolution = res or smallest_size(variant)
    variant.plan(resolution)
    results = check_model(variant, resolution)
    failed = [result for result in results if not result.passed]
    if as_json:
        for result in results:
            typer.echo(json.dumps(result._asdict()))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"[bold]{escape(name)}[/] at {resolution} px")
        for result in results:
            mark = "[green]ok[/]  " if result.passed else "[bold red]FAIL[/]"
            console.print(f"  {mark}  {result.name}: {escape(clean(result.detail))}")
        console.print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    raise typer.Exit(1 if failed else 0)
