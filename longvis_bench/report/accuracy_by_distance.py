"""Accuracy against distance: how far apart a model can compare two things, on `pairs`.

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
"""Most bins, and about the fewest images of one: with fewer its interval says nothing."""


class DistanceCurve(NamedTuple):
    """One row's accuracy by the distance of the two digits."""

    row: Row
    shares: tuple[Share, ...]
    """Right answers among the images of a distance, in pixels; the nearest first."""


def by_distance(every: Sequence[Answers]) -> list[DistanceCurve]:
    """The curve of all answers on `pairs` that say which images they are about."""
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
