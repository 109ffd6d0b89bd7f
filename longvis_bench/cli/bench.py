"""`longvis bench`: measure models at resolutions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from longvis_bench import units
from longvis_bench.cli.options import (
    DATA,
    HOW,
    MODELS_HELP,
    NO_CACHE_HELP,
    OUTPUT,
    RES_HELP,
    RUN,
    WEIGHTS_HELP,
    WHAT,
    Bands,
    Baseline,
    Classes,
    ClassOrderOption,
    Devices,
    Ema,
    FitOption,
    HoursFor,
    ModelsDirs,
    Overlap,
    Pretrained,
    SweepOutput,
    Threads,
    Window,
    World,
    batch,
    choice,
    choices,
    complete_models,
    complete_presets,
    joined,
    names,
    reader,
    several,
    with_ema,
)
from longvis_bench.cli.options import shard as read_shard
from longvis_bench.cli.running import note_data, run_session, show_ending
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
from longvis_bench.errors import LongvisError
from longvis_bench.records import MemoryFormat, Metric

if TYPE_CHECKING:
    from longvis_bench.sweep.execute import Outcome


def bench(
    ctx: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="TABLE",
            help="Measure the cells of a published table, e.g. atlas-table1; see `longvis claims`.",
            autocompletion=complete_presets,
            rich_help_panel=WHAT,
        ),
    ] = None,
    models: Annotated[
        list[Any] | None,
        typer.Option(
            "--models",
            "-m",
            metavar="NAMES",
            help=MODELS_HELP,
            show_default="a quick tour of all families",
            parser=names("--models"),
            autocompletion=complete_models,
            rich_help_panel=WHAT,
        ),
    ] = None,
    resolutions: Annotated[
        list[Any] | None,
        typer.Option(
            "--res",
            "-r",
            metavar="PX",
            help=RES_HELP,
            show_default="256,512,1024 on the CPU; 1k,2k,4k on CUDA",
            parser=several("--res", units.read_pixels),
            rich_help_panel=WHAT,
        ),
    ] = None,
    modes: Modes = None,
    output: SweepOutput = None,
    batch_sizes: Annotated[
        list[Any] | None,
        typer.Option(
            "--batch",
            metavar="N",
            help="Batch sizes, e.g. 1,8; auto picks the one with the highest throughput.",
            show_default="1",
            parser=several("--batch", batch),
            rich_help_panel=WHAT,
        ),
    ] = None,
    metrics: Annotated[
        list[Any] | None,
        typer.Option(
            "--metrics",
            metavar="NAMES",
            help="Any of count, time, memory, accuracy, validity and reach.",
            show_default="all but reach",
            parser=choices("--metrics", Metric),
            rich_help_panel=WHAT,
        ),
    ] = None,
    dtypes: Dtypes = None,
    device: AnyDevice = None,
    devices: Devices = None,
    overlap: Overlap = None,
    world: World = None,
    threads: Threads = None,
    memory_format: Annotated[
        str | None,
        typer.Option(
            "--memory-format",
            metavar="NAME",
            help="channels_last or contiguous.",
            show_default="channels_last",
            parser=reader("--memory-format", choice(get_args(MemoryFormat))),
            rich_help_panel=HOW,
        ),
    ] = None,
    fuse: Annotated[
        bool | None,
        typer.Option(
            "--fuse",
            help="Fold batch norms into the preceding convolutions (inference).",
            rich_help_panel=HOW,
        ),
    ] = None,
    grad_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--grad-checkpointing",
            help="Recompute activations in the backward pass to save memory (training).",
            rich_help_panel=HOW,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile",
            help="Run through torch.compile; its time is reported separately, not part of the budget.",
            rich_help_panel=HOW,
        ),
    ] = None,
    budget_s: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Timing budget per cell, e.g. 90s or 2m; a bare number is seconds.",
            show_default="30s; 5s in the quick tour on a CPU",
            parser=reader("--budget", units.read_seconds),
            rich_help_panel=HOW,
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision",
            metavar="SHARE",
            help="Stop timing once the median's 95 % interval is within this, e.g. 1%.",
            show_default="2%",
            parser=reader("--precision", units.read_share),
            rich_help_panel=HOW,
        ),
    ] = None,
    timeout_s: Timeout = None,
    memory_limit_bytes: Annotated[
        int | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help="Kill a cell whose processes hold more than this, e.g. 8GiB. This includes the ~0.4 GiB of "
            "Python and torch, which the column of peak memory does not.",
            show_default="none",
            parser=reader("--memory-limit", units.read_size),
            rich_help_panel=HOW,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            metavar="N",
            help="Fewest fresh processes per cell; more are added while the interval is too wide.",
            show_default="3",
            parser=reader("--repeats", units.read_whole),
            rich_help_panel=HOW,
        ),
    ] = None,
    quick: Quick = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            help="Seed of the random weights.",
            show_default="0",
            rich_help_panel=HOW,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="NAME",
            help="Labelled images: digits, lookup, pairs or folder:PATH.",
            show_default="digits",
            rich_help_panel=DATA,
        ),
    ] = None,
    classes: Classes = None,
    class_order: ClassOrderOption = None,
    window: Window = None,
    bands: Bands = None,
    fit: FitOption = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            help="Held-out images to measure accuracy on.",
            show_default="128 on the CPU, else all",
            parser=reader("--images", units.read_whole),
            rich_help_panel=DATA,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help=WEIGHTS_HELP,
            show_default="the shipped one",
            rich_help_panel=DATA,
        ),
    ] = None,
    ema: Ema = False,
    pretrained: Pretrained = False,
    models_dirs: ModelsDirs = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Read options from a TOML file (see --save-config), or replay a run.json.",
            rich_help_panel=RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the cells and estimate the time; measure nothing.", rich_help_panel=RUN
        ),
    ] = False,
    fresh: Fresh = False,
    retry: Retry = None,
    only_missing: Annotated[
        bool,
        typer.Option(
            "--only-missing",
            help="Keep rows measured by older code; run only cells without a row.",
            rich_help_panel=RUN,
        ),
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help=NO_CACHE_HELP, rich_help_panel=RUN)] = False,
    no_skip: Annotated[
        bool,
        typer.Option(
            "--no-skip", help="Also run sizes larger than one that ran out of memory.", rich_help_panel=RUN
        ),
    ] = False,
    shard: Annotated[
        Any,
        typer.Option(
            "--shard",
            metavar="K/N",
            help="Run part K of N of the cells, e.g. 2/8; auto: that of this task of a SLURM array. Combine "
            "the parts with `longvis merge`.",
            parser=reader("--shard", read_shard),
            rich_help_panel=RUN,
        ),
    ] = None,
    out: Out = None,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine",
            metavar="NAME",
            help="Name of this machine in the results.",
            show_default="its processor or GPU",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    hours_for: HoursFor = None,
    baseline: Baseline = None,
    as_json: RowsAsJson = False,
    save_config: Annotated[
        Path | None,
        typer.Option(
            "--save-config",
            metavar="FILE",
            help="Write these options to a TOML file, all other fields as comments, and stop.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Measure models at resolutions: accuracy, throughput, memory and FLOPs, one row per cell."""
    from longvis_bench.cli.progress import Progress, show_plan
    from longvis_bench.sweep.config_file import read_config_file, write_config_file
    from longvis_bench.sweep.session import start

    options = _given(ctx.params) | ({"skip_after_oom": False} if no_skip else {})
    options |= {"cache": False} if no_cache else {}
    if quick and repeats not in (None, 1):
        raise LongvisError(f"--quick is --repeats 1, but --repeats is {repeats}; leave one of them out.")
    options |= {"repeats": 1} if quick else {}
    if config is not None:
        options = read_config_file(config, options) | options
    if ema:
        options["weights"] = with_ema(Path(options["weights"]) if "weights" in options else None, "--weights")
    if save_config is not None:
        write_config_file(save_config, options)
        typer.echo(f"wrote {save_config}")
        return
    session = start(
        options,
        out=out,
        fresh=fresh,
        machine=machine,
        command=" ".join(["longvis", *sys.argv[1:]]),
        shard=shard,
        baseline=baseline,
    )
    if dry_run:
        show_plan(session, as_json=as_json)
        return
    note_data(session)
    run_session(
        session,
        Progress(quiet_output=as_json),
        partial(_show, as_json=as_json),
        retry=joined(retry),
        only_missing=only_missing,
    )


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, by field of SweepConfig; the parameters have the names of the fields."""
    from longvis_bench.sweep.config import SweepConfig

    values = {name: params[name] for name in SweepConfig.model_fields if name in params}
    values = {name: _one_list(value) if isinstance(value, list) else value for name, value in values.items()}
    return {name: value for name, value in values.items() if not _is_absent(value)}


def _is_absent(value: object) -> bool:
    """Whether an option was not given; 0 counts as given."""
    return value is None or value is False or value == ()


def _one_list(values: list[Any]) -> tuple[Any, ...]:
    return joined(values) if isinstance(values[0], tuple) else tuple(values)


def _show(outcome: Outcome, as_json: bool) -> None:
    """Print the table and the run's path; with --json print only the rows on standard output."""
    from rich.console import Console

    from longvis_bench.report.summary import terminal_table

    if as_json:
        for row in outcome.rows:
            typer.echo(row.to_json())
    console = Console(stderr=as_json, highlight=False)
    if not as_json:
        console.print(terminal_table(outcome.rows, console.width))
    show_ending(console, outcome)
