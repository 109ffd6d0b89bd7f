"""`longvis mixers`: measure token mixers, all in the same network."""

from __future__ import annotations

import sys
from functools import partial
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from longvis_bench import units
from longvis_bench.cli.options import (
    HOW,
    OUTPUT,
    RUN,
    WHAT,
    ModelsDirs,
    Threads,
    choices,
    joined,
    names,
    reader,
    several,
)
from longvis_bench.cli.running import run_session, show_ending
from longvis_bench.cli.sweep_options import (
    AnyDevice,
    Dtypes,
    Fresh,
    Modes,
    Out,
    Quick,
    Retry,
    RowsAsJson,
    Timeout,
)
from longvis_bench.errors import IllegalSize, LongvisError
from longvis_bench.records import Metric
from longvis_bench.registry.names import split_names
from longvis_bench.registry.registry import Registry
from longvis_bench.sizes.mixers import NETWORK

if TYPE_CHECKING:
    from longvis_bench.registry.mixers import MixerVariant
    from longvis_bench.sweep.execute import Outcome

PAPER_TOKENS = 9216
METRICS: tuple[Metric, ...] = ("count", "time", "memory", "validity")


def _square(text: str) -> int:
    """`9216` -> 96 tokens per side.

    Raises:
        ValueError: the text is no square number.
    """
    try:
        tokens = units.read_whole(text)
    except ValueError:
        tokens = 2
    if isqrt(tokens) ** 2 != tokens:
        raise ValueError("square numbers of tokens, like 9216 (96 x 96)")
    return isqrt(tokens)


def _ratio(text: str) -> float:
    """`4` -> 4.0.

    Raises:
        ValueError: the text is no number from 0 up.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise ValueError("a number from 0 up, like 4; 0 for no MLPs")
    return value


def mixers(
    wanted: Annotated[
        list[Any] | None,
        typer.Option(
            "--mixers",
            "-m",
            metavar="NAMES",
            help="Mixers, comma-separated: names or patterns like '*window'; see --list.",
            show_default="all",
            parser=names("--mixers"),
            rich_help_panel=WHAT,
        ),
    ] = None,
    tokens: Annotated[
        list[Any] | None,
        typer.Option(
            "--tokens",
            metavar="N",
            help="Tokens of the square grid, e.g. 4096,16384,65536,262144.",
            show_default=str(PAPER_TOKENS),
            parser=several("--tokens", _square),
            rich_help_panel=WHAT,
        ),
    ] = None,
    dim: Annotated[
        Any,
        typer.Option(
            "--dim",
            metavar="N",
            help="Channels of a token.",
            parser=reader("--dim", units.read_whole),
            rich_help_panel=WHAT,
        ),
    ] = str(NETWORK["dim"]),
    heads: Annotated[
        Any,
        typer.Option(
            "--heads",
            metavar="N",
            help="Attention heads.",
            parser=reader("--heads", units.read_whole),
            rich_help_panel=WHAT,
        ),
    ] = str(NETWORK["heads"]),
    blocks: Annotated[
        Any,
        typer.Option(
            "--blocks",
            metavar="N",
            help="Blocks of the network; some mixers alternate between two forms.",
            parser=reader("--blocks", units.read_whole),
            rich_help_panel=WHAT,
        ),
    ] = str(NETWORK["blocks"]),
    mlp_ratio: Annotated[
        Any,
        typer.Option(
            "--mlp-ratio",
            metavar="X",
            help="Hidden width of the blocks' MLPs over the width; 0 measures mixers without MLPs.",
            parser=reader("--mlp-ratio", _ratio),
            rich_help_panel=WHAT,
        ),
    ] = f"{NETWORK['mlp_ratio']:g}",
    modes: Modes = None,
    metrics: Annotated[
        list[Any] | None,
        typer.Option(
            "--metrics",
            metavar="NAMES",
            help="Any of count, time, memory, validity and reach.",
            show_default="all but reach",
            parser=choices("--metrics", Metric),
            rich_help_panel=WHAT,
        ),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="List the mixers and stop.", rich_help_panel=WHAT)
    ] = False,
    batch_sizes: Annotated[
        list[Any] | None,
        typer.Option(
            "--batch",
            metavar="N",
            help="Batch sizes.",
            show_default="1",
            parser=several("--batch", units.read_whole),
            rich_help_panel=HOW,
        ),
    ] = None,
    dtypes: Dtypes = None,
    device: AnyDevice = None,
    threads: Threads = None,
    budget_s: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Timing budget per cell, e.g. 90s or 2m; a bare number is seconds.",
            show_default="30s",
            parser=reader("--budget", units.read_seconds),
            rich_help_panel=HOW,
        ),
    ] = None,
    timeout_s: Timeout = None,
    memory_limit_bytes: Annotated[
        int | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help="Kill a cell whose processes hold more than this, e.g. 8GiB.",
            show_default="none",
            parser=reader("--memory-limit", units.read_size),
            rich_help_panel=HOW,
        ),
    ] = None,
    quick: Quick = False,
    models_dirs: ModelsDirs = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the cells; measure nothing.", rich_help_panel=RUN),
    ] = False,
    fresh: Fresh = False,
    retry: Retry = None,
    out: Out = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw latency, memory and MACs against tokens (.png, .svg or .pdf).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: RowsAsJson = False,
) -> None:
    """Measure token mixers in one network: latency, memory, MACs and reach on a grid of tokens."""
    registry = Registry(models_dirs or ())
    if list_only:
        _show_list(registry.mixers())
        return
    if plot is not None:
        from longvis_bench.advice.figure import kind_of

        kind_of(plot)
    network = {"dim": dim, "heads": heads, "blocks": blocks, "mlp_ratio": mlp_ratio}
    given: dict[str, Any] = {
        "models": _models(joined(wanted), registry, network),
        "resolutions": tuple(side * NETWORK["patch"] for side in joined(tokens) or (isqrt(PAPER_TOKENS),)),
        "modes": joined(modes),
        "metrics": joined(metrics) or METRICS,
        "batch_sizes": joined(batch_sizes),
        "dtypes": joined(dtypes),
        "device": device,
        "threads": threads,
        "budget_s": budget_s,
        "timeout_s": timeout_s,
        "memory_limit_bytes": memory_limit_bytes,
        "models_dirs": tuple(models_dirs or ()),
        "repeats": 1 if quick else None,
    }
    _run(given, registry, out, fresh, joined(retry), dry_run=dry_run, plot=plot, as_json=as_json)


def _run(
    given: dict[str, Any],
    registry: Registry,
    out: Path | None,
    fresh: bool,
    retry: tuple[str, ...],
    *,
    dry_run: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    from longvis_bench.cli.progress import Progress, show_plan
    from longvis_bench.sweep.session import start

    options = {name: value for name, value in given.items() if value not in (None, ())}
    command = " ".join(["longvis", *sys.argv[1:]])
    try:
        session = start(options, out=out, fresh=fresh, command=command)
    except IllegalSize as error:
        raise LongvisError(_in_tokens(error)) from error
    if dry_run:
        show_plan(session, as_json=as_json)
        return
    show = partial(_show, known=registry.mixers(), plot=plot, as_json=as_json)
    run_session(session, Progress(quiet_output=as_json), show, retry=retry)


def _in_tokens(error: IllegalSize) -> str:
    """The sentence on an illegal size of an image, with grids instead of pixels."""
    asked, *legal = (size / NETWORK["patch"] for size in (error.resolution, *error.legal))
    near = " and ".join(f"{side**2:.0f} ({side:g} x {side:g})" for side in legal)
    return f"{asked**2:.0f} tokens cannot be taken; legal numbers near it: {near}. As an image, {error}"


def _models(wanted: tuple[str, ...], registry: Registry, network: dict[str, Any]) -> tuple[str, ...]:
    """Names of models for names of mixers, with the network's arguments that are not the default.

    Raises:
        UnknownName: a mixer does not exist.
        LongvisError: no mixer is left.
    """
    from longvis_bench.registry.mixers import expand_mixers

    known = registry.mixers()
    built_in = [each.name for each in known if each.origin == "built-in"]
    found = [each for name in wanted for each in expand_mixers(name, known)] if wanted else built_in
    differing = [f"{key}={value!r}" for key, value in network.items() if value != NETWORK[key]]
    return tuple(dict.fromkeys(_with_arguments(name, differing) for name in found))


def _with_arguments(name: str, more: list[str]) -> str:
    """`mixer:window[window=8]` with further arguments; those that stand in the name win."""
    base, _, inside = name.partition("[")
    own = split_names(inside.removesuffix("]"))
    keys = {part.partition("=")[0].strip() for part in own}
    both = [*own, *(part for part in more if part.partition("=")[0] not in keys)]
    return f"{base}[{','.join(both)}]" if both else base


def _show(outcome: Outcome, known: list[MixerVariant], plot: Path | None, as_json: bool) -> None:
    """Print a table per condition, draw the figure, and say where the rows are."""
    from longvis_bench.report.mixers import by_condition, mixer_rows, mixer_table, remarks

    rows = mixer_rows(outcome.rows, known)
    console = Console(stderr=as_json, highlight=False)
    if as_json:
        for row in outcome.rows:
            typer.echo(row.to_json())
    else:
        for title, group in by_condition(rows).items():
            console.print(f"[bold]{escape(title)}[/]")
            console.print(mixer_table(group))
            console.print()
        for sentence in remarks(rows):
            console.print(sentence, markup=False)
    if plot is not None:
        _draw(plot, rows)
    show_ending(console, outcome)


def _draw(file: Path, rows: list[Any]) -> None:
    from longvis_bench.advice.figure import kind_of, write_figure
    from longvis_bench.files import write_whole
    from longvis_bench.report.plots.mixers import mixers_figure
    from longvis_bench.report.plots.style import style

    with style():
        write_whole(file, partial(write_figure, mixers_figure(rows), kind_of(file)))


def _show_list(known: list[MixerVariant]) -> None:
    from longvis_bench.report.plain_table import plain_table

    if not known:
        raise LongvisError("there are no mixers: this installation lacks models/mixers; install it again.")
    table = plain_table(["mixer", "what it is", "paper"])
    for each in known:
        table.add_row(each.variant, escape(each.entry.summary), each.entry.paper or units.UNKNOWN)
    Console(highlight=False).print(table)
