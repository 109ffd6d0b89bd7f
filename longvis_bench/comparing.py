"""Which accuracies differ by more than chance: McNemar's exact test on the same held-out images.

Two models' 95 % intervals may overlap although one is clearly better: on the same images only those count
that one model knows and the other does not.  The predictions are those that `longvis bench` keeps with a row.
With many models some pairs differ by chance: p values are of each pair alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longvis_bench.records import Row
from longvis_bench.stats import mcnemar

SEPARATES = 0.05
"""Largest p at which one model is called better."""


class Answers(NamedTuple):
    """What one model said of held-out images."""

    row: Row
    labels: NDArray[np.int64]
    """(images): the truth."""
    right: NDArray[np.bool_]
    """(images): whether the answer was the truth."""


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


def compare(rows: Sequence[Row], runs: Sequence[Path]) -> list[Comparison]:
    """Every pair of rows with predictions for the same images at the same size.

    Arguments:
        rows: of one or several runs.
        runs: directories in which their predictions lie.
    """
    known = [answers for row in rows if (answers := _answers(row, runs)) is not None]
    pairs = (pair for pair in combinations(known, 2) if _same_images(*pair))
    return [_compare(*pair) for pair in pairs]


def _answers(row: Row, runs: Iterable[Path]) -> Answers | None:
    if row.accuracy is None:
        return None
    files = (run / "predictions" / f"{row.key}.npz" for run in runs)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            labels, predictions = stored["labels"], stored["predictions"]
    except (OSError, ValueError, KeyError):  # damaged: as if it were not there
        return None
    return Answers(row, labels, labels == predictions)


def _same_images(one: Answers, other: Answers) -> bool:
    """Same data and size; the labels tell whether the images are the same ones."""
    assert one.row.accuracy is not None
    assert other.row.accuracy is not None
    here, there = ((a.row.cell.resolution, a.row.cell.data, len(a.labels)) for a in (one, other))
    return here == there and one.row.key != other.row.key and bool(np.array_equal(one.labels, other.labels))


def _compare(one: Answers, other: Answers) -> Comparison:
    first, second = sorted((one, other), key=lambda answers: -int(answers.right.sum()))
    only_first = int((first.right & ~second.right).sum())
    only_second = int((second.right & ~first.right).sum())
    return Comparison(first.row, second.row, len(first.labels), mcnemar(only_first, only_second))
