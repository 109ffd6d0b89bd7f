"""How training went: a table of every update and epoch, and a figure of loss, accuracy and learning rate."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longvis_bench.training.loop import TrainReport

UPDATE = ("epoch", "step", "loss", "learning_rate", "images_s")
"""What is kept of each update, in this order."""
COLUMNS = (*UPDATE, "top1")
"""Of the CSV file; top1 is that of some held-out images, at the last update of an epoch."""


def write_curves(report: TrainReport, weights: Path) -> tuple[Path, Path]:
    """Write the curves beside the weight file, as CSV and PNG; return both paths."""
    table, picture = weights.with_suffix(".csv"), weights.with_suffix(".png")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_lines(report))
    figure = curves(report)
    figure.savefig(picture, dpi=150)
    return table, picture


def _lines(report: TrainReport) -> list[list[object]]:
    top1 = {epoch.step: epoch.top1 for epoch in report.history}
    return [
        [int(epoch), int(step), loss, rate, images_s, top1.get(int(step))]
        for epoch, step, loss, rate, images_s in report.curve
    ]


def curves(report: TrainReport) -> Figure:
    """Loss of updates and epochs above, accuracy on held-out images and learning rate below."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, top1, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    steps = [update[1] for update in report.curve]
    ends = [epoch.step for epoch in report.history]
    loss.plot(steps, [update[2] for update in report.curve], color="#BBBBBB", linewidth=0.8)
    loss.plot(ends, [epoch.loss for epoch in report.history], "o-", color="#0072B2", markersize=4)
    top1.plot(
        ends, [100 * (epoch.top1 or 0.0) for epoch in report.history], "o-", color="#D55E00", markersize=4
    )
    rate.plot(steps, [update[3] for update in report.curve], color="#222222", linewidth=1)
    job = report.job
    loss.set_title(
        f"{report.job.variant.name}, {job.data.name}, {job.resolution} px", loc="left", fontsize=11
    )
    _label(loss, "loss: updates, epochs")
    _label(top1, "held-out top-1, %")
    _label(rate, "learning rate")
    rate.set_xlabel("updates")
    return figure


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, fontsize=9)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
