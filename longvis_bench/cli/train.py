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
from longvis_bench.cli.options import Device, ModelsDirs, Threads
from longvis_bench.registry import Registry, split_names
from longvis_bench.stats import wilson

if TYPE_CHECKING:
    from longvis_bench.training.loop import Progress, TrainReport


def train(
    models: Annotated[str, typer.Option(help="Models, separated by commas; see `longvis models`.")],
    res: Annotated[int, typer.Option(help="Pixels per side.", min=1)],
    data: Annotated[str, typer.Option(help="Labelled images: digits.")] = "digits",
    recipe: Annotated[str, typer.Option(help="quick, or a path to a .toml file.")] = "quick",
    epochs: Annotated[int | None, typer.Option(help="Default: the recipe's.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the order and the shifts.", min=0)] = 0,
    store: Annotated[
        Path | None, typer.Option(help="Folder for the weights; default: the user's data folder.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    models_dir: ModelsDirs = None,
) -> None:
    """Train models from fresh weights, one recipe for all, and keep their weights in the store."""
    from longvis_bench.training.recipe import read_recipe
    from longvis_bench.training.session import start_training

    registry = Registry(models_dir or ())
    variants = [registry.find(name) for name in split_names(models)]
    plan = read_recipe(recipe, epochs=epochs)
    runs = start_training(variants, data, res, plan, seed, device, threads)
    console = Console(highlight=False)
    console.print(f"recipe {plan.describe()}", markup=False, soft_wrap=True)
    table = _table(data, res)
    for run in runs:
        with _Display(console, run.variant.name) as display:
            report = run.train(display.show)
        console.print(f"weights: {run.keep(report, store)}", markup=False, soft_wrap=True)
        _add(table, report)
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
        self._console.print(
            f"{self._name}  epoch {progress.epoch}/{progress.epochs}  {about}, "
            f"held-out top-1 {units.percent(progress.top1)}, {left}",
            markup=False,
            soft_wrap=True,
        )


def _table(data: str, res: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{data}, {res} px", title_justify="left")
    table.add_column("model")
    for header in ("parameters", "epochs", "time", "top-1 (95 % interval)", "images"):
        table.add_column(header, justify="right")
    return table


def _add(table: Table, report: TrainReport) -> None:
    table.add_row(
        escape(report.variant),
        units.count(report.parameters),
        str(report.recipe.epochs),
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
