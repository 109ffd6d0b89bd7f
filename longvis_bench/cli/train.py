"""`longvis train`: make the weights that accuracy needs."""

from __future__ import annotations

from pathlib import Path
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
from longvis_bench.cli.options import Classes, Data, Device, ModelsDirs, Threads, Window, data_spec
from longvis_bench.registry.registry import Registry, split_names
from longvis_bench.stats import wilson

if TYPE_CHECKING:
    from longvis_bench.training.loop import Progress, TrainReport

LOADER_LIMIT = 0.3
"""Share of an epoch spent waiting for images above which it is worth a line."""


def train(
    models: Annotated[str, typer.Option(help="Models, separated by commas; see `longvis models`.")],
    res: Annotated[int, typer.Option(help="Pixels per side.", min=1)],
    data: Data = "digits",
    classes: Classes = None,
    window: Window = None,
    recipe: Annotated[str, typer.Option(help="quick, tune, atlas, or a path to a .toml file.")] = "quick",
    epochs: Annotated[int | None, typer.Option(help="Default: the recipe's.", min=1)] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Images an update over all devices; learning rates grow with it.", min=1),
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Images at once on a device; default: its share of an update.", min=1)
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option("--from", help="Weights to start from: a file, or the size of shipped ones, e.g. 256."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.", min=0)] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes that load images, for each device.", min=0)
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="A checkpoint is written each epoch and this often.", min=0)
    ] = 10.0,
    store: Annotated[
        Path | None, typer.Option(help="Folder for the weights; default: the user's data folder.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    models_dir: ModelsDirs = None,
) -> None:
    """Train models, one recipe for all, and keep their weights in the store; the same command goes on."""
    from longvis_bench.training.jobs import Options, is_main_process, keep, start_training
    from longvis_bench.training.loop import train as train_one
    from longvis_bench.training.recipe import read_recipe

    registry = Registry(models_dir or ())
    variants = [registry.find(name) for name in split_names(models)]
    options = Options(
        seed=seed,
        device=device,
        threads=threads,
        initial=initial,
        micro_batch=micro_batch,
        workers=workers,
        store=store,
        checkpoint_s=60 * checkpoint_minutes,
    )
    plan = read_recipe(recipe, epochs=epochs).with_batch(batch)
    jobs = start_training(variants, data_spec(data, classes, window), res, plan, options)
    console = Console(highlight=False, quiet=not is_main_process())
    console.print(f"recipe {plan.describe()}", markup=False, soft_wrap=True)
    table = _table(data, res)
    for job in jobs:
        with _Display(console, job.variant.name) as display:
            report = train_one(job, display.show)
        if report is not None:
            console.print(f"weights: {keep(report, store)}", markup=False, soft_wrap=True)
            _add(table, report)
        if job.data.broken:
            names = ", ".join(sorted(job.data.broken))
            console.print(f"left out, cannot be read ({len(job.data.broken)}): {names}", markup=False)
    if table.row_count:
        console.print(table)


class _Display:
    """One model's progress: a live bar on a terminal, one plain line an epoch elsewhere."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
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
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """An update moves the bar, the end of an epoch prints a line."""
        about = (
            f"loss {units.significant(progress.loss)}, learning rate {progress.learning_rate:.1e}, "
            f"{units.rate(progress.images_s)} images/s"
        )
        left = f"about {units.seconds(round(progress.left_s))} left"
        if progress.top1 is None:
            self._bar.update(
                self._task, completed=progress.step, total=progress.steps, state=f"{about}, {left}"
            )
            return
        self._say(
            f"{self._name}  epoch {progress.epoch}/{progress.epochs}  {about}, "
            f"held-out top-1 {units.percent(progress.top1)}, {left}"
        )
        share = progress.waited_s / progress.train_s
        if share > LOADER_LIMIT:
            self._say(
                f"{self._name}  the loader is the limit, not the model: {units.percent(share)} of the epoch "
                "went into waiting for images; more --workers may help"
            )

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _table(data: str, res: int) -> Table:
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
    """A share of right answers with its 95 % Wilson interval: "47.1 % (42.2-52.0)"."""
    interval = None if correct is None else wilson(correct, images)
    if correct is None or interval is None:
        return units.UNKNOWN
    low, high = (units.percent(bound).removesuffix(" %") for bound in interval)
    return f"{units.percent(correct / images)} ({low}-{high})"
