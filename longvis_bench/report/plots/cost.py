"""Figures of cost against resolution, or a ranking if there is one size.

Each series carries its name, and the exponent it grows with, where its line ends; there are no legends.  What
failed or was not measured is a mark with a word, never a gap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.plots.choice import choose
from longvis_bench.report.plots.layout import pack, round_numbers, spread
from longvis_bench.report.plots.style import GREY, PALE, WIDTH, Cast, Look, fit, note, printable, short
from longvis_bench.resolution import Resolution, axis_in_words, side


@dataclass(frozen=True)
class Cost:
    """One quantity that figures show."""

    column: str
    title: str
    axis: str
    """With its unit if the ticks do not show it."""
    against: str
    format: Callable[[float | None], str]
    better_up: bool = False
    interval: tuple[str, str] | None = None
    """Columns with the ends of its 95 % interval, where it has one."""


LINE_HEIGHT = 0.19
"""Inches from one line of small text to the next."""
BACKED = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
"""Background of text that lies on the grid."""
MOST_FAILURES = 24
"""Failures that a figure names above its axes; it counts further ones."""

COSTS = {
    "throughput": Cost(
        column="throughput_img_s",
        title="Throughput",
        axis="images per second",
        against="throughput",
        format=units.rate,
        better_up=True,
        interval=("throughput_low_img_s", "throughput_high_img_s"),
    ),
    "latency": Cost(
        column="latency_median_s",
        title="Latency of one batch",
        axis="median latency of one batch",
        against="latency",
        format=units.seconds,
        interval=("latency_low_s", "latency_high_s"),
    ),
    "memory": Cost(
        column="peak_memory_bytes",
        title="Peak memory",
        axis="peak memory",
        against="memory",
        format=units.size,
    ),
    "macs": Cost(
        column="macs",
        title="MACs of one image",
        axis="multiply-adds of one image",
        against="MACs",
        format=units.count,
    ),
    "energy": Cost(
        column="energy_j_img",
        title="Energy of one image",
        axis="energy of one image",
        against="energy",
        format=units.joules,
    ),
}


class Failure(NamedTuple):
    """A size at which a series has no value."""

    label: str
    size: Resolution
    word: str


def cost_figure(cast: Cast, cost: Cost) -> Figure | None:
    """A cost against the resolution; a ranking if there is one size, None if no row has a value."""
    rows = cast.rows
    labels, left_out = choose(rows, cost.column, better_up=cost.better_up)
    left_out = cast.note(left_out)
    values = {label: rows.by_size(label, cost.column) for label in labels}
    if not any(values.values()):
        return None
    if len(rows.sizes) == 1:
        return _ranking(
            cast, cost, {label: next(iter(found.values()), None) for label, found in values.items()}, left_out
        )
    return _lines(cast, cost, values, left_out)


def _lines(cast: Cast, cost: Cost, values: dict[str, dict[Resolution, float]], left_out: str) -> Figure:
    """One line per series, its name and exponent at its end, failures above."""
    sizes = cast.rows.sizes
    left, right, bottom = 0.95, 1.85, 0.5 + (LINE_HEIGHT if left_out else 0)
    failures = _failures(cast, cost.column, values)
    named = failures[:MOST_FAILURES]
    positions = _failure_rows(cast, named, sizes, WIDTH - left - right)
    above = LINE_HEIGHT * (max(positions, default=-1) + 1 + (len(failures) > len(named)))
    height = max(3.9, 0.2 * len(values) + 1.3) + above
    figure, axes = _figure(cast, height, cost.title, left=left, right=right, bottom=bottom, top=0.62 + above)
    shown = [value for found in values.values() for value in found.values()]
    for label, found in values.items():
        _draw_line(axes, found, cast.looks[label])
        intervals = _intervals(cast, label, cost)
        _draw_intervals(axes, intervals, cast.looks[label])
        shown += [end for ends in intervals.values() for end in ends]
    _size_axis(axes, sizes)
    cost_axis(axes, "y", cost, shown)
    _end_labels(axes, cast, values, {label: _exponent(cast, label, cost) for label in values})
    for failure, position in zip(named, positions, strict=True):
        _draw_failure(axes, cast, failure, position, to_the_left=failure.size in _right_half(sizes))
    if len(failures) > len(named):
        more = f"and {units.several(len(failures) - len(named), 'more failure')}: see summary.md"
        y = 1.02 + (max(positions) + 1.5) * LINE_HEIGHT / inches(axes)[1]
        axes.text(1, y, more, transform=axes.transAxes, fontsize=8.5, color=GREY, ha="right", va="center")
    if left_out:
        note(figure, left_out)
    return figure


def _draw_line(axes: Axes, values: dict[Resolution, float], look: Look) -> None:
    axes.plot(
        [side(size) for size in values],
        list(values.values()),
        linestyle=look.line,
        marker=look.marker,
        color=look.colour,
        markersize=6,
        linewidth=1.6,
        markeredgecolor="white",
        markeredgewidth=0.6,
        clip_on=False,
    )


def _intervals(cast: Cast, label: str, cost: Cost) -> dict[Resolution, tuple[float, float]]:
    """Resolution -> both ends of the interval, where the cost has one there."""
    if cost.interval is None:
        return {}
    low, high = (cast.rows.by_size(label, column) for column in cost.interval)
    return {size: (low[size], high[size]) for size in low if size in high}


def _draw_intervals(axes: Axes, intervals: dict[Resolution, tuple[float, float]], look: Look) -> None:
    """A bar with caps at each size, which shows where it is taller than the marker."""
    for size, (low, high) in intervals.items():
        axes.plot(
            [side(size), side(size)],
            [low, high],
            color=look.colour,
            linewidth=1.1,
            marker="_",
            markersize=4,
            clip_on=False,
            zorder=1.9,
        )


_RAISED = str.maketrans("0123456789-.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻·")


def _exponent(cast: Cast, label: str, cost: Cost) -> str:
    """The power of the image size R that a series grows with, after its name: " R³·⁶"."""
    grows = cast.rows.growth(label, cost.column)
    return "" if grows is None else " R" + f"{grows.exponent:.1f}".translate(_RAISED)


def _failures(cast: Cast, column: str, values: dict[str, dict[Resolution, float]]) -> list[Failure]:
    """Sizes without a value, each with one word for why."""
    found: dict[tuple[str, Resolution], Failure] = {}
    for label in values:
        for row in cast.rows.series[label]:
            size = row.cell.resolution
            if size not in values[label]:
                found[label, size] = Failure(label, size, word(row))
    return list(found.values())


def word(row: Row) -> str:
    """One word for why a row has no value."""
    return "no value" if row.status == "ok" else row.status.replace("_", " ")


def _right_half(sizes: Sequence[Resolution]) -> list[Resolution]:
    """Sizes whose failure labels stand on the left, where there is room."""
    return [size for size in sizes if side(size) ** 2 > side(sizes[0]) * side(sizes[-1])]


def _failed(cast: Cast, failure: Failure) -> str:
    return f"{short(cast.name(failure.label))}: {failure.word}"


def _failure_rows(
    cast: Cast, failures: Sequence[Failure], sizes: Sequence[Resolution], width: float
) -> list[int]:
    """A row above the axes for each failure, so that no labels overlap; `width` of the axes in inches."""
    spans = []
    right = set(_right_half(sizes))
    for failure in failures:
        x = width * math.log(side(failure.size) / side(sizes[0])) / math.log(side(sizes[-1]) / side(sizes[0]))
        words = 0.2 + 0.078 * len(_failed(cast, failure))
        spans.append((x - words, x + 0.1) if failure.size in right else (x - 0.1, x + words))
    return pack(spans)


def _draw_failure(axes: Axes, cast: Cast, failure: Failure, position: int, *, to_the_left: bool) -> None:
    """A cross above the axes, at its size, and its label."""
    y = 1.02 + (position + 0.5) * LINE_HEIGHT / inches(axes)[1]
    cross(axes, side(failure.size), y, cast.looks[failure.label], axes.get_xaxis_transform())
    axes.annotate(
        printable(_failed(cast, failure)),
        (side(failure.size), y),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-6 if to_the_left else 6, 0),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        va="center",
        fontsize=8.5,
        annotation_clip=False,
    )


def cross(axes: Axes, x: float, y: float, look: Look, transform: Transform) -> None:
    """The marker of a missing value."""
    axes.plot(
        [x],
        [y],
        "x",
        transform=transform,
        clip_on=False,
        color=look.colour,
        markersize=6.5,
        markeredgewidth=1.8,
    )


def _size_axis(axes: Axes, sizes: Sequence[Resolution]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(side(sizes[0]) / 1.1, side(sizes[-1]) * 1.1)
    shown = _apart(sizes)
    axes.set_xticks([side(size) for size in shown], [f"{size} px" for size in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"image size R, {axis_in_words(sizes)}, log scale")


def _apart(sizes: Sequence[Resolution]) -> list[Resolution]:
    """The sizes whose labels have room, always with the largest."""
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        apart = math.log(side(kept[-1]) / side(size))
        if apart > 0.22 * math.log(side(sizes[-1]) / side(sizes[0])):
            kept.append(size)
    return kept[::-1]


def cost_axis(axes: Axes, which: str, cost: Cost, values: Sequence[float], margin: float = 0.06) -> None:
    """A logarithmic axis with few ticks, each with its unit."""
    room = max((max(values) / min(values)) ** margin, 1.12)
    low, high = min(values) / room, max(values) * room
    ticks = round_numbers(
        low, high, binary=cost.column.endswith("_bytes"), apart=0.09 if which == "y" else 0.17
    )
    labels = [_tick(cost.format(tick)) for tick in ticks]
    words = f"{cost.axis}, log scale"
    if which == "y":
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_yticks(ticks, labels)
        axes.set_yticks([], minor=True)
        axes.set_ylabel(words)
    else:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_xticks(ticks, labels)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(words)
    axes.grid(visible=True, axis="both" if which == "x" else "y", color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)


def _tick(text: str) -> str:
    """Drop the decimals of a round number: "10.0 ms" -> "10 ms", "1.50 s" -> "1.5 s"."""
    return re.sub(r"\.0+(?=\s|$)|(\.\d*[1-9])0+(?=\s|$)", r"\1", text)


def _end_labels(
    axes: Axes, cast: Cast, values: dict[str, dict[Resolution, float]], exponents: dict[str, str]
) -> None:
    """Names beside the axes, each with its marker and a thin line to where its series ends."""
    last = {label: list(found.items())[-1] for label, found in values.items() if found}
    ends = {label: (side(size), value) for label, (size, value) in last.items()}
    to_axes = axes.transData + axes.transAxes.inverted()
    starts = {label: to_axes.transform(end) for label, end in ends.items()}
    width, height = inches(axes)
    positions = spread([float(start[1]) for start in starts.values()], LINE_HEIGHT / height, 0.0, 1.0)
    bend, line_end, marker, words = (1 + inch / width for inch in (0.06, 0.15, 0.22, 0.32))
    for (label, start), position in zip(starts.items(), positions, strict=True):
        look = cast.looks[label]
        _leader(axes, [start[0], bend, line_end], [start[1], position, position], look)
        _dot(axes, marker, position, look)
        named = printable(cast.name(label) + exponents[label])
        text = axes.text(words, position, named, transform=axes.transAxes, va="center", fontsize=9)
        fit(text, 1.46, len(exponents[label]))


def _leader(axes: Axes, x: list[float], y: list[float], look: Look) -> None:
    """A line from the end of a series to its name; dotted, so that it does not look like data."""
    axes.plot(
        x,
        y,
        transform=axes.transAxes,
        clip_on=False,
        color=look.colour,
        linewidth=0.9,
        linestyle=(0, (1, 2)),
        zorder=1,
    )


def _dot(axes: Axes, x: float, y: float, look: Look) -> None:
    """A series' marker beside its name."""
    axes.plot(
        [x],
        [y],
        marker=look.marker,
        markersize=5.5,
        color=look.colour,
        transform=axes.transAxes,
        clip_on=False,
    )


# One size only ------------------------------------------------------------------------------------------


def _ranking(cast: Cast, cost: Cost, values: dict[str, float | None], left_out: str) -> Figure:
    """Series ranked by their value at the only size; those without a value last, with a cross."""
    lost = {f.label: f.word for f in _failures(cast, cost.column, {label: {} for label in values})}
    sign, series = -1 if cost.better_up else 1, list(cast.rows.series)
    place_of = {label: position for position, label in enumerate(series)}
    order = sorted(
        values, key=lambda label: (values[label] is None, sign * (values[label] or 0), place_of[label])
    )
    bottom = 0.55 + (LINE_HEIGHT if left_out else 0)
    height = 0.26 * len(order) + 0.85 + bottom
    title = f"{cost.title} at {cast.rows.sizes[0]} px"
    figure, axes = _figure(cast, height, title, left=1.65, right=0.75, bottom=bottom, top=0.7)
    cost_axis(axes, "x", cost, [value for value in values.values() if value is not None])
    axes.set_ylim(len(order) - 0.5, -0.5)
    for position, label in enumerate(order):
        value, look = values[label], cast.looks[label]
        if value is None:
            cross(axes, 0.02, position, look, axes.get_yaxis_transform())
            _beside(axes, 0.02, position, lost[label], axes.get_yaxis_transform())
        else:
            axes.plot([value], [position], marker=look.marker, color=look.colour, markersize=7.5)
            _beside(axes, value, position, cost.format(value), axes.transData)
    axes.set_yticks(range(len(order)), [printable(cast.name(label)) for label in order])
    for text in axes.get_yticklabels():
        fit(text, 1.45)
    axes.tick_params(axis="y", length=0)
    if left_out:
        note(figure, left_out)
    return figure


def _beside(axes: Axes, x: float, y: float, text: str, transform: Transform) -> None:
    axes.annotate(
        text,
        (x, y),
        xycoords=transform,
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        annotation_clip=False,
        bbox=BACKED,
    )


# Every figure -------------------------------------------------------------------------------------------


def _figure(
    cast: Cast, height: float, title: str, *, left: float, right: float, bottom: float, top: float
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; margins in inches."""
    figure = cast.figure(height, title)
    inner = ((WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    return figure, figure.add_axes((left / WIDTH, bottom / height, *inner))


def inches(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes."""
    extent = axes.get_window_extent()
    return extent.width / axes.figure.dpi, extent.height / axes.figure.dpi
