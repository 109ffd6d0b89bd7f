"""The figure of `longvis reach`: per model the maps of influence of 9 tokens, at one size, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from longvis_bench import units
from longvis_bench.advice.figure import kind_of, write_figure
from longvis_bench.advice.reach import ReachRow
from longvis_bench.errors import LongvisError
from longvis_bench.files import write_whole
from longvis_bench.measure.reach import Reach
from longvis_bench.report.plots.style import DPI, GREY, INK, PALE, WIDTH, fit, printable, style
from longvis_bench.resolution import Resolution, sides

__all__ = ["draw_reach", "kind_of", "reach_figure"]

PER_LINE = 3
MOST = 12
"""Models on one page."""
DECADES = 8
"""Influence below 10^-DECADES of a token's largest is drawn in the last colour."""
_COLOURS = "magma_r"
_TOP, _BOTTOM, _LINE, _GAP = 0.56, 0.62, 0.5, 0.1


def draw_reach(rows: Sequence[ReachRow], file: Path) -> None:
    """Write the figure.

    Arguments:
        rows: of one size; those without a reach are left out.
        file: its ending says the format: .png, .svg or .pdf.

    Raises:
        LongvisError: the ending is another one, or there are too many models or none.
    """
    kind = kind_of(file)
    with style():
        write_whole(file, partial(write_figure, reach_figure(rows), kind))


def reach_figure(rows: Sequence[ReachRow]) -> Figure:
    """A panel of 3 x 3 maps per model.

    Raises:
        LongvisError: no row has a reach, or there are more than fit on a page.
    """
    known = [row for row in rows if row.reach is not None]
    if not known:
        raise LongvisError("there is nothing to draw: the reach of no model is known.")
    if len(known) > MOST:
        raise LongvisError(
            f"--plot draws up to {MOST} models on a page, not {len(known)}; name fewer models."
        )
    columns = min(PER_LINE, len(known))
    panel = (WIDTH - _GAP * (PER_LINE + 1)) / PER_LINE
    lines = ceil(len(known) / columns)
    height = _TOP + lines * (panel + _LINE) + _BOTTOM
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    title = f"Influence of pixels on 9 tokens, {known[0].resolution} px"
    figure.text(0.1 / WIDTH, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
    said = "squared gradient of a token of the last map, mean of seeds or images; circle: 90 % of it"
    fit(figure.text(0.1 / WIDTH, 1 - 0.34 / height, said, fontsize=8.5, color=GREY, va="top"), WIDTH - 0.2)
    for number, row in enumerate(known):
        left = _GAP + number % columns * (panel + _GAP)
        top = height - _TOP - number // columns * (panel + _LINE)
        _panel(figure, row, (left, top, panel, height))
    _legend(figure, height)
    return figure


def _panel(figure: Figure, row: ReachRow, box: tuple[float, float, float, float]) -> None:
    """A model's name, its numbers, and its maps in the order of the tokens in the image."""
    left, top, panel, height = box
    found = row.reach
    assert found is not None
    name = figure.text(left / WIDTH, (top - 0.02) / height, _name(row), fontsize=9, va="top", color=INK)
    fit(name, panel, keep=9)
    words = figure.text(
        left / WIDTH, (top - 0.19) / height, _numbers(found), fontsize=7.5, va="top", color=GREY
    )
    fit(words, panel)
    side = round(len(found.influence.maps) ** 0.5)
    cell = panel / side
    for number in range(len(found.influence.maps)):
        x, y = left + number % side * cell, top - _LINE + 0.12 - (number // side + 1) * cell
        axes = figure.add_axes((x / WIDTH, y / height, 0.95 * cell / WIDTH, 0.95 * cell / height))
        _map(axes, found, number, row.resolution)


def _name(row: ReachRow) -> str:
    """With the kind of its weights."""
    assert row.reach is not None
    return printable(f"{row.model}, {'trained' if row.reach.trained else 'fresh'}")


def _numbers(found: Reach) -> str:
    radii = found.trained or found.fresh
    radius = units.significant(float(np.mean([most for _, most in radii])), 2)
    share = "100 %" if found.share == 1 else f"{100 * min(found.share, 0.999):.1f} %"
    return f"sees {share}; 90 % in {radius} px"


def _map(axes: Axes, found: Reach, number: int, resolution: Resolution) -> None:
    rows, columns = sides(resolution)
    seen, values = found.influence.seen[number], found.influence.maps[number]
    largest = values.max() or 1.0
    shown = np.ma.masked_where(~seen, np.maximum(values / largest, 10.0**-DECADES))
    axes.set_facecolor("white")
    axes.imshow(
        shown,
        cmap=_COLOURS,
        norm=LogNorm(10.0**-DECADES, 1),
        extent=(0, columns, rows, 0),
        interpolation="nearest",
    )
    row, column = found.influence.centres[number]
    radii = found.trained or found.fresh
    radius = float(np.mean([most for _, most in radii]))
    axes.add_patch(Circle((column, row), radius, fill=False, edgecolor="#009E73", linewidth=0.8))
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(PALE)
        spine.set_linewidth(0.6)


def _legend(figure: Figure, height: float) -> None:
    """The scale of colours; white is what a token cannot see."""
    axes = figure.add_axes((0.3 / WIDTH, 0.36 / height, 2.4 / WIDTH, 0.1 / height))
    bar = figure.colorbar(
        ScalarMappable(LogNorm(10.0**-DECADES, 1), _COLOURS), cax=axes, orientation="horizontal"
    )
    ticks = [10.0**-power for power in (8, 6, 4, 2, 0)]
    bar.set_ticks(ticks, labels=[f"1e-{power}" if power else "1" for power in (8, 6, 4, 2, 0)])
    bar.ax.tick_params(labelsize=7.5)
    bar.ax.minorticks_off()
    figure.text(
        2.85 / WIDTH,
        0.41 / height,
        "of the token's largest; white: no gradient",
        fontsize=8.5,
        color=GREY,
        va="center",
    )
