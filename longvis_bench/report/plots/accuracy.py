"""Figures of accuracy against cost: one panel per size, with the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.grouping import number
from longvis_bench.report.plots.choice import Point, front, points
from longvis_bench.report.plots.cost import BACKED, Cost, cost_axis, cross, inches, word
from longvis_bench.report.plots.layout import Box, best_place
from longvis_bench.report.plots.style import GREY, MOST, WIDTH, Cast, Look, fit, note, printable, short
from longvis_bench.resolution import Resolution

PANEL_MARGIN = 1.0
"""Inches of a panel outside its axes."""
MOST_PANELS = 8
"""Sizes of a figure, the largest ones."""
MOST_CROWDED = 4
"""The same where there are more models than readers can tell apart."""
MOST_OF_FRONT = 12
"""Points of the front with a style and name in a panel of more models than readers can tell apart."""
COVERED = 0.15
"""Share of a name that a point may cover."""


@dataclass(frozen=True)
class Panel:
    """What one panel shows: the series with an accuracy at a size."""

    size: Resolution
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
    panels = every[-(MOST_PANELS if len(cast.rows.series) <= MOST else MOST_CROWDED) :]
    inner = 2.3 + 0.08 * max(0, max(len(panel.named) for panel in panels) - 7)
    height = 0.65 + (inner + PANEL_MARGIN) * len(panels)
    figure = cast.figure(height, title)
    unnamed = 0
    for index, panel in enumerate(panels):
        bottom = height - 0.85 - (inner + PANEL_MARGIN) * index - inner
        axes = figure.add_axes((0.8 / WIDTH, bottom / height, 1 - 1.12 / WIDTH, inner / height))
        unnamed += _draw_panel(axes, cast, cost, panel)
    text = cast.note(_left_out(cast, every, panels, unnamed))
    if text:
        note(figure, text)
    return figure


def _left_out(cast: Cast, every: Sequence[Panel], shown: Sequence[Panel], unnamed: int) -> str:
    """Which sizes have no panel, and how many points have no name."""
    sizes = sorted(set(cast.rows.sizes) - {panel.size for panel in every})
    more = units.several(len(every) - len(shown), "smaller size")
    parts = [f"No accuracy at {units.listing([str(size) for size in sizes], 6)} px: see summary.md."]
    parts = parts if sizes else []
    parts += [f"Not shown: {more}."] if len(every) > len(shown) else []
    parts += [f"No room for {units.several(unnamed, 'name')}."] if unnamed else []
    return " ".join(parts)


def _panels(cast: Cast, cost: Cost) -> list[Panel]:
    """A panel for each size at which some series has an accuracy, the smallest first."""
    found: dict[Resolution, dict[str, Point]] = {}
    without: dict[Resolution, dict[str, Row]] = {}
    for label, rows in cast.rows.series.items():
        known = points(cast.rows, label, cost.column)
        for size, point in known.items():
            found.setdefault(size, {})[label] = point
        for row in rows:
            if row.cell.resolution not in known:
                without.setdefault(row.cell.resolution, {})[label] = row
    return [_panel(size, found[size], without.get(size, {}), cost) for size in sorted(found)]


def _panel(size: Resolution, at_size: dict[str, Point], lost: dict[str, Row], cost: Cost) -> Panel:
    best = front(at_size, better_up=cost.better_up)
    named = set(at_size) if len(at_size) <= MOST else set(_evenly(best, MOST_OF_FRONT))
    return Panel(size, at_size, best, named, lost)


def _evenly(labels: Sequence[str], most: int) -> list[str]:
    """At most `count` of them, evenly spaced, with the first and the last."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(n * (len(labels) - 1) / (most - 1))] for n in range(most)]


def _draw_panel(axes: Axes, cast: Cast, cost: Cost, panel: Panel) -> int:
    """Draw everything; return how many points got no name, for lack of room."""
    crosses = {label: number(row, cost.column) for label, row in panel.lost.items()}
    crosses = dict(list(crosses.items())[: MOST if len(crosses) <= MOST else MOST_OF_FRONT])
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
    how = axes.set_title(_how_to_read(panel, cost), loc="right", fontsize=8.5, color=GREY, pad=5)
    fit(how, inches(axes)[0] - 0.8)  # the size stands on the left
    if panel.lost:
        _name_lost(axes, cast, panel.lost)
    return _point_labels(axes, cast, cost, panel)


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


def _point_labels(axes: Axes, cast: Cast, cost: Cost, panel: Panel) -> int:
    """Put a label beside each point, where it covers least of points, intervals, labels and the frame.

    Where it would lie on another label, or outside of the figure, it is put farther away with a line to its
    point; where it would there, too, it is left out.  Those on the front come first.

    Returns:
        The number of labels that were left out.
    """
    shown = {label: point for label, point in panel.points.items() if label in panel.named}
    half = 6 * axes.figure.dpi / 72
    centres = [axes.transData.transform((p.cost, p.top1)) for p in shown.values()]
    dots = [Box(x - half, y - half, x + half, y + half) for x, y in centres]
    solid = list(dots)
    solid += [_interval(axes, point, half / 4) for point in shown.values()]
    thin = _steps(axes, [panel.points[label] for label in panel.front if label in panel.named], cost, half)
    frame = Box(*axes.get_window_extent().extents)
    whole = Box(*axes.figure.bbox.extents)
    labels: list[Box] = []
    front = set(panel.front)
    for label in sorted(shown, key=lambda label: (label not in front, shown[label])):
        text = _point_label(axes, shown[label], cast.name(label))
        extent = text.get_window_extent()
        centre = axes.transData.transform(shown[label][:2]).tolist()
        for positions in (_AROUND, _FARTHER):
            boxes = [
                _beside(centre, position, (extent.width, extent.height), axes.figure.dpi)
                for position in positions
            ]
            grown = [_around((box[:2], box[2:]), half / 3) for box in boxes]
            free = [at for at, box in enumerate(boxes) if _is_free(box, whole, labels, dots)]
            if free:
                chosen = free[best_place([grown[at] for at in free], frame, [*solid, *labels], thin)]
                labels.append(grown[chosen])
                _move(text, positions[chosen])
                if positions is _FARTHER:
                    _line_to(axes, shown[label], positions[chosen])
                break
        else:
            text.remove()
    return len(shown) - len(labels)


def _is_free(box: Box, whole: Box, labels: Sequence[Box], dots: Sequence[Box]) -> bool:
    """Whether a label can be read there: inside of the figure, and on no other one nor on a point."""
    if box.area - box.overlap(whole) > 1 or any(box.overlap(other) for other in labels):
        return False
    return all(box.overlap(other) <= COVERED * box.area for other in dots)


def _beside(centre: Sequence[float], position: tuple[float, float], size: Sequence[float], dpi: float) -> Box:
    """The rectangle in pixels of a label of that size, at a position beside its point."""
    left, bottom = (
        at + offset * dpi / 72 - (0.0 if offset > 0 else extent if offset < 0 else extent / 2)
        for at, offset, extent in zip(centre, position, size, strict=True)
    )
    return Box(left, bottom, left + size[0], bottom + size[1])


def _move(label: Annotation, position: tuple[float, float]) -> None:
    label.xyann = position
    label.set(ha=_SIDES[_sign(position[0])], va=_ENDS[_sign(position[1])])


def _sign(offset: float) -> int:
    return (offset > 0) - (offset < 0)


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


def _point_label(axes: Axes, point: Point, name: str) -> Annotation:
    label = axes.annotate(
        printable(short(name)),
        (point.cost, point.top1),
        xytext=_AROUND[0],
        textcoords="offset points",
        fontsize=9,
        annotation_clip=False,
        zorder=2.5,
        bbox=BACKED,
    )
    _move(label, _AROUND[0])
    return label


def _line_to(axes: Axes, point: Point, position: tuple[float, float]) -> None:
    """A thin line from a point to its label."""
    axes.annotate(
        "",
        (point.cost, point.top1),
        xytext=position,
        textcoords="offset points",
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
    )


_SIDES = {1: "left", -1: "right", 0: "center"}
_ENDS = {1: "bottom", -1: "top", 0: "center"}
"""Which end of a label lies at its position, by the sign of the offset from its point."""
_AROUND = ((8, 0), (-8, 0), (0, 7), (0, -7), (6, 5), (6, -5), (-6, 5), (-6, -5))
"""Label positions around a point, in points; the first free one is used."""
_FARTHER = tuple((x, y) for y in (16, -16, 30, -30, 44, -44) for x in (14, -14, 40, -40))
"""Positions that are tried where none of those is free."""
