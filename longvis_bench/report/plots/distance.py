"""Figures of accuracy against distance: one panel per model, so that seven models stay readable.

Behind each model's curve those of the others are drawn in grey.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longvis_bench import units
from longvis_bench.data import lookup, pairs
from longvis_bench.records import Row
from longvis_bench.report.accuracy_by_distance import DistanceCurve
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.plots.style import (
    GREY,
    PALE,
    WIDTH,
    Cast,
    Look,
    fit,
    note,
    printable,
    short,
    style,
)
from longvis_bench.resolution import Resolution, sides
from longvis_bench.stats import wilson

COLUMNS = 3
MOST_PANELS = 24
"""Models per figure; a figure of more shows the most accurate ones."""
LEFT, RIGHT, TOP, BOTTOM = 0.6, 0.15, 0.9, 0.78
"""Inches around all panels."""
PANEL, ACROSS, DOWN = 1.2, 0.16, 0.34
"""Inches of a panel's height, and between panels."""
DOTS, DASHES, DASHES_AND_DOTS = (0, (1, 2)), (0, (4, 2)), (0, (4, 2, 1, 2))
PAIRS_LIMIT = pairs.local_limit(len(pairs.KINDS))


class Guide(NamedTuple):
    """What the figure of one data set says besides the curves."""

    across: str
    """Label of the horizontal axis."""
    lines: tuple[tuple[float, tuple[int, tuple[int, ...]]], ...]
    """Accuracies without the ability that the data tests, with their line styles."""
    in_words: str


GUIDES = {
    "pairs": Guide(
        "pixels between the two digits",
        ((pairs.CHANCE, DOTS), (PAIRS_LIMIT, DASHES)),
        f"dots: chance; dashes: the most of a sum of local scores, {units.percent(PAIRS_LIMIT)}",
    ),
    lookup.NAME: Guide(
        "pixels from the key to its disc",
        ((lookup.CHANCE, DOTS), (lookup.READING, DASHES_AND_DOTS), (lookup.LOCAL_LIMIT, DASHES)),
        f"lines: chance, reading without the key, sum of local scores ({units.percent(lookup.LOCAL_LIMIT)})",
    ),
}


def distance_figures(rows: Sequence[Row] | Grouped, curves: Sequence[DistanceCurve]) -> dict[str, Figure]:
    """A figure per data set and size, by name; none if there are no curves.

    Arguments:
        rows: all that are shown; they decide how a model is called and looks.
        curves: of those rows.
    """
    groups = sorted({_group(curve) for curve in curves})
    cast = Cast(rows)
    with style():
        return {
            _file(*group): _figure(cast, group[0], [curve for curve in curves if _group(curve) == group])
            for group in groups
        }


def _group(curve: DistanceCurve) -> tuple[str, Resolution]:
    """Data set and size of a curve."""
    assert curve.row.accuracy is not None
    return curve.row.accuracy.dataset, curve.row.cell.resolution


def _file(dataset: str, size: Resolution) -> str:
    """Name of a figure; that of `pairs` is from the time when it was the only such data set."""
    named = "" if dataset == "pairs" else re.sub(r"[^\w.=]+", "-", f"{dataset}-")
    return f"accuracy-distance-{named}{size}"


def _figure(cast: Cast, dataset: str, every: Sequence[DistanceCurve]) -> Figure:
    curves, guide = _most_accurate(every), GUIDES[dataset.partition("[")[0]]
    lines = ceil(len(curves) / COLUMNS)
    height = TOP + lines * PANEL + (lines - 1) * DOWN + BOTTOM
    size = curves[0].row.cell.resolution
    figure = cast.figure(
        height, f"Accuracy against distance, {size} px", Grouped([curve.row for curve in curves])
    )
    called, look = cast.rows.names, cast.looks
    width = (WIDTH - LEFT - RIGHT - (COLUMNS - 1) * ACROSS) / COLUMNS
    low = min(guide.lines[0][0] - 0.1, *(_interval(curve)[0] for curve in curves))
    for position, curve in enumerate(curves):
        line, column = divmod(position, COLUMNS)
        left, bottom = LEFT + column * (width + ACROSS), height - TOP - PANEL - line * (PANEL + DOWN)
        axes = figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, PANEL / height))
        _axes(axes, max(sides(size)), low, first=column == 0, last=position + COLUMNS >= len(curves))
        for level, dashes in guide.lines:
            axes.axhline(level, color=GREY, linewidth=0.9, linestyle=dashes, zorder=1)
        for other in curves:
            _line(axes, other, PALE)
        _draw(axes, curve, look[called[curve.row.key]])
        _name(axes, curve, cast.name(called[curve.row.key]))
    figure.text(LEFT / WIDTH, 0.3 / height, guide.across, fontsize=10)
    more = f"; the {len(curves)} most accurate of {len(every)} models" if len(every) > len(curves) else ""
    note(figure, cast.note(f"{guide.in_words}; bars: 95 % intervals{more}"))
    return figure


def _most_accurate(curves: Sequence[DistanceCurve]) -> list[DistanceCurve]:
    """As many curves as a figure has panels for, in the order given."""
    best = sorted(range(len(curves)), key=lambda position: (-_right(curves[position]), position))[
        :MOST_PANELS
    ]
    return [curves[position] for position in sorted(best)]


def _right(curve: DistanceCurve) -> float:
    """The share of right answers at all distances."""
    return sum(share.hits for share in curve.shares) / sum(share.trials for share in curve.shares)


def _interval(curve: DistanceCurve) -> tuple[float, float]:
    """The lowest and the highest end of a curve's intervals."""
    ends = [wilson(share.hits, share.trials) or (0.0, 1.0) for share in curve.shares]
    return min(end[0] for end in ends), max(end[1] for end in ends)


def _axes(axes: Axes, size: int, low: float, *, first: bool, last: bool) -> None:
    axes.set_xlim(0, size)
    axes.set_ylim(low - 0.02, 1.02)
    axes.set_xticks([size // 4, size // 2, 3 * size // 4])
    ticks = [tick / 10 for tick in range(0, 11, 2) if tick / 10 >= low]
    axes.set_yticks(ticks, [units.percent(tick).replace(".0", "") for tick in ticks])
    axes.tick_params(labelsize=8.5, labelleft=first, labelbottom=last, length=2)


def _line(axes: Axes, curve: DistanceCurve, colour: str, zorder: float = 1.5) -> None:
    axes.plot(
        [share.centre for share in curve.shares],
        [share.hits / share.trials for share in curve.shares],
        color=colour,
        linewidth=1.2,
        zorder=zorder,
    )


def _draw(axes: Axes, curve: DistanceCurve, look: Look) -> None:
    """The curve with its 95 % Wilson intervals."""
    _line(axes, curve, look.colour, 3)
    for share in curve.shares:
        ends = wilson(share.hits, share.trials)
        assert ends is not None
        axes.vlines([share.centre], *ends, color=look.colour, linewidth=1.1, alpha=0.5, zorder=2)
    axes.plot(
        [share.centre for share in curve.shares],
        [share.hits / share.trials for share in curve.shares],
        look.marker,
        color=look.colour,
        markersize=4.5,
        zorder=4,
    )


def _name(axes: Axes, curve: DistanceCurve, name: str) -> None:
    """Above the panel: the model's name, and its accuracy over all distances."""
    axes.set_title(units.percent(_right(curve)), loc="right", fontsize=8.5, color=GREY, pad=4)
    text = axes.text(0, 1.04, printable(short(name)), transform=axes.transAxes, fontsize=9, va="bottom")
    fit(text, 1.0)
