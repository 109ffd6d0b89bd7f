"""Figures of accuracy against cost: one panel per size, with the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.grouping import number
from longvis_bench.report.plots.choice import Point, front, points
from longvis_bench.report.plots.cost import BACKED, Cost, cost_axis, cross, inches, word
from longvis_bench.report.plots.layout import Box, best_place
from longvis_bench.report.plots.style import GREY, MOST, WIDTH, Cast, Look, note, printable, short

PANEL_MARGIN = 1.0
"""Inches of a panel outside its axes."""
MOST_PANELS = 8
"""Sizes of a figure, the largest ones."""


@dataclass(frozen=True)
class Panel:
    """What one panel shows: the series with an accuracy at a size."""

    size: int
    points: dict[str, Point]
    front: list[str]
    """Labels on the Pareto front, by rising cost."""
    named: set[str]
    """Labels drawn in their style and with their name; all others are grey dots."""
    lost: dict[str, Row]
    """Series at this size that have no accuracy."""


def accuracy_figure(cast: Cast, cost: Cost) -> Figure | None:
    """One panel per size: top-1 against a cost, and the Pareto front; None where no row has a top-1."""
    title = f"Accuracy against {cost.against}"
    every = _panels(cast, cost)
    if not every:
        return None
    panels = every[-MOST_PANELS:]
    inner = 2.3 + 0.08 * max(0, max(len(panel.named) for panel in panels) - 7)
    height = 0.65 + (inner + PANEL_MARGIN) * len(panels)
    figure = cast.figure(height, title)
    text = cast.note(_left_out(cast, every, panels))
    if text:
        note(figure, text)
    for index, panel in enumerate(panels):
        bottom = height - 0.85 - (inner + PANEL_MARGIN) * index - inner
        axes = figure.add_axes((0.8 / WIDTH, bottom / height, 1 - 1.12 / WIDTH, inner / height))
        _draw_panel(axes, cast, cost, panel)
    return figure


def _left_out(cast: Cast, every: Sequence[Panel], shown: Sequence[Panel]) -> str:
    """Which sizes have no panel."""
    sizes = sorted(set(cast.rows.sizes) - {panel.size for panel in every})
    more = units.several(len(every) - len(shown), "smaller size")
    parts = [f"No accuracy at {units.listing([str(size) for size in sizes], 6)} px: see summary.md."]
    parts = parts if sizes else []
    return " ".join([*parts, *([f"Not shown: {more}."] if len(every) > len(shown) else [])])


def _panels(cast: Cast, cost: Cost) -> list[Panel]:
    """A panel for each size at which some series has an accuracy, the smallest first."""
    found: dict[int, dict[str, Point]] = {}
    without: dict[int, dict[str, Row]] = {}
    for label, rows in cast.rows.series.items():
        known = points(rows, cost.column)
        for size, point in known.items():
            found.setdefault(size, {})[label] = point
        for row in rows:
            if row.cell.resolution not in known:
                without.setdefault(row.cell.resolution, {})[label] = row
    return [_panel(size, found[size], without.get(size, {}), cost) for size in sorted(found)]


def _panel(size: int, at_size: dict[str, Point], lost: dict[str, Row], cost: Cost) -> Panel:
    best = front(at_size, better_up=cost.better_up)
    named = set(at_size) if len(at_size) <= MOST else set(_evenly(best, MOST))
    return Panel(size, at_size, best, named, lost)


def _evenly(labels: Sequence[str], most: int) -> list[str]:
    """At most `count` of them, evenly spaced, with the first and the last."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(n * (len(labels) - 1) / (most - 1))] for n in range(most)]


def _draw_panel(axes: Axes, cast: Cast, cost: Cost, panel: Panel) -> None:
    crosses = {label: number(row, cost.column) for label, row in panel.lost.items()}
    crosses = dict(list(crosses.items())[:MOST])
    costs = [p.cost for p in panel.points.values()] + [mark for mark in crosses.values() if mark]
    cost_axis(axes, "x", cost, costs, 0.14)
    _top1_axis(axes, list(panel.points.values()))
    _draw_front(axes, [panel.points[label] for label in panel.front], cost)
    _draw_others(axes, [point for label, point in panel.points.items() if label not in panel.named])
    for label, point in panel.points.items():
        if label in panel.named:
            _draw_point(axes, point, cast.looks[label], on_front=label in panel.front)
    for label, mark in crosses.items():
        if mark:
            cross(axes, mark, 0.0, cast.looks[label], axes.get_xaxis_transform())
    axes.set_title(f"{panel.size} px", loc="left", fontsize=10, fontweight="bold", pad=5)
    axes.set_title(_how_to_read(panel, cost), loc="right", fontsize=8.5, color=GREY, pad=5)
    if panel.lost:
        _name_lost(axes, cast, panel.lost)
    _point_labels(axes, cast, cost, panel)


def _how_to_read(panel: Panel, cost: Cost) -> str:
    better = "right" if cost.better_up else "left"
    grey = len(panel.points) - len(panel.named)
    others = f"; grey: {units.several(grey, 'other model')}" if grey else ""
    return f"filled: Pareto front; up and {better} is better{others}"


def _name_lost(axes: Axes, cast: Cast, lost: dict[str, Row]) -> None:
    """Below the panel: which series have no accuracy."""
    words = [
        short(cast.name(label)) + (f" ({word(row)})" if row.status != "ok" else "")
        for label, row in lost.items()
    ]
    text = textwrap.shorten(f"× without top-1: {units.listing(words, 4)}", 80, placeholder=" ...")
    below = -0.52 / inches(axes)[1]
    axes.text(0, below, printable(text), transform=axes.transAxes, fontsize=8.5, color=GREY, va="top")


def _draw_front(axes: Axes, best: Sequence[Point], cost: Cost) -> None:
    """Draw the front as steps: no model reaches the points between two models."""
    ordered = sorted(best)
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


def _draw_others(axes: Axes, others: Sequence[Point]) -> None:
    """Points that readers could not tell apart, as grey dots."""
    if others:
        axes.plot(
            [point.cost for point in others],
            [point.top1 for point in others],
            ".",
            color="#BBBBBB",
            markersize=3,
            zorder=1,
        )


def _draw_point(axes: Axes, point: Point, look: Look, *, on_front: bool) -> None:
    """A point and its interval, drawn above the label boxes so that no box hides it."""
    axes.vlines([point.cost], point.low, point.high, color=look.colour, linewidth=1.1, alpha=0.6, zorder=2.7)
    axes.plot(
        [point.cost],
        [point.top1],
        marker=look.marker,
        markersize=7.5,
        color=look.colour,
        markerfacecolor=look.colour if on_front else "white",
        zorder=3,
    )


def _top1_axis(axes: Axes, every: Sequence[Point]) -> None:
    low, high = min(point.low for point in every), max(point.high for point in every)
    room = 0.06 * (high - low) + 0.01
    axes.set_ylim(low - room, high + room)
    step = next((step for step in (0.02, 0.05, 0.1) if (high - low) / step <= 6), 0.2)
    ticks = [step * n for n in range(round(1 / step) + 1) if low - room <= step * n <= high + room]
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.set_ylabel("top-1 accuracy")


def _point_labels(axes: Axes, cast: Cast, cost: Cost, panel: Panel) -> None:
    """Put a label beside each point, where it covers least of points, intervals, labels and the frame."""
    shown = {label: point for label, point in panel.points.items() if label in panel.named}
    half = 6 * axes.figure.dpi / 72
    centres = [axes.transData.transform((p.cost, p.top1)) for p in shown.values()]
    solid = [Box(x - half, y - half, x + half, y + half) for x, y in centres]
    solid += [_interval(axes, point, half / 4) for point in shown.values()]
    thin = _steps(axes, [panel.points[label] for label in panel.front if label in panel.named], cost, half)
    frame = Box(*axes.get_window_extent().extents)
    for label in sorted(shown, key=lambda label: shown[label]):
        texts = [_point_label(axes, shown[label], cast.name(label), position) for position in _AROUND]
        boxes = [_around(text.get_window_extent().get_points().tolist(), half / 3) for text in texts]
        chosen = best_place(boxes, frame, solid, thin)
        solid.append(boxes[chosen])
        _keep(texts, chosen)


def _keep(texts: Sequence[Text], chosen: int) -> None:
    for index, text in enumerate(texts):
        if index != chosen:
            text.remove()


def _interval(axes: Axes, point: Point, half: float) -> Box:
    """The error bar of a point, in pixels."""
    (x, low), (_, high) = (axes.transData.transform((point.cost, end)) for end in (point.low, point.high))
    return Box(x - half, low, x + half, high)


def _steps(axes: Axes, best: Collection[Point], cost: Cost, half: float) -> list[Box]:
    """The lines of the front, in pixels."""
    found = []
    for one, other in pairwise(sorted(best)):
        corner = (one.cost, other.top1) if cost.better_up else (other.cost, one.top1)
        found += [
            _around(axes.transData.transform([corner, end[:2]]).tolist(), half / 2) for end in (one, other)
        ]
    return found


def _around(corners: Sequence[Sequence[float]], margin: float) -> Box:
    """The rectangle of two corners in pixels, with a margin."""
    (x, y), (u, v) = corners
    return Box(min(x, u) - margin, min(y, v) - margin, max(x, u) + margin, max(y, v) + margin)


def _point_label(axes: Axes, point: Point, name: str, position: tuple[float, float]) -> Text:
    dx, dy = position
    return axes.annotate(
        printable(short(name)),
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
"""Label positions around a point, in points; the first free one is used."""
