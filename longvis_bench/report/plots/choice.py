"""Which series a figure shows if there are more than readers can tell apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from longvis_bench import stats, units
from longvis_bench.report.grouping import RANKED_BY, Grouped, is_disturbed
from longvis_bench.report.plots.style import MOST
from longvis_bench.resolution import Resolution


class Point(NamedTuple):
    """Accuracy and cost of one model."""

    cost: float
    top1: float
    low: float
    high: float
    ranked: bool = True
    """False if the cost is a latency that other load disturbed: the point is drawn, and on no front."""


class Choice(NamedTuple):
    """The series of a figure."""

    labels: list[str]
    """In the order of all series."""
    note: str
    """What was left out and why; empty if nothing was."""


def points(rows: Grouped, label: str, column: str) -> dict[Resolution, Point]:
    """Size -> point, of the rows of a series that are ok and have both a cost and an accuracy."""
    columns = [rows.numbers(name) for name in (column, "top1", "top1_low", "top1_high")]
    found = {}
    for row in rows.series[label]:
        known = [value for values in columns if (value := values[id(row)]) is not None]
        if row.status == "ok" and len(known) == 4 and known[0] > 0:
            cost, top1, low, high = known
            ranked = column != RANKED_BY or not is_disturbed(row)
            found[row.cell.resolution] = Point(cost, top1, low, high, ranked)
    return found


def points_by_size(rows: Grouped, column: str) -> dict[Resolution, dict[str, Point]]:
    """Size -> label of each series with a point there -> the point."""
    at_size: dict[Resolution, dict[str, Point]] = {}
    for label in rows.series:
        for size, point in points(rows, label, column).items():
            at_size.setdefault(size, {})[label] = point
    return at_size


def front(found: dict[str, Point], *, better_up: bool) -> list[str]:
    """Labels of the points on the Pareto front, by rising cost."""
    labels, sign = [label for label, point in found.items() if point.ranked], -1 if better_up else 1
    order = stats.pareto_front([(sign * found[label].cost, found[label].top1) for label in labels])
    return [labels[index] for index in order]


def choose(rows: Grouped, column: str, *, better_up: bool, most: int = MOST) -> Choice:
    """All series if readers can tell them apart; else the Pareto fronts, then the best at the largest size.

    Arguments:
        rows: of all series.
        column: the cost that the figure shows.
        better_up: whether more of it is better.
        most: series of the figure.
    """
    labels = list(rows.series)
    if len(labels) <= most:
        return Choice(labels, "")
    fronts = _fronts(rows, column, better_up=better_up)
    size, ranked = _ranked(rows, column, better_up=better_up)
    first = [label for label in ranked if label in fronts]
    rest = [label for label in [*ranked, *labels] if label not in fronts]
    chosen = set(list(dict.fromkeys([*first, *rest]))[:most])
    why = "the Pareto front and the best" if fronts else "the best"
    where = f" at {size} px" if size is not None else ""
    failed = _failed(rows, chosen)
    lost = f"; {units.several(failed, 'other')} failed somewhere" if failed else ""
    note = f"{len(chosen)} of {len(labels)} series: {why}{where}{lost}. All: summary.csv"
    return Choice([label for label in labels if label in chosen], note)


def _fronts(rows: Grouped, column: str, *, better_up: bool) -> set[str]:
    """Series on the front of accuracy against the cost at any size."""
    at_size = points_by_size(rows, column).values()
    return {label for found in at_size for label in front(found, better_up=better_up)}


def _ranked(rows: Grouped, column: str, *, better_up: bool) -> tuple[Resolution | None, list[str]]:
    """The largest size at which as many series as possible have a value, and those series, the best first."""
    values = {label: rows.by_size(label, column) for label in rows.series}
    counts: dict[Resolution, int] = {}
    for found in values.values():
        for size in found:
            counts[size] = counts.get(size, 0) + 1
    if not counts:
        return None, []
    size = max(counts, key=lambda size: (counts[size], size))
    known = {label: found[size] for label, found in values.items() if size in found}
    return size, sorted(known, key=lambda label: -known[label] if better_up else known[label])


def _failed(rows: Grouped, shown: Collection[str]) -> int:
    """Series left out that have a row which is not ok."""
    others = (one for label, one in rows.series.items() if label not in shown)
    return sum(any(row.status != "ok" for row in one) for one in others)
