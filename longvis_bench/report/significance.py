"""Significance of differences in accuracy: McNemar's exact test on the same held-out images.

Two models' 95 % intervals may overlap although one is clearly better: the test counts only the images that
one model classifies correctly and the other does not.  It reads the predictions that `longvis bench` stores
with a row.  With many models some pairs differ by chance: each p value is that of its pair alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.grouping import Grouped, grouped
from longvis_bench.resolution import Resolution
from longvis_bench.runs.predictions import Answers
from longvis_bench.stats import mcnemar

SEPARATES = 0.05
"""Significance level: one model is better than another if p is at most this."""
COMPARED = 30
"""Number of most accurate models that are compared per size and dataset; the pairs grow quadratically."""


class Comparison(NamedTuple):
    """Two models on the same images; the first has at least as many correct predictions."""

    first: Row
    second: Row
    images: int
    p: float

    @property
    def separable(self) -> bool:
        """Whether the first model is significantly better."""
        return self.p <= SEPARATES


def compare(every: Sequence[Answers]) -> list[Comparison]:
    """Every pair of answers to the same images at the same size; of many models the most accurate ones."""
    return [
        _compare(*pair)
        for alike in _alike(every).values()
        for pair in combinations(alike, 2)
        if _same_images(*pair)
    ]


def _alike(every: Sequence[Answers]) -> dict[tuple[str, Resolution], list[Answers]]:
    """Data and size -> their answers, at most the best of each, in the order given."""
    found: dict[tuple[str, Resolution], list[Answers]] = {}
    for answers in every:
        found.setdefault((answers.row.cell.data, answers.row.cell.resolution), []).append(answers)
    for key, group in found.items():
        right = [-float(answers.images.right.mean()) for answers in group]
        best = sorted(range(len(group)), key=lambda position: (right[position], position))[:COMPARED]
        found[key] = [group[position] for position in sorted(best)]
    return found


def compared(rows: Sequence[Row] | Grouped, every: Sequence[Answers]) -> list[str]:
    """What `sentences` says of all pairs, and of how many models none is compared."""
    return [*sentences(rows, compare(every)), *_left_out(every)]


def _left_out(every: Sequence[Answers]) -> list[str]:
    """A line for each size and data set with more models than are compared."""
    counts = Counter((answers.row.cell.resolution, answers.row.cell.data) for answers in every)
    return [
        f"{resolution} px: the {COMPARED} most accurate of {count} cells are compared, the other "
        f"{count - COMPARED} with none"
        for (resolution, _), count in sorted(counts.items())
        if count > COMPARED
    ]


def sentences(rows: Sequence[Row] | Grouped, comparisons: Sequence[Comparison]) -> list[str]:
    """One line per size and model, the best first: which others it is better than, and which not separable.

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
    """Every row that is the better of some pair, by size and then by the number of correct predictions."""
    rows = {pair.first.key: pair.first for pair in comparisons}
    return sorted(rows.values(), key=lambda row: (row.cell.resolution, -_right(row)))


def _right(row: Row) -> int:
    return row.accuracy.correct_top1 if row.accuracy is not None else 0


def _same_images(one: Answers, other: Answers) -> bool:
    """Two models and the same images."""
    return one.row.key != other.row.key and one.images.same_images(other.images)


def _compare(one: Answers, other: Answers) -> Comparison:
    first, second = sorted((one, other), key=lambda answers: -int(answers.images.right.sum()))
    right, others = first.images.right, second.images.right
    p = mcnemar(int((right & ~others).sum()), int((others & ~right).sum()))
    return Comparison(first.row, second.row, len(right), p)
