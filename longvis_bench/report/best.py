"""The lines below a table that name the fastest, the smallest and the most accurate model per size.

Only rows measured under the same conditions compete; a line names them where the table mixes several.  A
winner by a hair is none: models whose 95 % intervals overlap the winner's are named beside it, and one that
has no interval, or whose timing other load disturbed, neither wins nor loses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import (
    CONDITIONS,
    RANKED_BY,
    Grouped,
    called,
    condition,
    is_disturbed,
    number,
)
from longvis_bench.text import clean

NAMED = 3
"""Number of inseparable models that a line lists; the line counts the others."""
SAME_MEMORY = 0.03
"""Peaks that differ by less than this share count as equal, because repeats of a run differ as much."""
WAYS = ("memory_format", "fused", "compiled", "grad_checkpointing", "seed")
"""Conditions in which competing rows may differ: ways to run a model."""
SETTINGS = tuple(name for name in CONDITIONS if name not in (*WAYS, "round", "train_length"))
"""Conditions that competing rows share; rows that differ in one are not compared."""


@dataclass(frozen=True)
class Title:
    """A quantity in which a model can be the best."""

    word: str
    column: str
    better_up: bool = False
    interval: tuple[str, str] | None = None
    tolerance: float = 0.0
    """Relative difference up to which two values count as equal, for quantities without an interval."""
    unless: str = ""
    """A title that makes this one redundant."""


TITLES = (
    Title("fastest", RANKED_BY, True, ("throughput_low_img_s", "throughput_high_img_s")),
    Title("fewest MACs", "macs", unless="fastest"),
    Title("smallest", "peak_memory_bytes", tolerance=SAME_MEMORY),
    Title("most accurate", "top1", True, ("top1_low", "top1_high")),
)


@dataclass(frozen=True)
class _Rival:
    """A row that competes for a title."""

    name: str
    value: float
    ends: tuple[float, float] | None
    """Ends of the interval; None if there is none, or if other load disturbed the measurement."""
    excluded: str = ""
    """Why it is not ranked; empty if it is."""

    def overlaps(self, other: _Rival) -> bool:
        """Whether the intervals overlap; without intervals two rows are not separable."""
        if self.ends is None or other.ends is None:
            return True
        return self.ends[0] <= other.ends[1] and other.ends[0] <= self.ends[1]


def best_lines(rows: Grouped) -> list[str]:
    """A sentence for each size and condition at which two rows and more compete; failed rows do not.

    Arguments:
        rows: as a table shows them, each cell once.
    """
    ways = [name for name in rows.varying if name in WAYS]
    lines = []
    for where, found in _competing(rows).items():
        if said := _titles(found, lambda row: clean(called(row, ways))):
            lines.append(f"{where}: {'; '.join(said)}.")
    return lines


def best_keys(rows: Grouped) -> dict[str, set[str]]:
    """Column of a title -> keys of the rows that are best at their size, or not separable from the best.

    Arguments:
        rows: as a table shows them, each cell once.
    """
    found: dict[str, set[str]] = {}
    for alike in _competing(rows).values():
        for title in TITLES:
            rivals = _rivals(title, alike, lambda row: row.key)
            known = [rival for rival in rivals if rival.ends is not None]
            if len(known) < 2:
                continue
            first = max(known, key=lambda rival: rival.value if title.better_up else -rival.value)
            found.setdefault(title.column, set()).update(one.name for one in known if one.overlaps(first))
    return found


def _competing(rows: Grouped) -> dict[str, list[Row]]:
    """Size and conditions in words -> the rows that compete; failed ones do not."""
    settings = [name for name in rows.varying if name in SETTINGS]
    competing: dict[str, list[Row]] = {}
    for row in rows.rows:
        if row.status == "ok":
            words = (condition(name, row) for name in settings)
            where = ", ".join([f"{row.cell.resolution} px", *(clean(word) for word in words if word)])
            competing.setdefault(where, []).append(row)
    return competing


def _titles(rows: Sequence[Row], name: Callable[[Row], str]) -> list[str]:
    """What is said of each title for which two rows and more compete."""
    said: dict[str, str] = {}
    for title in TITLES:
        rivals = _rivals(title, rows, name)
        if title.unless not in said and len(rivals) > 1:
            said[title.word] = _winner(title, rivals)
    return list(said.values())


def _rivals(title: Title, rows: Sequence[Row], name: Callable[[Row], str]) -> list[_Rival]:
    """The rows that have the quantity of a title; one that may not be ranked has no ends and a reason."""
    rivals = []
    for row in rows:
        value = number(row, title.column)
        if value is not None:
            disturbed = title.column == RANKED_BY and is_disturbed(row)
            ends = None if disturbed else _ends(title, row, value)
            rivals.append(_Rival(name(row), value, ends, _excluded(ends, disturbed)))
    return rivals


def _excluded(ends: tuple[float, float] | None, disturbed: bool) -> str:
    return "disturbed" if disturbed else "no interval" if ends is None else ""


def _winner(title: Title, rivals: Sequence[_Rival]) -> str:
    """The best row, its lead, and the rows that are not separable from it.

    A rival without an interval, or one that other load disturbed, may be anywhere: where it leads, or where
    fewer than two others are left, the title is not given.
    """
    ranked = sorted(rivals, key=lambda rival: -rival.value if title.better_up else rival.value)
    known = [rival for rival in ranked if rival.ends is not None]
    unknown = _not_ranked(ranked)
    if ranked[0].ends is None or len(known) < 2:
        return f"{title.word} not decided ({unknown})"
    first, second = known[:2]
    column = BY_NAME[title.column]
    unit = " img/s" if column.unit == "img/s" else ""
    close = [rival.name for rival in known[1:] if first.overlaps(rival)]
    than = _not_separable(title, close) if close else _ahead(title, first, second)
    aside = f" (not compared, {unknown})" if unknown else ""
    return f"{title.word} {first.name}, {column.format(first.value)}{unit}, {than}{aside}"


def _not_ranked(rivals: Sequence[_Rival]) -> str:
    """The rivals that are not ranked, by reason; empty if all are."""
    names: dict[str, list[str]] = {}
    for rival in rivals:
        if rival.excluded:
            names.setdefault(rival.excluded, []).append(rival.name)
    return "; ".join(f"{reason}: {units.listing(found, NAMED)}" for reason, found in names.items())


def _not_separable(title: Title, close: Sequence[str]) -> str:
    names = units.listing(close, NAMED)
    if title.interval:
        return f"not separable from {names} (95 % intervals overlap)"
    if title.tolerance:
        return f"not separable from {names} (within {units.percent(title.tolerance)})"
    return f"the same as {names}"


def _ahead(title: Title, first: _Rival, second: _Rival) -> str:
    """Difference of the first from the second: relative to the second, or in points of accuracy."""
    if title.column == "top1":
        return f"{units.significant(100 * (first.value - second.value), 2)} points ahead of {second.name}"
    if not second.value:
        return f"ahead of {second.name}"
    return f"{units.significant(first.value / second.value)} x {second.name}"


def _ends(title: Title, row: Row, value: float) -> tuple[float, float] | None:
    """The row's interval, or its value with half of the tolerance on either side where titles have none."""
    if title.interval is None:
        return value * (1 - title.tolerance / 2), value * (1 + title.tolerance / 2)
    low, high = (number(row, name) for name in title.interval)
    return None if low is None or high is None else (low, high)
