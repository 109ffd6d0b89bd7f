"""Accuracy on `pairs` and `lookup` by distance: between the two digits, or from the key to its disc.

The predictions are those that a run keeps with its rows.  The distance of an image follows from its index,
which the data set knows; it is stored nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from longvis_bench.data.protocol import HasDistances, is_generated, open_data
from longvis_bench.errors import LongvisError
from longvis_bench.records import Row
from longvis_bench.runs.predictions import Answers
from longvis_bench.stats import Share, share_by

BINS, BIN_IMAGES = 8, 60
"""Largest number of bins, and approximate smallest number of images per bin, for a useful interval."""


class DistanceCurve(NamedTuple):
    """Accuracy of one row by distance."""

    row: Row
    shares: tuple[Share, ...]
    """Correct predictions per bin of distance in pixels, nearest first."""


def by_distance(every: Sequence[Answers]) -> list[DistanceCurve]:
    """The curves of all predictions on `pairs` and `lookup` that have image indices."""
    return [DistanceCurve(answers.row, shares) for answers in every if (shares := _shares(answers))]


def _shares(answers: Answers) -> tuple[Share, ...]:
    row, images = answers
    if row.accuracy is None or images.indices is None or not is_generated(row.accuracy.dataset):
        return ()
    try:
        data = open_data(row.accuracy.dataset)
        if not isinstance(data, HasDistances):
            return ()
        pixels = data.distances("val", images.indices.tolist(), row.cell.resolution)
    except (IndexError, LongvisError):  # another data set's indices or dials: as if they were not there
        return ()
    bins = max(1, min(BINS, len(pixels) // BIN_IMAGES))
    return tuple(share_by(pixels, images.right.tolist(), bins))
