"""Training curves: a CSV of all updates and epochs, and a figure of loss, accuracy and learning rate."""

from __future__ import annotations

import csv
import io
from math import log
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longvis_bench import units
from longvis_bench.files import write_whole
from longvis_bench.report.plots.layout import spread
from longvis_bench.report.plots.style import (
    DPI,
    GREY,
    INK,
    OTHER_COLOURS,
    PALE,
    WIDTH,
    family_marks,
    printable,
    style,
)
from longvis_bench.stats import wilson
from longvis_bench.training.job import TrainReport

HEIGHT = 5.6
"""Inches."""
FAINT = "#BBBBBB"

UPDATE = ("epoch", "step", "loss", "learning_rate", "images_s")
"""Values stored per update, in this order."""
COLUMNS = (*UPDATE, "top1")
"""Columns of the CSV file; top1 is on some held-out images, at the last update of each epoch."""


def write_curves(report: TrainReport, weights: Path) -> tuple[Path, Path]:
    """Write the curves next to the weight file, as CSV and PNG; return both paths."""
    table, picture = weights.with_suffix(".csv"), weights.with_suffix(".png")
    text = io.StringIO(newline="")
    csv.writer(text).writerows([COLUMNS, *_lines(report)])
    write_whole(table, lambda file: file.write(text.getvalue().encode()))
    figure = curves(report)
    with style():
        write_whole(
            picture, lambda file: figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        )
    return table, picture


def _lines(report: TrainReport) -> list[list[object]]:
    top1 = {epoch.step: epoch.top1 for epoch in report.history}
    return [
        [int(epoch), int(step), loss, rate, images_s, top1.get(int(step))]
        for epoch, step, loss, rate, images_s in report.curve
    ]


def curves(report: TrainReport) -> Figure:
    """A figure of three panels: loss per update and epoch, accuracy on held-out images, learning rate."""
    with style():
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
        FigureCanvasAgg(figure)
        loss, top1, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2.4, 1))
        figure.subplots_adjust(
            left=0.95 / WIDTH, right=1 - 0.95 / WIDTH, bottom=0.5 / HEIGHT, top=1 - 0.75 / HEIGHT, hspace=0.14
        )
        _title(figure, report)
        mark = family_marks().get(report.job.variant.family)
        colour = mark.colour if mark else OTHER_COLOURS[0]
        _draw_loss(loss, report, colour)
        _draw_top1(top1, report, colour)
        steps = [update[1] for update in report.curve]
        rate.plot(steps, [update[3] for update in report.curve], color=INK, linewidth=1.2)
        peak = report.job.recipe.learning_rate
        rate.set_yticks([0, peak], ["0", units.significant(peak, 1)])
        for axes, name in ((loss, "loss"), (top1, "held-out top-1"), (rate, "learning\nrate")):
            _finish(axes, name, report)
        rate.set_xlabel("updates; grey: epochs")
        figure.align_ylabels()
    return figure


def _title(figure: Figure, report: TrainReport) -> None:
    job = report.job
    title = f"{job.variant.name}, {job.data.name}, {job.resolution} px"
    under = f"recipe {job.recipe.name}, {units.several(job.recipe.epochs, 'epoch')}, seed {job.seed}"
    figure.text(0.1 / WIDTH, 1 - 0.1 / HEIGHT, printable(title), fontsize=12, fontweight="bold", va="top")
    figure.text(0.1 / WIDTH, 1 - 0.34 / HEIGHT, printable(under), fontsize=8.5, color=GREY, va="top")


def _draw_loss(axes: Axes, report: TrainReport, colour: str) -> None:
    """Draw the loss per update in grey, the means of epochs over it, and the loss of guessing."""
    steps, losses = [update[1] for update in report.curve], [update[2] for update in report.curve]
    axes.plot(steps, losses, color=FAINT, linewidth=0.8)
    axes.plot(
        [epoch.step for epoch in report.history],
        [epoch.loss for epoch in report.history],
        "o-",
        color=colour,
        markersize=4.5,
        clip_on=False,
    )
    guess = log(report.job.data.num_classes)
    axes.axhline(guess, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_ylim(0, max(guess, *losses) * 1.05)
    heights = spread(
        [guess, losses[-1], report.history[-1].loss], 0.09 * axes.get_ylim()[1], *axes.get_ylim()
    )
    for height, text, tone in zip(
        heights, ("guessing", "per update", "per epoch"), (GREY, GREY, colour), strict=True
    ):
        _beside(axes, height, text, tone)


def _draw_top1(axes: Axes, report: TrainReport, colour: str) -> None:
    """Draw accuracy on some held-out images per epoch, and on all of them at the end, with its interval."""
    known = [(epoch.step, epoch.top1) for epoch in report.history if epoch.top1 is not None]
    axes.plot(
        [step for step, _ in known],
        [top1 for _, top1 in known],
        "o-",
        color=colour,
        markersize=4.5,
        clip_on=False,
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    final = report.accuracy
    ends = wilson(final.correct_top1, final.images)
    if ends is not None:
        axes.axhspan(*ends, color=colour, alpha=0.15, linewidth=0)
    _beside(axes, final.top1, f"{units.percent(final.top1)} of\nall {final.images}", colour)


def _beside(axes: Axes, height: float, text: str, colour: str) -> None:
    """Write text to the right of the axes, at a height in data coordinates."""
    axes.annotate(
        text,
        (1.02, height),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=8.5,
        color=colour,
        annotation_clip=False,
    )


def _finish(axes: Axes, name: str, report: TrainReport) -> None:
    axes.set_ylabel(name, fontsize=9)
    axes.set_xlim(0, report.curve[-1][1])
    axes.tick_params(labelsize=8.5)
    for epoch in report.history[:-1]:
        axes.axvline(epoch.step, color=PALE, linewidth=0.7, zorder=0)
