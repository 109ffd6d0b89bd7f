"""Accuracy on `pairs` as a function of the distance between the two digits.

The predictions are those that a run keeps with its rows.  The distance of an image follows from its index,
which the data set knows; it is stored nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from longvis_bench.records import Row
from longvis_bench.runs.predictions import Answers
from longvis_bench.stats import Share, share_by

DATASET = "pairs"
BINS, BIN_IMAGES = 8, 60
"""Largest number of bins, and approximate smallest number of images per bin, for a useful interval."""


class DistanceCurve(NamedTuple):
    """Accuracy of one row by the distance of the two digits."""

    row: Row
    shares: tuple[Share, ...]
    """Correct predictions per bin of distance in pixels, nearest first."""


def by_distance(every: Sequence[Answers]) -> list[DistanceCurve]:
    """The curves of all predictions on `pairs` that have image indices."""
    return [DistanceCurve(answers.row, shares) for answers in every if (shares := _shares(answers))]


def _shares(answers: Answers) -> tuple[Share, ...]:
    row, images = answers
    if row.accuracy is None or row.accuracy.dataset != DATASET or images.indices is None:
        return ()
    from longvis_bench.data.pairs import Pairs

    try:
        pixels = Pairs().distances("val", images.indices.tolist(), row.cell.resolution)
    except IndexError:  # another data set's indices: as if they were not there
        return ()
    bins = max(1, min(BINS, len(pixels) // BIN_IMAGES))
    return tuple(share_by(pixels, images.right.tolist(), bins))
