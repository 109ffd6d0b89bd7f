"""`longvis choose`: which model to take, from rows, predictions, counts and published accuracies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longvis_bench import units
from longvis_bench.cli.fit import complete_gpus
from longvis_bench.cli.options import (
    HOW,
    MODELS_HELP,
    OUTPUT,
    WHAT,
    ModelsDirs,
    OneRes,
    choice,
    complete_models,
    joined,
    names,
    reader,
)
from longvis_bench.registry.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longvis_bench.advice.choose import Candidate, Known

LIMITS = "What the model must meet"
MARKS = {"measured": "", "counted": "", "predicted": "~", "published": "°"}
"""Behind a figure: how it is known; measured and counted ones have none."""
_NO_LIMIT = 1 << 62


def choose(
    res: OneRes,
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Directories of runs.", show_default=False)
    ] = None,
    models: Annotated[
        list[Any] | None,
        typer.Option(
            "--models",
            "-m",
            metavar="NAMES",
            help="Further models to choose among. " + MODELS_HELP,
            show_default="those of the runs",
            parser=names("--models"),
            autocompletion=complete_models,
            rich_help_panel=WHAT,
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="NAME",
            help="infer or train.",
            parser=reader("--mode", choice(("infer", "train"))),
            rich_help_panel=WHAT,
        ),
    ] = "infer",
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            "-b",
            metavar="N",
            help="Batch size.",
            parser=reader("--batch", units.read_whole),
            rich_help_panel=WHAT,
        ),
    ] = 1,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory it must fit into, e.g. 24GiB.",
            show_default="that of --gpu, else any",
            parser=reader("--memory", units.read_size),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            "--latency",
            metavar="TIME",
            help="Longest median latency of a batch, e.g. 100ms.",
            show_default="any",
            parser=reader("--latency", units.read_seconds),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            metavar="SHARE",
            help="Least top-1 accuracy, e.g. 80%.",
            show_default="any",
            parser=reader("--min-top1", units.read_share),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="A GPU by name, e.g. h100 or rtx4090; it need not be in this machine.",
            show_default="the runs' device",
            autocompletion=complete_gpus,
            rich_help_panel=HOW,
        ),
    ] = None,
    models_dir: ModelsDirs = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per model.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Choose a model that meets limits: from measured rows first, else predicted or published figures."""
    from longvis_bench.advice.choose import Limits, choose, sentence
    from longvis_bench.advice.fit import make_device
    from longvis_bench.runs.merge import read_runs, side_by_side

    rows = side_by_side(read_runs(runs, one_per_cell=True)) if runs else []
    kinds = [row.cell.device.partition(":")[0] for row in rows if row.cell.resolution == res]
    kind = "cuda" if gpu is not None or not kinds else kinds[0]
    device = make_device(kind, gpu, memory or (None if gpu else _NO_LIMIT))
    limits: Any = {"resolution": res, "mode": mode, "batch_size": batch, "latency_s": latency}
    wanted = Limits(
        **limits, min_top1=min_top1, memory_bytes=memory or (device.memory_bytes if gpu else None)
    )
    found = choose(rows, joined(models), wanted, device, Registry(models_dir or ()))
    if as_json:
        for one in found:
            typer.echo(json.dumps(one.columns))
        sentence(found, wanted)
        return
    console = Console(highlight=False)
    console.print(_table(found))
    console.print()
    _legend(console, found)
    if any(row.cell.output == "features" for row in rows):
        console.print("Rows of --output features are left out: they lack the head, and have no accuracy.")
    console.print(sentence(found, wanted), style="bold", markup=False, soft_wrap=False)


def _table(found: Sequence[Candidate]) -> Table:
    from longvis_bench.report.plain_table import plain_table

    table = plain_table(["model"], ["top-1", "latency", "memory", "MACs", "params"])
    table.add_column("meets the limits", overflow="fold")
    for one in found:
        cells = (
            one.model,
            _marked(one.top1, units.percent),
            _marked(one.latency, units.seconds),
            _marked(one.memory, units.size),
            _marked(one.macs, units.count),
            _marked(one.params, units.count),
            "yes" if one.meets else f"no: {one.why_not}",
        )
        table.add_row(*map(escape, cells), style=None if one.meets else "dim")
    return table


def _marked(known: Known | None, show: Callable[[float | None], str]) -> str:
    return units.UNKNOWN if known is None else show(known.value) + MARKS[known.kind]


def _legend(console: Console, found: Sequence[Candidate]) -> None:
    """What the marks mean, as far as they occur."""
    shown = {
        known.kind: known.source
        for one in found
        for known in (one.top1, one.memory, one.latency)
        if known is not None
    }
    if "predicted" in shown:
        console.print("~ predicted: see longvis fit.")
    if "published" in shown:
        sources = dict.fromkeys(
            one.top1.source for one in found if one.top1 is not None and one.top1.kind == "published"
        )
        console.print(f"° published: {'; '.join(sources)}.", markup=False)
    console.print("No mark: measured, or counted (MACs and params).")
