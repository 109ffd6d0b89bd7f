"""The last lines of a table: at each size the fastest, the smallest and the most accurate model.

A winner by a hair is none: models whose 95 % intervals overlap the winner's are named beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import Grouped, number
from longvis_bench.text import clean

NAMED = 3
"""Models named as not separable; the others are counted."""
SAME_MEMORY = 0.03
"""Peaks that differ by less than this share are called equal: a second run moves them as far."""


@dataclass(frozen=True)
class Title:
    """One thing in which a model can be the best."""

    word: str
    column: str
    better_up: bool = False
    interval: tuple[str, str] | None = None
    tolerance: float = 0.0
    """Share of the value by which two may differ and still be called equal, where there is no interval."""
    unless: str = ""
    """A title that makes this one superfluous."""


TITLES = (
    Title("fastest", "throughput_img_s", True, ("throughput_low_img_s", "throughput_high_img_s")),
    Title("fewest MACs", "macs", unless="fastest"),
    Title("smallest", "peak_memory_bytes", tolerance=SAME_MEMORY),
    Title("most accurate", "top1", True, ("top1_low", "top1_high")),
)


def best_lines(rows: Grouped) -> list[str]:
    """A sentence for each size at which two models and more can be compared; failed rows are not.

    Arguments:
        rows: as a table shows them, each cell once.
    """
    by_size: dict[int, list[Row]] = {size: [] for size in rows.sizes}
    for row in rows.rows:
        if row.status == "ok":
            by_size[row.cell.resolution].append(row)
    lines = []
    for size, found in by_size.items():
        said: dict[str, str] = {}
        for title in TITLES:
            text = None if title.unless in said else _winner(title, found, rows.names)
            if text is not None:
                said[title.word] = text
        if said:
            lines.append(f"{size} px: {'; '.join(said.values())}.")
    return lines


def _winner(title: Title, rows: Sequence[Row], names: Mapping[str, str]) -> str | None:
    """Who holds a title, by how much, and who may hold it as well; None where fewer than two compete."""
    if title.column == "top1" and len({row.accuracy.dataset for row in rows if row.accuracy}) > 1:
        return None
    known = [(value, row) for row in rows if (value := number(row, title.column)) is not None]
    if len(known) < 2:
        return None
    known.sort(key=lambda found: -found[0] if title.better_up else found[0])
    (value, first), (other, second) = known[:2]
    column = BY_NAME[title.column]
    unit = " img/s" if column.unit == "img/s" else ""
    close = [clean(names[row.key]) for _, row in known[1:] if _overlap(title, first, row)]
    if close:
        how = "95 % intervals overlap" if title.interval else f"within {units.percent(title.tolerance)}"
        than = f"not separable from {units.listing(close, NAMED)} ({how})"
    else:
        than = _ahead(title, value, other, clean(names[second.key]))
    return f"{title.word} {clean(names[first.key])}, {column.format(value)}{unit}, {than}"


def _ahead(title: Title, value: float, other: float, second: str) -> str:
    """By how much the first differs from the second: a share of the latter, or points of accuracy."""
    if title.column == "top1":
        return f"{units.significant(100 * (value - other), 2)} points ahead of {second}"
    if not other:
        return f"ahead of {second}"
    return f"{units.significant(value / other)} x {second}"


def _overlap(title: Title, one: Row, other: Row) -> bool:
    """Whether two rows' intervals have a point in common."""
    low, high = _ends(title, one)
    other_low, other_high = _ends(title, other)
    return low <= other_high and other_low <= high


def _ends(title: Title, row: Row) -> tuple[float, float]:
    """The row's interval, or its value with half of the tolerance on either side."""
    value = number(row, title.column) or 0.0
    ends = [number(row, name) for name in title.interval or ()]
    low, high = ends if ends else (None, None)
    if low is None or high is None:
        return value * (1 - title.tolerance / 2), value * (1 + title.tolerance / 2)
    return low, high
