"""Options of the commands that run a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from longvis_bench import units
from longvis_bench.cli.options import HOW, OUTPUT, RUN, WHAT, choices, reader, several
from longvis_bench.records import Dtype, Mode

Modes = Annotated[
    list[Any] | None,
    typer.Option(
        "--mode",
        metavar="NAMES",
        help="infer, train or both.",
        show_default="infer",
        parser=choices("--mode", Mode, "both"),
        rich_help_panel=WHAT,
    ),
]
Dtypes = Annotated[
    list[Any] | None,
    typer.Option(
        "--dtype",
        metavar="NAMES",
        help="Any of fp32 (strict), tf32, bf16, fp16.",
        show_default="fp32 on the CPU; bf16 on CUDA, or fp16 before Ampere",
        parser=choices("--dtype", Dtype),
        rich_help_panel=HOW,
    ),
]
AnyDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N, mps or xpu.",
        show_default="auto",
        rich_help_panel=HOW,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="Kill a cell after this time.",
        show_default="10m",
        parser=reader("--timeout", units.read_seconds),
        rich_help_panel=HOW,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="First look: time each cell in one process only (verdict: single).",
        rich_help_panel=HOW,
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure again, into a new directory.", rich_help_panel=RUN)
]
Retry = Annotated[
    list[Any] | None,
    typer.Option(
        "--retry",
        metavar="NAMES",
        help="Run cells of these statuses again, e.g. oom,timeout,error.",
        parser=several("--retry", str.strip),
        rich_help_panel=RUN,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="Directory of the run; an existing run is resumed.",
        show_default="results/runs/NAME",
        rich_help_panel=OUTPUT,
    ),
]
RowsAsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print rows as JSON lines on standard output, everything else on standard error.",
        rich_help_panel=OUTPUT,
    ),
]
