"""`longvis train`: train weights for measurements of accuracy."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from longvis_bench import units
from longvis_bench.cli.options import (
    DATA,
    HOW,
    OUTPUT,
    Bands,
    Classes,
    ClassOrderOption,
    Data,
    Device,
    Ema,
    FitOption,
    Models,
    ModelsDirs,
    OneRes,
    Threads,
    Window,
    data_spec,
    joined,
    reader,
    with_ema,
)
from longvis_bench.cli.running import note
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import Resolution
from longvis_bench.stats import wilson
from longvis_bench.sweep.reporter import Reporter

if TYPE_CHECKING:
    from longvis_bench.training.job import TrainProgress, TrainReport

LINE_EVERY_S = 30.0
"""Seconds between lines of progress without a terminal, besides one line per epoch."""
LOADER_LIMIT = 0.3
"""A line is printed if more than this share of an epoch was spent waiting for images."""


def train(
    models: Models,
    res: OneRes,
    data: Data = "digits",
    classes: Classes = None,
    class_order: ClassOrderOption = None,
    window: Window = None,
    bands: Bands = None,
    fit: FitOption = None,
    initial: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Initial weights: a file as for `eval --weights`, or the size of shipped weights, e.g. 256.",
            show_default="random",
            rich_help_panel=DATA,
        ),
    ] = None,
    ema: Ema = False,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", metavar="NAME", help="quick, tune, atlas, or a TOML file.", rich_help_panel=HOW
        ),
    ] = "quick",
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            metavar="N",
            help="Passes over the training images.",
            show_default="the recipe's",
            parser=reader("--epochs", units.read_whole),
            rich_help_panel=HOW,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            help="Images per update, over all devices; learning rates scale with it.",
            show_default="the recipe's",
            parser=reader("--batch", units.read_whole),
            rich_help_panel=HOW,
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            metavar="N",
            help="Images per forward pass and device.",
            show_default="its share of an update",
            parser=reader("--micro-batch", units.read_whole),
            rich_help_panel=HOW,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            help="Seed of weights, order of images and augmentation.",
            min=0,
            rich_help_panel=HOW,
        ),
    ] = 0,
    device: Device = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Loader processes per device.",
            show_default="0 on the CPU, else up to 8",
            min=0,
            rich_help_panel=HOW,
        ),
    ] = None,
    models_dir: ModelsDirs = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            metavar="DIR",
            help="Folder for the trained weights.",
            show_default="the user's data folder",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            "--checkpoint-minutes",
            metavar="MIN",
            help="Minutes between checkpoints within an epoch; each epoch ends with one.",
            min=0,
            rich_help_panel=OUTPUT,
        ),
    ] = 10.0,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", help="Print only the weight files and the final table.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Train models with one recipe and store their weights; the same command resumes."""
    from longvis_bench.sweep.gpu_turns import GpuTurns
    from longvis_bench.training.jobs import (
        Options,
        class_doubt,
        devices_to_lock,
        end_processes,
        is_main_process,
        keep,
        start_training,
    )
    from longvis_bench.training.loop import train as train_one
    from longvis_bench.training.recipe import read_recipe

    registry = Registry(models_dir or ())
    variants = [registry.find(name) for name in registry.expand(joined(models))]
    options = Options(
        seed=seed,
        device=device,
        threads=threads,
        initial=str(with_ema(Path(initial) if initial else None, "--from")) if ema else initial,
        micro_batch=micro_batch,
        workers=workers,
        store=store,
        checkpoint_s=60 * checkpoint_minutes,
    )
    plan = read_recipe(recipe, epochs=epochs).with_batch(batch)
    spec = data_spec(data, classes, window, class_order, bands, fit)
    jobs = start_training(variants, spec, res, plan, options)
    for sentence in jobs[0].data.notes:
        note(sentence)
    if classes is None and class_order is None:
        for doubt in filter(None, {class_doubt(job) for job in jobs}):
            note(f"{doubt}, and need --class-order natural")
    if jobs[0].data.fresh:
        scenes = plan.epochs * jobs[0].data.size("train")
        epochs_said = units.several(plan.epochs, "epoch")
        note(f"{jobs[0].data.name} draws every training image anew: {scenes} images in {epochs_said}")
    console = Console(highlight=False, quiet=not is_main_process())
    if not quiet:
        console.print(f"recipe {jobs[0].recipe.describe()}", markup=False, soft_wrap=True)
    table = _table(data, res)
    turns = GpuTurns(*devices_to_lock(jobs[0].device))
    try:
        for job in jobs:
            with turns.turn(_Waiting()), _Display(console, job.variant.name, quiet) as display:
                report = train_one(job, display.show, display.note)
            if report is not None:
                console.print(f"weights: {keep(report, store)}", markup=False, soft_wrap=True)
                _add(table, report)
            if job.data.broken:
                names = ", ".join(sorted(job.data.broken))
                console.print(
                    f"left out because they cannot be read ({len(job.data.broken)}): {names}", markup=False
                )
    finally:
        end_processes()
    if table.row_count:
        console.print(table)


class _Waiting(Reporter):
    """Says that the training waits for a GPU."""

    def note(self, sentence: str) -> None:
        note(sentence.removesuffix("."))


class _Display:
    """One model's progress: a live bar on a terminal; elsewhere a plain line every 30 seconds.

    Arguments:
        console: prints the progress.
        name: of the model.
        quiet: print only notes.
    """

    def __init__(self, console: Console, name: str, quiet: bool = False) -> None:
        self._console, self._name, self._quiet = console, name, quiet
        self._last_line = monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(escape(name), total=None, state="starting")

    def __enter__(self) -> _Display:
        if self._console.is_terminal and not self._quiet:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def show(self, progress: TrainProgress) -> None:
        """Move the bar, or print a line every `LINE_EVERY_S` and at the end of an epoch."""
        if self._quiet:
            return
        about = (
            f"loss {units.significant(progress.loss)}, learning rate {progress.learning_rate:.1e}, "
            f"{units.rate(progress.images_s)} images/s"
        )
        left = f"about {units.seconds(round(progress.left_s))} left"
        if progress.top1 is None:
            self._bar.update(
                self._task, completed=progress.step, total=progress.steps, state=f"{about}, {left}"
            )
            if not self._console.is_terminal and monotonic() - self._last_line >= LINE_EVERY_S:
                self._say(f"{self._name}  step {progress.step}/{progress.steps}  {about}, {left}")
            return
        self._say(
            f"{self._name}  epoch {progress.epoch}/{progress.epochs}  {about}, "
            f"held-out top-1 {units.percent(progress.top1)}, {left}"
        )
        share = progress.waited_s / progress.train_s
        if share > LOADER_LIMIT:
            self._say(
                f"{self._name}  the loader limits the speed: the model waited for images for "
                f"{units.percent(share)} of the epoch; more --workers may help"
            )

    def note(self, sentence: str) -> None:
        """Print a sentence on the loader's workers."""
        self._say(f"{self._name}  {sentence}")

    def _say(self, line: str) -> None:
        self._last_line = monotonic()
        self._console.print(line, markup=False, soft_wrap=True)


def _table(data: str, res: Resolution) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{data}, {res} px", title_justify="left")
    table.add_column("model")
    for header in ("parameters", "epochs", "time", "top-1 (95 % interval)", "images"):
        table.add_column(header, justify="right")
    return table


def _add(table: Table, report: TrainReport) -> None:
    table.add_row(
        escape(report.job.variant.name),
        units.count(report.parameters),
        str(report.job.recipe.epochs),
        units.seconds(round(report.train_s)),
        show_share(report.accuracy.correct_top1, report.accuracy.images),
        str(report.accuracy.images),
    )


def show_share(correct: int | None, images: int) -> str:
    """An accuracy with its 95 % Wilson interval: "47.1 % (42.2-52.0)"."""
    interval = None if correct is None else wilson(correct, images)
    if correct is None or interval is None:
        return units.UNKNOWN
    low, high = (units.percent(bound).removesuffix(" %") for bound in interval)
    return f"{units.percent(correct / images)} ({low}-{high})"
