"""The figure of `longvis fit`: memory against size, a curve per model, and a line per size of card."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longvis_bench import units
from longvis_bench.advice.fit import FitRow
from longvis_bench.errors import LongvisError
from longvis_bench.files import write_whole
from longvis_bench.report.plots.layout import spread
from longvis_bench.report.plots.style import (
    DPI,
    GREY,
    INK,
    LINES,
    OTHER_COLOURS,
    OTHER_MARKERS,
    PALE,
    WIDTH,
    Mark,
    family_marks,
    printable,
    shade,
    style,
)
from longvis_bench.resolution import Resolution, axis_in_words, side

CARDS_GB = (8, 12, 16, 24, 40, 48, 80, 141)
"""Memory of usual GPUs, as their makers call it."""
KINDS = ("png", "svg", "pdf")
_GB = 1 << 30  # a card of "24 GB" holds about 24 GiB
_PANEL = 3.7
_TOP, _BOTTOM, _LEFT, _RIGHT = 0.62, 0.5, 0.75, 1.4


def draw_fit(rows: Sequence[FitRow], file: Path) -> None:
    """Write the figure.

    Arguments:
        rows: those without an answer are left out.
        file: its ending says the format: .png, .svg or .pdf.

    Raises:
        LongvisError: the ending is another one, or nothing is known.
    """
    kind = kind_of(file)
    with style():
        figure = fit_figure(rows)
        write_whole(file, partial(write_figure, figure, kind))


def kind_of(file: Path) -> str:
    """The format that a file's ending names.

    Raises:
        LongvisError: it names none of those there are.
    """
    kind = file.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise LongvisError(f"--plot takes a file that ends in .png, .svg or .pdf, not {str(file)[:80]!r}.")
    return kind


def write_figure(figure: Figure, kind: str, file: object) -> None:
    """Write a figure in a format of KINDS; the same figure gives the same bytes."""
    still = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(file, format=kind, dpi=DPI, metadata=still[kind])  # type: ignore[arg-type]


def fit_figure(rows: Sequence[FitRow]) -> Figure:
    """One panel per way of running (inference, training, with checkpointing), one curve per model and batch.

    Raises:
        LongvisError: no row has an answer.
    """
    known = [row for row in rows if row.needed_bytes is not None]
    if not known:
        raise LongvisError("there is nothing to draw: the memory of no model is known.")
    ways = list(dict.fromkeys((row.mode, row.grad_checkpointing) for row in known))
    height = _TOP + len(ways) * _PANEL
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.text(0.1 / WIDTH, 1 - 0.1 / height, "Memory needed", fontsize=12, fontweight="bold", va="top")
    said = f"predicted, not measured: {known[0].dtype}, {known[0].device}, the most that may be needed"
    figure.text(0.1 / WIDTH, 1 - 0.34 / height, printable(said), fontsize=8.5, color=GREY, va="top")
    for number, (mode, checkpointed) in enumerate(ways):
        bottom = _BOTTOM + (len(ways) - 1 - number) * _PANEL
        box = (
            _LEFT / WIDTH,
            bottom / height,
            (WIDTH - _LEFT - _RIGHT) / WIDTH,
            (_PANEL - _BOTTOM - 0.2) / height,
        )
        title = mode + (" with gradient checkpointing" if checkpointed else "")
        chosen = [row for row in known if (row.mode, row.grad_checkpointing) == (mode, checkpointed)]
        _panel(figure.add_axes(box), chosen, title if len(ways) > 1 or checkpointed else mode)
    return figure


def _panel(axes: Axes, rows: Sequence[FitRow], title: str) -> None:
    batches = {row.batch_size for row in rows}
    curves: dict[str, dict[Resolution, float]] = {}
    families: dict[str, str] = {}
    for row in rows:
        label = row.model + (f", batch {row.batch_size}" if len(batches) > 1 else "")
        curves.setdefault(label, {})[row.resolution] = (row.needed_bytes or 0) / _GB
        families[label] = row.family
    looks = _looks(families)
    values = [value for curve in curves.values() for value in curve.values()]
    low, high = min([*values, CARDS_GB[0]]) / 1.3, max([*values, CARDS_GB[-1]]) * 1.25
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    _card_lines(axes)
    for label, curve in curves.items():
        colour, marker, line = looks[label]
        xs = sorted(curve)
        axes.plot(
            [side(x) for x in xs],
            [curve[x] for x in xs],
            color=colour,
            marker=marker,
            linestyle=line,
            linewidth=1.6,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            clip_on=False,
            zorder=3,
        )
    sizes = sorted({row.resolution for row in rows})
    axes.set_xlim(side(sizes[0]) / 1.15, side(sizes[-1]) * 1.15)
    axes.set_xticks([side(size) for size in sizes], [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(axis_in_words(sizes))
    axes.set_ylabel("GiB")
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    _end_labels(axes, curves, looks)


def _card_lines(axes: Axes) -> None:
    """A line and a tick for each size of card."""
    for size in CARDS_GB:
        axes.axhline(size, color=PALE, linewidth=0.9, zorder=1)
    low, high = axes.get_ylim()
    below = [size for size in (0.5, 1, 2, 4) if low <= size < CARDS_GB[0]]
    above = [size for size in (300, 1000, 3000) if CARDS_GB[-1] < size <= high]
    ticks = [*below, *CARDS_GB, *above]
    axes.set_yticks(ticks, [units.significant(tick) if tick < 1 else f"{tick:g}" for tick in ticks])
    for tick in axes.get_yticklabels():
        tick.set_fontsize(8.5)


def _end_labels(
    axes: Axes, curves: dict[str, dict[Resolution, float]], looks: dict[str, tuple[str, str, str]]
) -> None:
    """The name of each curve beside its end."""
    ends = {label: curve[max(curve)] for label, curve in curves.items()}
    transform = axes.transData + axes.transAxes.inverted()
    wanted = [float(transform.transform((1, value))[1]) for value in ends.values()]
    for (label, _), y in zip(ends.items(), spread(wanted, 0.058, 0, 1), strict=True):
        axes.text(
            1.03,
            y,
            printable(label),
            transform=axes.transAxes,
            color=looks[label][0],
            fontsize=8.5,
            va="center",
        )


def _looks(families: dict[str, str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of each curve: by family, further curves of one in other shades and lines."""
    marks = family_marks()
    unknown = [family for family in dict.fromkeys(families.values()) if family not in marks]
    for number, family in enumerate(unknown):
        index = number % len(OTHER_COLOURS)
        marks[family] = Mark(OTHER_COLOURS[index], OTHER_MARKERS[index])
    seen: dict[str, int] = {}
    found = {}
    for label, family in families.items():
        number = seen.get(family, 0)
        seen[family] = number + 1
        mark = marks[family]
        found[label] = (shade(mark.colour, number), mark.marker, LINES[number % len(LINES)])
    return found
