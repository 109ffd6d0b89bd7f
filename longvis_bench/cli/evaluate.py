"""`longvis eval`: accuracy of a weight file, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longvis_bench import units
from longvis_bench.cli.options import (
    Classes,
    Data,
    Device,
    ModelsDirs,
    Threads,
    Window,
    data_spec,
    numbers,
)
from longvis_bench.cli.train import show_share
from longvis_bench.registry import Registry
from longvis_bench.texts import clean

if TYPE_CHECKING:
    from longvis_bench.training.session import Evaluation


def evaluate(
    models: Annotated[str, typer.Option(help="One model; see `longvis models`.")],
    weights: Annotated[Path, typer.Option(help="safetensors, or a file of torch.save.")],
    res: Annotated[str, typer.Option(help="Pixels per side, separated by commas.")],
    data: Data = "digits",
    classes: Classes = None,
    window: Window = None,
    images: Annotated[int | None, typer.Option(help="Held-out images; default: all.", min=1)] = None,
    device: Device = "auto",
    threads: Threads = None,
    models_dir: ModelsDirs = None,
) -> None:
    """Top-1 and top-5 of a weight file on held-out images, with 95 % Wilson intervals."""
    from longvis_bench.training.session import evaluate as measure

    variant = Registry(models_dir or ()).find(models)
    sizes = numbers(res, "--res")
    console = Console(highlight=False)
    table = _table(f"{variant.name}, {weights.name}, {data}")
    spec = data_spec(data, classes, window)
    for result in measure(variant, weights, spec, sizes, images, device, threads):
        _add(table, result)
        broken = result.accuracy.broken if result.accuracy else ()
        if broken:
            console.print(f"left out, cannot be read ({len(broken)}): {', '.join(broken)}", markup=False)
        if result.note:
            console.print(f"{result.resolution} px: {clean(result.note)}", markup=False, soft_wrap=True)
    console.print(table)


def _table(title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=escape(title), title_justify="left")
    for header in ("size", "trained at", "top-1 (95 % interval)", "top-5 (95 % interval)", "images"):
        table.add_column(header, justify="right")
    return table


def _add(table: Table, result: Evaluation) -> None:
    trained = units.UNKNOWN if result.trained_resolution is None else f"{result.trained_resolution} px"
    sizes = (f"{result.resolution} px", trained)
    accuracy = result.accuracy
    if accuracy is None:
        table.add_row(*sizes, units.UNKNOWN, units.UNKNOWN, units.UNKNOWN)
        return
    table.add_row(
        *sizes,
        show_share(accuracy.correct_top1, accuracy.images),
        show_share(accuracy.correct_top5, accuracy.images),
        str(accuracy.images),
    )
