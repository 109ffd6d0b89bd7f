"""The figure of `longvis mixers`: latency, peak memory and MACs against the number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longvis_bench.errors import LongvisError
from longvis_bench.report.mixers import MixerRow
from longvis_bench.report.plots.layout import round_numbers, spread
from longvis_bench.report.plots.style import (
    DPI,
    GREY,
    INK,
    LINES,
    OTHER_COLOURS,
    OTHER_MARKERS,
    WIDTH,
    Look,
    family_marks,
    fit,
    printable,
)

_PANEL, _TOP, _BOTTOM, _LEFT, _RIGHT = 4.0, 0.62, 0.6, 0.75, 1.65
_GIB = 1 << 30


class Quantity(NamedTuple):
    """What a panel shows."""

    title: str
    unit: str
    value: Callable[[MixerRow], float | None]


MEASURED = (
    Quantity("latency", "seconds", lambda each: each.latency_s),
    Quantity("peak memory", "GiB", lambda each: _scaled(each.memory_bytes, _GIB)),
)
"""Of each mode."""
COUNTED = Quantity("MACs of one block's mixer", "giga-MACs", lambda each: _scaled(each.mixer_macs, 1e9))
"""Of one image, whatever the mode."""


def mixers_figure(rows: Sequence[MixerRow]) -> Figure:
    """A panel per mode and quantity, a curve per mixer.

    Raises:
        LongvisError: no row has a value.
    """
    panels = list(_panels(rows))
    if not panels:
        raise LongvisError("there is nothing to draw: no mixer has a latency, a memory or a count.")
    looks = _looks([each.label for each in rows])
    height = _TOP + len(panels) * _PANEL
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.text(0.1 / WIDTH, 1 - 0.1 / height, "Token mixers", fontsize=12, fontweight="bold", va="top")
    said = figure.text(0.1 / WIDTH, 1 - 0.34 / height, _conditions(rows), fontsize=8.5, color=GREY, va="top")
    fit(said, WIDTH - 0.2)
    for place, (title, unit, curves) in enumerate(panels):
        bottom = _BOTTOM + (len(panels) - 1 - place) * _PANEL
        room = (WIDTH - _LEFT - _RIGHT, _PANEL - _BOTTOM - 0.25)
        box = (_LEFT / WIDTH, bottom / height, room[0] / WIDTH, room[1] / height)
        _draw(figure.add_axes(box), curves, looks, title, unit)
    return figure


Curves = dict[str, dict[int, float]]


def _panels(rows: Sequence[MixerRow]) -> list[tuple[str, str, Curves]]:
    """Title, unit and curves of each panel that has a value."""
    found = [
        (f"{quantity.title}, {mode}", quantity, [each for each in rows if each.row.cell.mode == mode])
        for mode in dict.fromkeys(each.row.cell.mode for each in rows)
        for quantity in MEASURED
    ]
    found.append((COUNTED.title, COUNTED, list(rows)))
    panels = [(title, quantity.unit, _curves(some, quantity)) for title, quantity, some in found]
    return [panel for panel in panels if panel[2]]


def _curves(rows: Sequence[MixerRow], quantity: Quantity) -> Curves:
    """Label -> tokens -> value; values that are not positive cannot be drawn."""
    curves: Curves = {}
    for each in rows:
        value = quantity.value(each)
        if value is not None and value > 0:
            curves.setdefault(each.label, {})[each.side**2] = value
    return curves


def _draw(axes: Axes, curves: Curves, looks: dict[str, Look], title: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for label, curve in curves.items():
        colour, marker, line = looks[label]
        xs = sorted(curve)
        axes.plot(
            xs,
            [curve[x] for x in xs],
            color=colour,
            marker=marker,
            linestyle=line,
            linewidth=1.4,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=3,
        )
    sizes = sorted({x for curve in curves.values() for x in curve})
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.minorticks_off()
    axes.tick_params(labelsize=7.5)
    ticks = round_numbers(*axes.get_ylim())
    axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.yaxis.minorticks_off()
    axes.set_xlabel("tokens")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    _end_labels(axes, curves, looks)


def _end_labels(axes: Axes, curves: Curves, looks: dict[str, Look]) -> None:
    """The name of each curve beside its end, with a line to it."""
    axes.set_ylim(axes.get_ylim())
    transform = axes.transData + axes.transAxes.inverted()
    ends = [transform.transform((max(curve), curve[max(curve)])) for curve in curves.values()]
    places = spread([float(y) for _, y in ends], 0.047, 0, 1)
    for label, (x, y), place in zip(curves, ends, places, strict=True):
        colour = looks[label].colour
        axes.plot(
            [float(x), 1.03],
            [float(y), place],
            transform=axes.transAxes,
            color=colour,
            linewidth=0.4,
            clip_on=False,
        )
        axes.text(
            1.04, place, printable(label), transform=axes.transAxes, color=colour, fontsize=7.5, va="center"
        )


def _looks(labels: Sequence[str]) -> dict[str, Look]:
    """Each mixer's colour, marker and line; all mixers are one family, so they share all colours."""
    marks = family_marks().values()
    colours = list(dict.fromkeys((*(mark.colour for mark in marks), *OTHER_COLOURS)))
    markers = list(dict.fromkeys((*(mark.marker for mark in marks), *OTHER_MARKERS)))
    return {
        label: Look(
            colours[index % len(colours)],
            markers[(index + index // len(colours)) % len(markers)],
            LINES[index // len(colours) % len(LINES)],
        )
        for index, label in enumerate(sorted(set(labels)))
    }


def _conditions(rows: Sequence[MixerRow]) -> str:
    """What all rows share of the network and the machine."""
    cells = [each.row.cell for each in rows]
    words = {
        "{} channels": {cell.arguments["dim"] for cell in cells},
        "{} heads": {cell.arguments["heads"] for cell in cells},
        "{} blocks": {cell.arguments["blocks"] for cell in cells},
        "MLP ratio {}": {f"{cell.arguments['mlp_ratio']:g}" for cell in cells},
        "batch {}": {cell.batch_size for cell in cells},
        "{}": {f"{cell.dtype}, {cell.device}" for cell in cells},
    }
    return ", ".join(form.format(*values) for form, values in words.items() if len(values) == 1)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
