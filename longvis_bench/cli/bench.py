"""`longvis bench`: measure models at resolutions."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longvis_bench.cli.options import (
    Classes,
    ClassOrderOption,
    HoursFor,
    ModelsDirs,
    Pretrained,
    Threads,
    Window,
    batches,
    choices,
    numbers,
    one,
    size,
    train_length,
    window_bounds,
)
from longvis_bench.cli.options import shard as parse_shard
from longvis_bench.cli.running import run_session, show_ending
from longvis_bench.errors import LongvisError
from longvis_bench.records import Dtype, MemoryFormat, Metric, Mode
from longvis_bench.registry.registry import split_names

if TYPE_CHECKING:
    from longvis_bench.sweep.execute import Outcome


def bench(
    models: Annotated[
        str | None, typer.Option(help="Names, comma-separated; default: a quick tour of all families.")
    ] = None,
    res: Annotated[str | None, typer.Option(help="Pixels per side, e.g. 1024,2048.")] = None,
    mode: Annotated[str | None, typer.Option(help="infer, train or both.")] = None,
    batch: Annotated[str | None, typer.Option(help="Images a batch, e.g. 1,8; auto: the best.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16; default by device.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N, mps or xpu.")] = None,
    threads: Threads = None,
    memory_format: Annotated[str | None, typer.Option(help="channels_last or contiguous.")] = None,
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Fold batch norms into convolutions, in inference.")
    ] = False,
    grad_checkpointing: Annotated[
        bool,
        typer.Option("--grad-checkpointing", help="In training, compute activations again, to save memory."),
    ] = False,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="Run through torch.compile; its time is kept apart.")
    ] = False,
    metrics: Annotated[
        str | None, typer.Option(help="Some of count, time, memory, accuracy, validity; default: all.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled images: digits, pairs or folder:PATH; default: digits.")
    ] = None,
    classes: Classes = None,
    class_order: ClassOrderOption = None,
    window: Window = None,
    images: Annotated[int | None, typer.Option(help="Held-out images for the accuracy.", min=1)] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights to use instead of the shipped ones.")] = None,
    pretrained: Pretrained = False,
    budget: Annotated[float | None, typer.Option(help="Seconds of timing a cell.")] = None,
    precision: Annotated[
        float | None, typer.Option(help="Wanted half-width of the median's interval; 0.02 is 2 %.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a cell is ended.")] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory a cell may hold, e.g. 8GiB; default: all there is.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Passes over all cells, in fresh processes.", min=1)
    ] = None,
    hours_for: HoursFor = None,
    seed: Annotated[int | None, typer.Option(help="Seed of fresh weights.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file of planning.SweepConfig's fields, or a run.json to replay."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; the same one resumes.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again into a new directory.")] = False,
    retry: Annotated[str, typer.Option(help="Statuses to run again, e.g. oom,timeout,error.")] = "",
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Keep rows of older code; run cells that have none.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="A part of the cells, e.g. 2/8; see longvis merge.")
    ] = None,
    no_skip: Annotated[
        bool, typer.Option("--no-skip", help="Also run sizes above one that ran out of memory.")
    ] = False,
    machine: Annotated[str | None, typer.Option(help="Name of this machine in the results.")] = None,
    models_dir: ModelsDirs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Rows as JSON lines on standard output.")] = False,
) -> None:
    """Measure models at resolutions: accuracy, throughput, memory and FLOPs, one row a cell."""
    from longvis_bench.cli.progress import Progress, show_plan
    from longvis_bench.sweep.session import start

    given = {
        "models": None if models is None else tuple(split_names(models)),
        "resolutions": None if res is None else numbers(res, "--res"),
        "modes": None if mode is None else choices(mode, "--mode", Mode),
        "batch_sizes": None if batch is None else batches(batch),
        "dtypes": None if dtype is None else choices(dtype, "--dtype", Dtype),
        "device": device,
        "threads": threads,
        "memory_format": None
        if memory_format is None
        else one(choices(memory_format, "--memory-format", MemoryFormat), "--memory-format"),
        "fuse": fuse or None,
        "grad_checkpointing": grad_checkpointing or None,
        "compile": compile_model or None,
        "repeats": repeats,
        "metrics": None if metrics is None else choices(metrics, "--metrics", Metric),
        "data": data,
        "classes": classes,
        "class_order": class_order,
        "window": None if window is None else window_bounds(window),
        "images": images,
        "weights": weights,
        "pretrained": pretrained or None,
        "budget_s": budget,
        "precision": precision,
        "timeout_s": timeout,
        "memory_limit_bytes": None if memory_limit is None else size(memory_limit, "--memory-limit"),
        "hours_for": None if hours_for is None else train_length(hours_for),
        "seed": seed,
        "models_dirs": models_dir,
        "skip_after_oom": False if no_skip else None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    options = _read_config(config, given) | given
    command = " ".join(["longvis", *sys.argv[1:]])
    session = start(options, out=out, fresh=fresh, machine=machine, command=command, shard=parse_shard(shard))
    if dry_run:
        show_plan(session, as_json=as_json)
        return
    run_session(
        session,
        Progress(quiet_output=as_json),
        partial(_show, as_json=as_json),
        retry=split_names(retry),
        only_missing=only_missing,
    )


def _read_config(path: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a TOML file, or the resolved ones of a run.json."""
    from longvis_bench.sweep.run_file import read_replay

    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = read_replay(text, str(path), given) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise LongvisError(f"cannot read --config {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LongvisError(f"--config {path} is neither TOML nor a run.json of longvis.") from error
    if not isinstance(content, dict):
        raise LongvisError(f"--config {path} is neither TOML nor a run.json of longvis.")
    return content


def _show(outcome: Outcome, as_json: bool) -> None:
    """The table and where everything went; with --json the rows and nothing else on standard output."""
    from rich.console import Console

    from longvis_bench.report.summary import terminal_table

    if as_json:
        for row in outcome.rows:
            typer.echo(row.to_json())
    console = Console(stderr=as_json, highlight=False)
    if not as_json:
        console.print(terminal_table(outcome.rows, console.width))
    show_ending(console, outcome)
