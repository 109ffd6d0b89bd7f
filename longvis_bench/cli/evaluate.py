"""`longvis eval`: accuracy of weights on held-out images, with intervals and per class.

An evaluation is a sweep with accuracy as its only metric.  Its rows and predictions are a run like any other:
it can be resumed, shown again by `longvis report`, and compared with other runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from longvis_bench import units
from longvis_bench.cli.options import (
    DATA,
    HOW,
    NO_CACHE_HELP,
    OUTPUT,
    RES_HELP,
    WEIGHTS_HELP,
    WHAT,
    Bands,
    Classes,
    ClassOrderOption,
    Data,
    Device,
    Ema,
    FitOption,
    Models,
    ModelsDirs,
    Pretrained,
    Threads,
    Window,
    choice,
    data_spec,
    joined,
    reader,
    several,
    with_ema,
)
from longvis_bench.cli.probing import PROBES, Asked, show_probes
from longvis_bench.cli.running import note_data, run_session, show_ending
from longvis_bench.errors import LongvisError

if TYPE_CHECKING:
    from longvis_bench.sweep.execute import Outcome

NO_TIMEOUT_S = 1e7
"""Practically no limit, because there may be many held-out images."""


def evaluate(
    models: Models,
    res: Annotated[
        list[Any],
        typer.Option(
            "--res",
            "-r",
            metavar="PX",
            help=RES_HELP,
            parser=several("--res", units.read_pixels),
            rich_help_panel=WHAT,
        ),
    ],
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
    data: Data = "digits",
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
            show_default="all",
            parser=reader("--images", units.read_whole),
            rich_help_panel=DATA,
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe",
            metavar="NAME",
            help="Classify by frozen features: knn or linear, fitted on the training images, "
            "in place of the model's own classifier.",
            parser=reader("--probe", choice(PROBES)),
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    models_dir: ModelsDirs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Directory of the run; an existing run is resumed. With --probe: of a CSV file.",
            show_default="results/runs/NAME",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again, into a new directory.", rich_help_panel=OUTPUT)
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help=NO_CACHE_HELP, rich_help_panel=OUTPUT)] = False,
) -> None:
    """Measure the top-1 and top-5 accuracy of weights, with 95 % intervals and the worst classes."""
    from longvis_bench.cli.progress import Progress
    from longvis_bench.sweep.session import start

    weights = with_ema(weights, "--weights") if ema else weights
    if probe is not None:
        if fresh or no_cache:
            raise LongvisError("--probe always computes anew; leave out --fresh and --no-cache.")
        show_probes(
            Asked(
                kind=probe,  # type: ignore[arg-type]
                models=joined(models),
                resolutions=joined(res),
                spec=data_spec(data, classes, window, class_order, bands),
                weights=weights,
                pretrained=pretrained,
                images=images,
                device=device,
                threads=threads,
                models_dirs=tuple(models_dir or ()),
                out=out,
            )
        )
        return
    options = {
        "models": joined(models),
        "resolutions": joined(res),
        "weights": weights,
        "pretrained": pretrained,
        "data": data,
        "classes": classes,
        "class_order": class_order,
        "window": window,
        "bands": bands,
        "fit": fit or "crop",
        "images": images,
        "device": device,
        "threads": threads,
        "models_dirs": tuple(models_dir or ()),
        "metrics": ("accuracy",),
        "dtypes": ("fp32",),
        "timeout_s": NO_TIMEOUT_S,
        "cache": not no_cache,
    }
    session = start(options, out=out, fresh=fresh, command=" ".join(["longvis", *sys.argv[1:]]))
    note_data(session)
    run_session(session, Progress(), _show)


def _show(outcome: Outcome) -> None:
    """Print accuracies, the worst classes of each, and the run's path."""
    from longvis_bench.report.per_class import worst_classes
    from longvis_bench.report.summary import ACCURACY, terminal_table
    from longvis_bench.runs.predictions import read_answers

    console = Console(highlight=False)
    console.print(terminal_table(outcome.rows, console.width, ACCURACY))
    console.print(worst_classes(read_answers(outcome.rows, [outcome.path])))
    show_ending(console, outcome)
