"""`longvis`: the list of commands.

A command's module is imported when the command runs or shows its help.  The list of commands is told from the
lines below alone, so that `longvis --help` imports none of them, and a command only its own.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longvis_bench.cli.group import Group, LateCommand
from longvis_bench.version import __version__

COMMANDS = {
    "bench": "Measure models at resolutions: accuracy, throughput, memory and FLOPs, one row per cell.",
    "models": "List the models with their size and cost, or show one family in detail.",
    "fit": (
        "Predict which sizes and batches fit into a memory, for inference and training, without the device."
    ),
    "choose": (
        "Choose a model that meets limits: from measured rows first, else predicted or published figures."
    ),
    "reach": "Measure which pixels a token of the last map can see, and from how far it takes its evidence.",
    "mixers": "Measure token mixers in one network: latency, memory, MACs and reach on a grid of tokens.",
    "flops": "Count MACs and FLOPs per image, by module and operator, and compare them with fvcore's count.",
    "train": "Train models with one recipe and store their weights; the same command resumes.",
    "eval": "Measure the top-1 and top-5 accuracy of weights, with 95 % intervals and the worst classes.",
    "report": "Print the table of runs and write summary.csv, summary.md and plots/ again.",
    "compare": "Compare two runs, or two models of one run, cell by cell.",
    "claims": (
        "Check the published numbers of the models: reproduced, contradicted, or not comparable, and why."
    ),
    "merge": "Merge runs of one environment; a cell in several runs keeps the row of the last run.",
    "status": (
        "Show planned, finished, failed and running cells per run, shard and device, and how to finish them."
    ),
    "check": "Check that a model meets the adapter contract; exit code 1 if it does not.",
    "new": "Write ./models/NAME/ with a card, a small model and a test, to replace by your own.",
    "doctor": "Check what this machine can run and how to add what is missing; exit code 1 if a check fails.",
}
"""Name -> the first sentence of its help, in the order of `longvis --help`."""
_MODULES = {"eval": "evaluate"}
"""Commands whose module and function have another name, as theirs is one of Python's."""


class _Program(Group):
    """The program with all commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, line in COMMANDS.items():
            self.add_command(LateCommand(name, _MODULES.get(name, name), line))


app = typer.Typer(
    name="longvis",
    cls=_Program,
    help="What a vision backbone really costs and really achieves on 1024-4096 px images.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
