"""`longvis reach`: which pixels a token can see, and from how far it takes its evidence."""

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
    DATA,
    HOW,
    OUTPUT,
    WHAT,
    Models,
    ModelsDirs,
    Threads,
    joined,
    reader,
    several,
)
from longvis_bench.errors import LongvisError
from longvis_bench.registry.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longvis_bench.advice.reach import ReachRow

DEFAULT_SIZE = 512


def reach(
    models: Models,
    res: Annotated[
        list[Any] | None,
        typer.Option(
            "--res",
            "-r",
            metavar="PX",
            help="Pixels per side of squares, e.g. 512,1024.",
            show_default=str(DEFAULT_SIZE),
            parser=several("--res", units.read_pixels),
            rich_help_panel=WHAT,
        ),
    ] = None,
    seeds: Annotated[
        Any,
        typer.Option(
            "--seeds",
            metavar="N",
            help="Fresh models per size, and images for trained weights.",
            parser=reader("--seeds", units.read_whole),
            rich_help_panel=HOW,
        ),
    ] = "3",
    threads: Threads = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="NAME",
            help="Also measure the weights that ship for these images: digits or pairs.",
            rich_help_panel=DATA,
        ),
    ] = "digits",
    models_dir: ModelsDirs = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw 9 tokens' maps of influence per model, at one size (.png, .svg or .pdf).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per row.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure which pixels a token of the last map can see, and from how far it takes its evidence."""
    sizes = joined(res) or (DEFAULT_SIZE,)
    if plot is not None and len(sizes) > 1:
        raise LongvisError(f"--plot draws one size, and --res names {len(sizes)}; leave all but one out.")
    from longvis_bench.advice.reach import measure_all, refuse_hopeless

    if plot is not None:
        from longvis_bench.advice.reach_figure import draw_reach, kind_of

        kind_of(plot)
    _use_threads(threads)
    rows = []
    with Console(stderr=True).status("propagating gradients") as status:
        for row in measure_all(joined(models), sizes, Registry(models_dir or ()), seeds=seeds, data=data):
            status.update(f"{row.model}  {row.resolution} px")
            rows.append(row)
            if as_json:
                typer.echo(json.dumps(row.columns))
    refuse_hopeless(rows)
    if plot is not None:
        draw_reach(rows, plot)
    if not as_json:
        show(Console(highlight=False), rows)


def _use_threads(threads: int | None) -> None:
    import torch

    from longvis_bench.environment import default_threads

    torch.set_num_threads(threads or default_threads())


def _texts(row: ReachRow) -> list[str]:
    """The cells of a row, without the model."""
    seen = row.reach
    if seen is None:
        return [str(row.resolution), *[units.UNKNOWN] * 5]
    radii = [
        _range([each[which] for each in found]) for found in (seen.fresh, seen.trained) for which in (0, 1)
    ]
    return [str(row.resolution), _share(seen.share, seen.basis), *radii]


def show(console: Console, rows: Sequence[ReachRow]) -> None:
    """The table, with what its words mean."""
    console.print(_table(rows))
    console.print()
    for row in rows:
        if row.reach is None:
            console.print(f"- {row.model}, {row.resolution} px: {row.reason}", markup=False, soft_wrap=True)
    console.print(
        "Can see: pixels with a gradient to a token of the last map before pooling. Radius: around a token, "
        "holds 50 or 90 % of the squared gradient; lowest-highest of the seeds or images."
    )
    if any(row.reach is not None and row.reach.basis == "logits" for row in rows):
        console.print("* No last map was found: pairs of pixels that the logits couple.")


def _table(rows: Sequence[ReachRow]) -> Table:
    from longvis_bench.report.plain_table import plain_table

    table = plain_table(
        ["model"],
        [
            "px",
            "can see",
            "fresh\n50 %, px",
            "fresh\n90 %, px",
            "trained\n50 %, px",
            "trained\n90 %, px",
        ],
    )
    trained = any(row.reach is not None and row.reach.trained for row in rows)
    if not trained:
        table.columns = table.columns[:-2]
    model = None
    for row in rows:
        texts = [row.model if row.model != model else "", *_texts(row)]
        table.add_row(*map(escape, texts if trained else texts[:-2]))
        model = row.model
    return table


def _share(share: float, basis: str) -> str:
    """100 % only where it is all."""
    text = units.percent(share)
    if share < 1 and text == units.percent(1.0):
        text = "> 99.9 %"
    return text + ("*" if basis == "logits" else "")


def _range(values: Sequence[float]) -> str:
    if not values:
        return units.UNKNOWN
    low, high = (units.significant(value, 2 if value < 10 else 3) for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"
