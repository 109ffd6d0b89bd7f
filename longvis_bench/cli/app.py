"""`longvis`: the list of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from longvis_bench.cli.bench import bench
from longvis_bench.cli.check import check
from longvis_bench.cli.choose import choose
from longvis_bench.cli.compare import compare
from longvis_bench.cli.doctor import doctor
from longvis_bench.cli.evaluate import evaluate
from longvis_bench.cli.fit import fit
from longvis_bench.cli.flops import flops
from longvis_bench.cli.group import Command, Group
from longvis_bench.cli.guard import guarded
from longvis_bench.cli.merge import merge
from longvis_bench.cli.models import models
from longvis_bench.cli.new import new
from longvis_bench.cli.reach import reach
from longvis_bench.cli.report import report
from longvis_bench.cli.status import status
from longvis_bench.cli.train import train
from longvis_bench.version import __version__

app = typer.Typer(
    name="longvis",
    cls=Group,
    help="What a vision backbone really costs and really achieves on 1024-4096 px images.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., None]] = {
    "bench": bench,
    "models": models,
    "fit": fit,
    "choose": choose,
    "reach": reach,
    "flops": flops,
    "train": train,
    "eval": evaluate,
    "report": report,
    "compare": compare,
    "merge": merge,
    "status": status,
    "check": check,
    "new": new,
    "doctor": doctor,
}
for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command)(guarded(_command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longvis {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What a vision backbone really costs and really achieves on 1024-4096 px images."""


def main() -> None:
    """Run the command line."""
    app(prog_name="longvis")
