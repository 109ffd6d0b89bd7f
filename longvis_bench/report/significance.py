"""Which accuracies differ by more than chance: McNemar's exact test on the same held-out images.

Two models' 95 % intervals may overlap although one is clearly better: on the same images only those count
that one model knows and the other does not.  The predictions are those that `longvis bench` keeps with a row.
With many models some pairs differ by chance: p values are of each pair alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.grouping import Grouped, grouped
from longvis_bench.runs.predictions import Answers
from longvis_bench.stats import mcnemar

SEPARATES = 0.05
"""Largest p at which one model is called better."""


class Comparison(NamedTuple):
    """Two models on the same images; the first has at least as many right."""

    first: Row
    second: Row
    images: int
    p: float

    @property
    def separable(self) -> bool:
        """Whether the first is better by more than chance."""
        return self.p <= SEPARATES


def compare(every: Sequence[Answers]) -> list[Comparison]:
    """Every pair of answers to the same images at the same size."""
    return [_compare(*pair) for pair in combinations(every, 2) if _same_images(*pair)]


def sentences(rows: Sequence[Row] | Grouped, comparisons: Sequence[Comparison]) -> list[str]:
    """One line a size and model, the best first: which others it is better than, and which nobody can tell.

    Arguments:
        rows: all that are shown; they decide how a model is called.
        comparisons: of those rows.
    """
    called = grouped(rows).names
    lines = []
    for first in _best_first(comparisons):
        others = [pair for pair in comparisons if pair.first.key == first.key]
        better = [f"{called[p.second.key]} ({units.chance(p.p)})" for p in others if p.separable]
        unclear = [f"{called[p.second.key]} ({units.chance(p.p)})" for p in others if not p.separable]
        said = [f"better than {', '.join(better)}"] * bool(better)
        said += [f"not separable with n = {others[0].images} from {', '.join(unclear)}"] * bool(unclear)
        lines.append(f"{first.cell.resolution} px: {called[first.key]} is {'; '.join(said)}")
    return lines


def _best_first(comparisons: Sequence[Comparison]) -> list[Row]:
    """Every row that is the better of some pair, by size and then by the number of right answers."""
    rows = {pair.first.key: pair.first for pair in comparisons}
    return sorted(rows.values(), key=lambda row: (row.cell.resolution, -_right(row)))


def _right(row: Row) -> int:
    return row.accuracy.correct_top1 if row.accuracy is not None else 0


def _same_images(one: Answers, other: Answers) -> bool:
    """Same data, size and images."""
    here, there = ((a.row.cell.resolution, a.row.cell.data) for a in (one, other))
    return here == there and one.row.key != other.row.key and one.images.same_images(other.images)


def _compare(one: Answers, other: Answers) -> Comparison:
    first, second = sorted((one, other), key=lambda answers: -int(answers.images.right.sum()))
    right, others = first.images.right, second.images.right
    p = mcnemar(int((right & ~others).sum()), int((others & ~right).sum()))
    return Comparison(first.row, second.row, len(right), p)
