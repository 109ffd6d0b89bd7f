"""Shared by all figures: width, style, title, and the look and label of each series.

The first variant of a family has the family's colour and marker in every figure; the others differ from it in
shade, marker and line.  Figures are made without pyplot, so nothing global changes.
"""

from __future__ import annotations

import colorsys
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple

import matplotlib.style
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from longvis_bench.errors import CardError
from longvis_bench.records import Row
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry
from longvis_bench.report.grouping import Grouped, grouped
from longvis_bench.text import clean

OTHER_COLOURS = ("#332288", "#999933", "#882255", "#44AA99", "#661100", "#6699CC")
"""Paul Tol's muted palette, for families whose card names no colour.  The built-in cards name Okabe and Ito's
without its yellow, which vanishes on white (jfly.uni-koeln.de/color)."""
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


MOST = 36
"""Series that readers can tell apart in one figure; a figure of more shows the best and names the rest."""


class Look(NamedTuple):
    """Style of a series."""

    colour: str
    marker: str
    line: str


class Mark(NamedTuple):
    """Style of a family, for all its variants."""

    colour: str
    marker: str


def family_marks() -> dict[str, Mark]:
    """Family -> colour and marker, of every card found that names them.

    A user's card that cannot be read takes away the colours of users' families only: figures of a run that is
    finished never fail for a card.
    """
    try:
        found = Registry().cards
    except CardError:
        found = list(built_in_cards())
    cards = (each.card for each in found)
    return {card.family: Mark(card.colour, card.marker) for card in cards if card.colour and card.marker}


@contextmanager
def style() -> Iterator[None]:
    """Draw with these settings alone and ignore any matplotlibrc."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def looks(rows: Sequence[Row] | Grouped) -> dict[str, Look]:
    """Series -> look: colour and marker by family; its further variants in other shades, markers and lines.

    Where all series are of one family there are no other families to tell apart, and they take all colours.
    """
    families = {label: one[0].cell.family for label, one in grouped(rows).series.items()}
    marks = family_marks()
    own = _family_looks(families.values(), marks)
    palette = tuple(dict.fromkeys((*(mark.colour for mark in marks.values()), *OTHER_COLOURS)))
    markers = tuple(dict.fromkeys((*(mark.marker for mark in marks.values()), *OTHER_MARKERS)))
    seen: Counter[str] = Counter()
    found: dict[str, Look] = {}
    for label, family in families.items():
        colour, marker, _ = own[family]
        number = seen[family]
        seen[family] += 1
        own_shade = shade(colour, number)
        if len(own) == 1:
            own_shade = palette[(palette.index(colour) + number) % len(palette)]
        shape = (markers.index(marker) + number + number // len(palette)) % len(markers)
        found[label] = Look(own_shade, markers[shape], LINES[number % len(LINES)])
    return found


def _family_looks(families: Iterable[str], marks: Mapping[str, Mark]) -> dict[str, Look]:
    """Look of the first variant of each family."""
    found = {family: Look(*mark, LINES[0]) for family, mark in marks.items()}
    for number, family in enumerate(sorted(set(families) - set(marks))):
        colour = OTHER_COLOURS[number % len(OTHER_COLOURS)]
        marker = OTHER_MARKERS[number % len(OTHER_MARKERS)]
        found[family] = Look(colour, marker, LINES[0])
    return {family: found[family] for family in set(families)}


def shade(colour: str, number: int) -> str:
    """The colour, a darker one and a dark one in turn; of a colour that is dark already, lighter ones."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    step = number % 3
    light = light * (1.0, 0.66, 0.42)[step] if light > 0.2 else light + (0.0, 0.3, 0.5)[step]
    return "#" + "".join(f"{round(255 * part):02X}" for part in colorsys.hls_to_rgb(hue, light, saturation))


_BEGINNINGS = re.compile(r".*(?:\[|:|/|, )")


def shortened(labels: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The common prefix of three or more labels, and each label without it.

    `net.py:build[w=12]` and its like are called `w=12`; the beginning is left alone where it is under five
    characters long.
    """
    ends = (min(labels), max(labels)) if len(labels) > 2 else ("", "")
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False)))
    common = _BEGINNINGS.match(ends[0][:same])
    beginning = common.group() if common else ""
    if len(beginning) < 5:
        return "", {label: label for label in labels}
    names = {label: label[len(beginning) :] for label in labels}
    if beginning.count("[") > beginning.count("]"):
        names = {label: name.replace("]", "", 1) for label, name in names.items()}
    return beginning, {label: name or label for label, name in names.items()}


class Cast:
    """The series of all figures of some rows: look and label of each.

    Arguments:
        rows: of one or many models and sizes; failed ones too.
    """

    def __init__(self, rows: Sequence[Row] | Grouped) -> None:
        self.rows = grouped(rows)
        self.looks = looks(self.rows)
        self.beginning, self._names = shortened(list(self.rows.series))

    def name(self, label: str) -> str:
        """Label of a series in a figure."""
        return self._names[label]

    def note(self, left_out: str = "") -> str:
        """The line at a figure's lower edge: what it leaves out and the prefix of all names; often empty."""
        begin = f"all names begin with {self.beginning}" if self.beginning else ""
        return "; ".join(filter(None, [begin, left_out]))

    def figure(self, height: float, title: str, rows: Grouped | None = None) -> Figure:
        """A figure with its title and, in smaller type, the conditions that all rows share.

        Arguments:
            height: in inches.
            title: of the figure.
            rows: those it shows, where they are not all.
        """
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        FigureCanvasAgg(figure)
        figure.text(0.1 / WIDTH, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
        said = printable((rows or self.rows).shared_conditions)
        text = figure.text(0.1 / WIDTH, 1 - 0.34 / height, said, fontsize=8.5, color=GREY, va="top")
        fit(text, WIDTH - 0.2)
        return figure


def short(label: str, most: int = 26) -> str:
    """A long name, shortened in the middle."""
    half = (most - 1) // 2
    return label if len(label) <= most else f"{label[:half]}…{label[-half:]}"


def printable(text: str) -> str:
    """A text that the figures' font can show, on one line."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(char if font.get_char_index(ord(char)) else "?" for char in clean(text))


def note(figure: Figure, text: str) -> None:
    """A line in small type at the lower edge: what the figure leaves out."""
    shown = figure.text(0.1 / WIDTH, 0.05 / figure.get_figheight(), printable(text), fontsize=8.5, color=GREY)
    fit(shown, WIDTH - 0.2)


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
    if text.get_window_extent().width <= inches * figure.dpi:
        return

    def is_wide(kept: int) -> bool:
        text.set_text(f"{name[:kept]}…{end}")
        return bool(text.get_window_extent().width > inches * figure.dpi)

    kept = bisect_left(range(1, len(name)), True, key=is_wide)  # of 1 to this many characters all fit
    text.set_text(f"{name[: max(kept, 1)]}…{end}")
