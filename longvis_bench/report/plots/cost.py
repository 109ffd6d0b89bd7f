"""Rows -> figures: cost against resolution, accuracy against cost.

Each series carries its name, and the exponent it grows with, where its line ends; there are no legends.  What
failed or was not measured is a mark with a word, never a gap.  A family has the same colour and marker in
every figure; variants of one family differ in their line.  Figures are made without pyplot, so nothing global
changes, and the same rows give the same SVG, byte for byte.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Transform

from longvis_bench import stats, units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME, null_reason
from longvis_bench.report.footnotes import template
from longvis_bench.report.grouping import by_size, growth, number, series
from longvis_bench.report.plots.layout import Box, best_place, pack, round_numbers, spread
from longvis_bench.report.plots.style import (
    DPI,
    GREY,
    PALE,
    WIDTH,
    Look,
    empty,
    fit,
    looks,
    printable,
    short,
    style,
)


@dataclass(frozen=True)
class Cost:
    """One quantity that figures show."""

    column: str
    title: str
    axis: str
    against: str
    format: Callable[[float | None], str]
    better_up: bool = False


LINE_HEIGHT = 0.19
"""Inches from one line of small text to the next."""
BACKED = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
"""Behind words that lie on the grid."""

COSTS = {
    "throughput": Cost(
        column="throughput_img_s",
        title="Throughput, images per second",
        axis="images per second",
        against="throughput",
        format=units.rate,
        better_up=True,
    ),
    "latency": Cost(
        column="latency_median_s",
        title="Latency of one batch",
        axis="median latency of one batch",
        against="latency",
        format=units.seconds,
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
        axis="MACs of one image",
        against="MACs",
        format=units.count,
    ),
}


class Point(NamedTuple):
    """One model's accuracy at what cost."""

    cost: float
    top1: float
    low: float
    high: float


class Failure(NamedTuple):
    """A size at which a series has no value."""

    label: str
    size: int
    word: str


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """All figures by name; one without anything to show says why, in words.

    Arguments:
        rows: of one or many models and sizes; failed ones too.
    """
    with style():
        drawn = {name: _against_resolution(rows, cost) for name, cost in COSTS.items()}
        drawn["accuracy-throughput"] = _accuracy(rows, COSTS["throughput"])
        drawn["accuracy-macs"] = _accuracy(rows, COSTS["macs"])
    return drawn


def write_plots(rows: Sequence[Row], folder: Path, more: Mapping[str, Figure] | None = None) -> list[Path]:
    """Write every figure as PNG (200 dpi) and SVG (text as text); return the files.

    Arguments:
        rows: as `figures` takes them.
        folder: made if it is not there.
        more: figures of what is not in the rows, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in {**figures(rows), **(more or {})}.items():
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        with style():
            figure.savefig(png, dpi=DPI, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None, "Creator": "longvis-bench"})
        written += [png, svg]
    return written


# Cost against resolution --------------------------------------------------------------------------------


def _against_resolution(rows: Sequence[Row], cost: Cost) -> Figure:
    values = {label: by_size(one, cost.column) for label, one in series(rows).items()}
    if not any(values.values()):
        return _in_words(cost.title, rows, cost.column)
    if len({row.cell.resolution for row in rows}) == 1:
        return _ranking(rows, cost, {label: next(iter(v.values()), None) for label, v in values.items()})
    return _lines(rows, cost, values)


def _lines(rows: Sequence[Row], cost: Cost, values: dict[str, dict[int, float]]) -> Figure:
    """One line a series, its name and exponent at its end, failures above."""
    sizes, look = sorted({row.cell.resolution for row in rows}), looks(rows)
    left, right = 0.75, 1.85
    failures = _failures(rows, cost.column, values)
    places = _failure_rows(failures, sizes, WIDTH - left - right)
    above = LINE_HEIGHT * (max(places, default=-1) + 1)
    height = max(3.9, 0.2 * len(values) + 1.3) + above
    figure, axes = _figure(height, cost.title, rows, left=left, right=right, bottom=0.5, top=0.62 + above)
    for label, found in values.items():
        _draw_line(axes, found, look[label])
    _size_axis(axes, sizes)
    _cost_axis(axes, "y", cost, [value for found in values.values() for value in found.values()])
    names = {label: _named(label, one, cost) for label, one in series(rows).items()}
    _end_labels(axes, values, names, look)
    for failure, place in zip(failures, places, strict=True):
        _draw_failure(axes, failure, place, look[failure.label], failure.size in _right_half(sizes))
    return figure


def _draw_line(axes: Axes, values: dict[int, float], look: Look) -> None:
    axes.plot(
        list(values),
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


def _named(label: str, rows: Sequence[Row], cost: Cost) -> str:
    """Name of a series and the exponent it grows with."""
    grows = growth(rows, cost.column)
    return label if grows is None else f"{label} R^{grows.exponent:.1f}"


def _failures(rows: Sequence[Row], column: str, values: dict[str, dict[int, float]]) -> list[Failure]:
    """Sizes without a value, each with one word for why."""
    found: dict[tuple[str, int], Failure] = {}
    for label, one in series(rows).items():
        for row in one:
            size = row.cell.resolution
            if size not in values[label]:
                found[label, size] = Failure(label, size, _word(row))
    return list(found.values())


def _word(row: Row) -> str:
    return "no value" if row.status == "ok" else row.status.replace("_", " ")


def _right_half(sizes: Sequence[int]) -> list[int]:
    """Sizes whose failures have their words on the left, where there is room."""
    return [size for size in sizes if size**2 > sizes[0] * sizes[-1]]


def _failure_rows(failures: Sequence[Failure], sizes: Sequence[int], width: float) -> list[int]:
    """A row above the axes for each failure, so that no words overlap; `width` of the axes in inches."""
    spans = []
    for failure in failures:
        x = width * math.log(failure.size / sizes[0]) / math.log(sizes[-1] / sizes[0])
        words = 0.2 + 0.078 * len(f"{short(failure.label)}: {failure.word}")
        spans.append((x - words, x + 0.1) if failure.size in _right_half(sizes) else (x - 0.1, x + words))
    return pack(spans)


def _draw_failure(axes: Axes, failure: Failure, place: int, look: Look, to_the_left: bool) -> None:
    """A cross above the axes, at its size, and the word for it."""
    y = 1.02 + (place + 0.5) * LINE_HEIGHT / _inches(axes)[1]
    _cross(axes, failure.size, y, look, axes.get_xaxis_transform())
    axes.annotate(
        printable(f"{short(failure.label)}: {failure.word}"),
        (failure.size, y),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-6 if to_the_left else 6, 0),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        va="center",
        fontsize=8.5,
        annotation_clip=False,
    )


def _cross(axes: Axes, x: float, y: float, look: Look, transform: Transform) -> None:
    """The mark of what is not there."""
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


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / 1.1, sizes[-1] * 1.1)
    shown = _apart(sizes)
    axes.set_xticks(shown, [str(size) for size in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("image size R, pixels per side")


def _apart(sizes: Sequence[int]) -> list[int]:
    """The sizes whose labels have room, the largest always."""
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log(kept[-1] / size) > 0.14 * math.log(sizes[-1] / sizes[0]):
            kept.append(size)
    return kept[::-1]


def _cost_axis(axes: Axes, which: str, cost: Cost, values: Sequence[float], margin: float = 0.06) -> None:
    """A logarithmic axis with few ticks, each with its unit."""
    room = max((max(values) / min(values)) ** margin, 1.12)
    low, high = min(values) / room, max(values) * room
    ticks = round_numbers(
        low, high, binary=cost.column.endswith("_bytes"), apart=0.09 if which == "y" else 0.17
    )
    labels = [_tick(cost.format(tick)) for tick in ticks]
    if which == "y":
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_yticks(ticks, labels)
        axes.set_yticks([], minor=True)
    else:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_xticks(ticks, labels)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(cost.axis)
    axes.grid(visible=True, axis="both" if which == "x" else "y", color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)


def _tick(text: str) -> str:
    """A round number needs no decimals: "10.0 ms" -> "10 ms", "1.50 s" -> "1.5 s"."""
    return re.sub(r"\.0+(?=\s|$)|(\.\d*[1-9])0+(?=\s|$)", r"\1", text)


def _end_labels(
    axes: Axes, values: dict[str, dict[int, float]], names: dict[str, str], look: dict[str, Look]
) -> None:
    """Names beside the axes, each with its marker and a thin line to where its series ends."""
    ends = {label: list(found.items())[-1] for label, found in values.items() if found}
    to_axes = axes.transData + axes.transAxes.inverted()
    starts = {label: to_axes.transform(end) for label, end in ends.items()}
    width, height = _inches(axes)
    places = spread([float(start[1]) for start in starts.values()], LINE_HEIGHT / height, 0.0, 1.0)
    bend, line_end, marker, words = (1 + inches / width for inches in (0.06, 0.15, 0.22, 0.32))
    for (label, start), place in zip(starts.items(), places, strict=True):
        style = look[label]
        _leader(axes, [start[0], bend, line_end], [start[1], place, place], style)
        _dot(axes, marker, place, style)
        text = axes.text(
            words, place, printable(names[label]), transform=axes.transAxes, va="center", fontsize=9
        )
        fit(text, 1.46, len(names[label]) - len(label))


def _leader(axes: Axes, x: list[float], y: list[float], look: Look) -> None:
    """From where a series ends to its name; dotted, so that nobody takes it for data."""
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


def _ranking(rows: Sequence[Row], cost: Cost, values: dict[str, float | None]) -> Figure:
    """Series ranked by their value at the only size; those without one at the end, with a cross."""
    look = looks(rows)
    lost = {f.label: f.word for f in _failures(rows, cost.column, {label: {} for label in values})}
    sign = -1 if cost.better_up else 1
    order = sorted(values, key=lambda label: (values[label] is None, sign * (values[label] or 0), label))
    height = 0.26 * len(order) + 1.4
    title = f"{cost.title} at {rows[0].cell.resolution} px"
    figure, axes = _figure(height, title, rows, left=1.65, right=0.75, bottom=0.55, top=0.7)
    _cost_axis(axes, "x", cost, [value for value in values.values() if value is not None])
    axes.set_ylim(len(order) - 0.5, -0.5)
    for place, label in enumerate(order):
        value = values[label]
        if value is None:
            _cross(axes, 0.02, place, look[label], axes.get_yaxis_transform())
            _beside(axes, 0.02, place, lost[label], axes.get_yaxis_transform())
        else:
            axes.plot([value], [place], marker=look[label].marker, color=look[label].colour, markersize=7.5)
            _beside(axes, value, place, cost.format(value), axes.transData)
    axes.set_yticks(range(len(order)), [printable(label) for label in order])
    for text in axes.get_yticklabels():
        fit(text, 1.45)
    axes.tick_params(axis="y", length=0)
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


# Accuracy against cost ----------------------------------------------------------------------------------

PANEL_MARGIN = 0.95
"""Inches of a panel that are not axes."""


def _accuracy(rows: Sequence[Row], cost: Cost) -> Figure:
    """One panel a size: top-1 with its interval against a cost, and the Pareto front."""
    title = f"Accuracy against {cost.against}"
    points = {label: _points(one, cost) for label, one in series(rows).items()}
    sizes = sorted({size for found in points.values() for size in found})
    if not sizes:
        return _in_words(title, rows, "top1")
    most = max(sum(size in found for found in points.values()) for size in sizes)
    inner = 2.3 + 0.08 * max(0, most - 7)
    height = 0.65 + (inner + PANEL_MARGIN) * len(sizes)
    figure = empty(height, title, rows)
    without = sorted({row.cell.resolution for row in rows} - set(sizes))
    if without:
        text = f"No accuracy at {', '.join(map(str, without))} px: see summary.md for the reasons."
        figure.text(0.1 / WIDTH, 0.06 / height, text, fontsize=8.5, color=GREY)
    for index, size in enumerate(sizes):
        bottom = height - 0.85 - (inner + PANEL_MARGIN) * index - inner
        axes = figure.add_axes((0.65 / WIDTH, bottom / height, 1 - 0.85 / WIDTH, inner / height))
        at_size = {label: found[size] for label, found in points.items() if size in found}
        _draw_panel(axes, rows, cost, size, at_size)
    return figure


def _points(rows: Sequence[Row], cost: Cost) -> dict[int, Point]:
    """Size -> point, of the rows that are ok and have both."""
    found = {}
    for row in rows:
        values = [number(row, name) for name in (cost.column, "top1", "top1_low", "top1_high")]
        known = [value for value in values if value is not None]
        if row.status == "ok" and len(known) == 4 and known[0] > 0:
            found[row.cell.resolution] = Point(*known)
    return found


def _draw_panel(axes: Axes, rows: Sequence[Row], cost: Cost, size: int, points: dict[str, Point]) -> None:
    look, sign = looks(rows), -1 if cost.better_up else 1
    front = [list(points)[i] for i in stats.pareto_front([(sign * p.cost, p.top1) for p in points.values()])]
    lost = {
        label: row
        for label, one in series(rows).items()
        for row in one
        if row.cell.resolution == size and label not in points
    }
    marks = {label: number(row, cost.column) for label, row in lost.items()}
    _cost_axis(axes, "x", cost, [p.cost for p in points.values()] + [m for m in marks.values() if m], 0.14)
    _top1_axis(axes, list(points.values()))
    _draw_front(axes, [points[label] for label in front], cost)
    for label, point in points.items():
        _draw_point(axes, point, look[label], on_front=label in front)
    for label, mark in marks.items():
        if mark:
            _cross(axes, mark, 0.0, look[label], axes.get_xaxis_transform())
    better = "right" if cost.better_up else "left"
    axes.set_title(f"{size} px", loc="left", fontsize=10, fontweight="bold", pad=5)
    axes.set_title(
        f"filled: Pareto front; up and {better} is better", loc="right", fontsize=8.5, color=GREY, pad=5
    )
    if lost:
        words = [
            short(label) + (f" ({_word(row)})" if row.status != "ok" else "") for label, row in lost.items()
        ]
        text = textwrap.shorten(f"× without top-1: {units.listing(words, 4)}", 80, placeholder=" ...")
        below = -0.5 / _inches(axes)[1]
        axes.text(0, below, printable(text), transform=axes.transAxes, fontsize=8.5, color=GREY, va="top")
    _point_labels(axes, points, [points[label] for label in front], cost)


def _draw_front(axes: Axes, front: Sequence[Point], cost: Cost) -> None:
    """Steps, for what lies between two models is reached by neither."""
    ordered = sorted(front)
    steps = "steps-pre" if cost.better_up else "steps-post"
    axes.plot(
        [point.cost for point in ordered],
        [point.top1 for point in ordered],
        drawstyle=steps,
        color=GREY,
        linewidth=1.0,
        linestyle=(0, (4, 2)),
        zorder=2,
    )


def _draw_point(axes: Axes, point: Point, look: Look, *, on_front: bool) -> None:
    axes.vlines([point.cost], point.low, point.high, color=look.colour, linewidth=1.1, alpha=0.45, zorder=1)
    face = look.colour if on_front else "white"
    axes.plot(
        [point.cost],
        [point.top1],
        marker=look.marker,
        markersize=7.5,
        color=look.colour,
        markerfacecolor=face,
        zorder=3,
    )


def _top1_axis(axes: Axes, points: Sequence[Point]) -> None:
    low, high = min(point.low for point in points), max(point.high for point in points)
    room = 0.06 * (high - low) + 0.01
    axes.set_ylim(low - room, high + room)
    step = next((step for step in (0.02, 0.05, 0.1) if (high - low) / step <= 6), 0.2)
    ticks = [step * n for n in range(round(1 / step) + 1) if low - room <= step * n <= high + room]
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])


def _point_labels(axes: Axes, points: dict[str, Point], front: Sequence[Point], cost: Cost) -> None:
    """A name beside each point, where it covers least of points, names, intervals and the frame."""
    figure = axes.figure
    half = 6 * figure.dpi / 72
    centres = {label: axes.transData.transform((p.cost, p.top1)) for label, p in points.items()}
    solid = [Box(x - half, y - half, x + half, y + half) for x, y in centres.values()]
    thin = []
    for point in points.values():
        (x, low), (_, high) = (axes.transData.transform((point.cost, end)) for end in (point.low, point.high))
        thin.append(Box(x - half / 4, low, x + half / 4, high))
    for one, other in pairwise(sorted(front)):
        corner = (one.cost, other.top1) if cost.better_up else (other.cost, one.top1)
        for end in (one, other):
            thin.append(_around(axes.transData.transform([corner, end[:2]]).tolist(), half / 2))
    frame = Box(*axes.get_window_extent().extents)
    for label in sorted(points, key=lambda label: points[label]):
        texts = [_point_label(axes, points[label], label, place) for place in _AROUND]
        boxes = [_around(text.get_window_extent().get_points().tolist(), half / 3) for text in texts]
        chosen = best_place(boxes, frame, solid, thin)
        solid.append(boxes[chosen])
        for index, text in enumerate(texts):
            if index != chosen:
                text.remove()


def _around(corners: Sequence[Sequence[float]], margin: float) -> Box:
    """The rectangle of two corners in pixels, with a margin."""
    (x, y), (u, v) = corners
    return Box(min(x, u) - margin, min(y, v) - margin, max(x, u) + margin, max(y, v) + margin)


def _point_label(axes: Axes, point: Point, label: str, place: tuple[float, float]) -> Text:
    dx, dy = place
    return axes.annotate(
        printable(short(label)),
        (point.cost, point.top1),
        xytext=(dx, dy),
        textcoords="offset points",
        ha="left" if dx > 0 else "right" if dx < 0 else "center",
        va="bottom" if dy > 0 else "top" if dy < 0 else "center",
        fontsize=9,
        annotation_clip=False,
        zorder=2.5,
        bbox=BACKED,
    )


_AROUND = ((8, 0), (-8, 0), (0, 7), (0, -7), (6, 5), (6, -5), (-6, 5), (-6, -5))
"""Places around a point, in points; the first that is free is taken."""


# Every figure -------------------------------------------------------------------------------------------


def _figure(
    height: float, title: str, rows: Sequence[Row], *, left: float, right: float, bottom: float, top: float
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; margins in inches."""
    figure = empty(height, title, rows)
    inner = ((WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    return figure, figure.add_axes((left / WIDTH, bottom / height, *inner))


def _inches(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes."""
    extent = axes.get_window_extent()
    return extent.width / axes.figure.dpi, extent.height / axes.figure.dpi


def _in_words(title: str, rows: Sequence[Row], column: str) -> Figure:
    """A figure that says why there is nothing to show."""
    figure = empty(2.0, title, rows)
    text = textwrap.fill(printable(_why_nothing(rows, column)), 74, max_lines=6)
    figure.text(0.1 / WIDTH, 0.6, text, fontsize=9.5, va="top", linespacing=1.3)
    return figure


def _why_nothing(rows: Sequence[Row], column: str) -> str:
    """Words for a figure without a single value."""
    if not rows:
        return "Nothing to show: there are no rows yet."
    reasons = [template(null_reason(BY_NAME[column], row) or row.status, row) for row in rows]
    common = max(sorted(set(reasons)), key=reasons.count)
    share = f"{reasons.count(common)} of {units.several(len(rows), 'cell')}"
    return f"Nothing to show: no cell has a value that counts. The reason of {share}: {common}"
