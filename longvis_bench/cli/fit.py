"""`longvis fit`: which size and batch fit into a memory, without that device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longvis_bench import units
from longvis_bench.cli.options import (
    HOW,
    OUTPUT,
    RES_HELP,
    WHAT,
    Models,
    ModelsDirs,
    OutputOption,
    choice,
    choices,
    joined,
    reader,
    several,
)
from longvis_bench.records import Mode
from longvis_bench.registry.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longvis_bench.advice.fit import FitRow

DEFAULT_SIZES = (1024, 2048, 4096)
WIDE = 110
"""Columns of a terminal from which on the parts of the memory are shown."""
GIB = 1 << 30


def complete_gpus(incomplete: str) -> list[str]:
    """Shell completion of the short names of GPUs."""
    from longvis_bench.advice.gpus import GPUS

    return [name for name in GPUS if name.startswith(incomplete)]


def fit(
    models: Models,
    res: Annotated[
        list[Any] | None,
        typer.Option(
            "--res",
            "-r",
            metavar="PX",
            help=RES_HELP,
            show_default="1024,2048,4096",
            parser=several("--res", units.read_pixels),
            rich_help_panel=WHAT,
        ),
    ] = None,
    batch: Annotated[
        list[Any] | None,
        typer.Option(
            "--batch",
            "-b",
            metavar="N",
            help="Batch sizes, e.g. 1,8.",
            show_default="1",
            parser=several("--batch", units.read_whole),
            rich_help_panel=WHAT,
        ),
    ] = None,
    mode: Annotated[
        list[Any] | None,
        typer.Option(
            "--mode",
            metavar="NAMES",
            help="infer, train or both.",
            show_default="infer",
            parser=choices("--mode", Mode),
            rich_help_panel=WHAT,
        ),
    ] = None,
    output: OutputOption = "logits",
    grad_checkpointing: Annotated[
        bool,
        typer.Option(
            "--grad-checkpointing",
            help="With --mode train: also training that recomputes activations in the backward.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory to fit into, e.g. 24GiB.",
            show_default="that of --gpu",
            parser=reader("--memory", units.read_size),
            rich_help_panel=HOW,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="A GPU by name, e.g. h100, a100-40 or rtx4090; it need not be in this machine.",
            show_default=False,
            autocompletion=complete_gpus,
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar="NAME", help="cuda or cpu.", rich_help_panel=HOW),
    ] = "cuda",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="fp32, tf32, bf16 or fp16.",
            show_default="bf16 on cuda, fp32 on cpu",
            parser=reader("--dtype", choice(("fp32", "tf32", "bf16", "fp16"))),
            rich_help_panel=HOW,
        ),
    ] = None,
    models_dir: ModelsDirs = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw memory against size into FILE (.png, .svg or .pdf).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per row.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Predict which sizes and batches fit into a memory, for inference and training, without the device."""
    from longvis_bench.advice.fit import Question, fit, make_device, refuse_hopeless

    if plot is not None:
        from longvis_bench.advice.figure import draw_fit, kind_of

        kind_of(plot)
    target = make_device(device, gpu, memory)
    chosen: Any = {"dtype": dtype or ("bf16" if device == "cuda" else "fp32"), "output": output}
    question = Question(
        target,
        resolutions=joined(res) or DEFAULT_SIZES,
        modes=joined(mode) or ("infer",),
        batch_sizes=joined(batch) or (1,),
        grad_checkpointing=grad_checkpointing,
        **chosen,
    )
    rows = []
    with Console(stderr=True).status("executing shapes") as status:
        for row in fit(joined(models), question, Registry(models_dir or ())):
            status.update(f"{row.model}  {row.resolution} px")
            rows.append(row)
            if as_json:
                typer.echo(json.dumps(row.columns))
    refuse_hopeless(rows)
    if plot is not None:
        draw_fit(rows, plot)
    if not as_json:
        show(Console(highlight=False), rows, gpu)


def show(console: Console, rows: Sequence[FitRow], gpu: str | None = None) -> None:
    """The table, with what its words mean."""
    first = rows[0]
    where = f"{units.size(first.memory_bytes)} of {gpu or first.device}"
    how = first.dtype if first.output == "logits" else f"{first.dtype}, features"
    console.print(f"[bold]Predicted, not measured[/]: what fits into {escape(where)}, {how}")
    console.print()
    console.print(_table(rows, wide=console.width >= WIDE))
    console.print()
    for row in _unknown(rows):
        console.print(f"- {row.model}, {row.resolution} px: {row.reason}", markup=False, soft_wrap=True)
    console.print(
        "Needs: from what is surely taken to that plus the allocator's pieces, context and margin. "
        "tight: the memory lies between the two. Largest: what surely fits.",
        soft_wrap=False,
    )


def _table(rows: Sequence[FitRow], wide: bool) -> Table:
    from longvis_bench.report.plain_table import plain_table

    left = ["model"]
    right = ["px"]
    varying = {name: len({getattr(row, name) for row in rows}) > 1 for name in ("batch_size", "mode")}
    varying["mode"] |= any(row.grad_checkpointing for row in rows)
    table = plain_table(left, right)
    if varying["batch_size"]:
        table.add_column("batch", justify="right")
    if varying["mode"]:
        table.add_column("mode")
    table.add_column("fits")
    table.add_column("needs\nGiB", justify="right", no_wrap=True)
    if wide:
        for heading in ("weights\nGiB", "optimizer\nGiB", "activations\nGiB", "rest\nGiB"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("largest\nbatch", justify="right")
    table.add_column("largest\npx", justify="right")
    if wide:
        table.add_column("attention")
    model = None
    for row in rows:
        if model not in (None, row.model) and len(rows) > 6:
            table.add_section()
        cells = [row.model if row.model != model else "", str(row.resolution)]
        model = row.model
        if varying["batch_size"]:
            cells.append(str(row.batch_size))
        if varying["mode"]:
            cells.append(way(row))
        cells += [row.fits or units.UNKNOWN, _range(row)]
        if wide:
            cells += _parts(row)
        cells += [units.plain(row.largest_batch), units.plain(row.largest_resolution)]
        if wide:
            cells.append(units.plain(row.attention))
        table.add_row(*map(escape, cells))
    return table


def way(row: FitRow) -> str:
    """`infer`, `train` or `train, checkpointed`."""
    return f"{row.mode}, checkpointed" if row.grad_checkpointing else row.mode


def _range(row: FitRow) -> str:
    if row.needed_low_bytes is None or row.needed_bytes is None:
        return units.UNKNOWN
    return f"{_gib(row.needed_low_bytes)}-{_gib(row.needed_bytes)}"


def _parts(row: FitRow) -> list[str]:
    """Weights with buffers, optimizer with gradients, activations with the input, and the rest."""
    if row.needed_bytes is None:
        return [units.UNKNOWN] * 4
    groups = (("weights", "buffers"), ("optimizer", "gradients"), ("activations", "input", "workspace"))
    sums = [sum(row.parts_bytes.get(part, 0) for part in group) for group in groups]
    return [_gib(size) for size in (*sums, row.needed_bytes - sum(sums))]


def _gib(size: int) -> str:
    return units.significant(size / GIB, 3 if size >= GIB else 2)


def _unknown(rows: Sequence[FitRow]) -> list[FitRow]:
    """Rows without an answer, each reason once per model and size."""
    found = {(row.model, row.resolution, row.reason): row for row in rows if row.fits is None}
    return list(found.values())
