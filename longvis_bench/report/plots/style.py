"""What all figures share: width and style, the title, and how each series looks.

A family has the same colour and marker in every figure; variants of one family differ in their line.  Figures
are made without pyplot, so nothing global changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib.style
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from longvis_bench.records import Row
from longvis_bench.report.grouping import series, shared_conditions
from longvis_bench.text import clean

COLOURS = {
    "atlas": "#0072B2",
    "convnext": "#E69F00",
    "fastervit": "#009E73",
    "longvit": "#CC79A7",
    "mambavision": "#D55E00",
    "swin": "#56B4E9",
    "vit": "#000000",
}
"""Okabe and Ito's palette without its yellow, which vanishes on white (jfly.uni-koeln.de/color)."""
MARKERS = dict(zip(COLOURS, "os^DvPX", strict=True))
OTHER_COLOURS = ("#332288", "#999933", "#882255", "#44AA99", "#661100", "#6699CC")
"""Paul Tol's muted palette, for families that are not ours."""
OTHER_MARKERS = "ph<>*d"
LINES = ("-", "--", ":", "-.")

WIDTH = 5.6
"""Inches; at half of a page's width the smallest letters are still 5 points high."""
DPI = 200
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"
STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "longvis-bench",
}


class Look(NamedTuple):
    """How a series is drawn."""

    colour: str
    marker: str
    line: str


@contextmanager
def style() -> Iterator[None]:
    """Our settings and nobody's matplotlibrc, for the time of drawing."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Series -> look: colour and marker by family, line by variant within the family."""
    families = {label: one[0].cell.family for label, one in series(rows).items()}
    others = sorted(set(families.values()) - set(COLOURS))
    seen: list[str] = []
    found: dict[str, Look] = {}
    for label, family in families.items():
        line = LINES[seen.count(family) % len(LINES)]
        seen.append(family)
        if family in COLOURS:
            found[label] = Look(COLOURS[family], MARKERS[family], line)
        else:
            place = others.index(family) % len(OTHER_COLOURS)
            found[label] = Look(OTHER_COLOURS[place], OTHER_MARKERS[place], line)
    return found


def short(label: str, most: int = 26) -> str:
    """A long name without its middle."""
    half = (most - 1) // 2
    return label if len(label) <= most else f"{label[:half]}…{label[-half:]}"


def printable(text: str) -> str:
    """A text that the figures' font can show, on one line."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(char if font.get_char_index(ord(char)) else "?" for char in clean(text))


def empty(height: float, title: str, rows: Sequence[Row]) -> Figure:
    """A figure with its title and, smaller, what all rows have in common."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.text(0.1 / WIDTH, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
    conditions = printable(shared_conditions(rows))
    figure.text(0.1 / WIDTH, 1 - 0.34 / height, conditions, fontsize=8.5, color=GREY, va="top")
    return figure


def fit(text: Text, inches: float, keep: int = 0) -> None:
    """Shrink a long name to its room; where it would become too small to read, cut before its last `keep`."""
    figure = text.figure
    assert figure is not None
    size = float(text.get_fontsize())
    while text.get_window_extent().width > inches * figure.dpi and size > 7.5:
        size -= 0.5
        text.set_fontsize(size)
    words = text.get_text()
    name, end = words[: len(words) - keep], words[len(words) - keep :]
    while text.get_window_extent().width > inches * figure.dpi and len(name) > 1:
        name = name[:-1]
        text.set_text(f"{name}…{end}")
