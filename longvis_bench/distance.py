"""Accuracy against distance: how far apart a model can compare two things, on `pairs`.

The predictions are those that a run keeps with its rows.  The distance of an image follows from its index,
which the data set knows; it is stored nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from longvis_bench.predictions import read_predictions
from longvis_bench.records import Row
from longvis_bench.stats import Share, share_by

DATASET = "pairs"
BINS, BIN_IMAGES = 8, 60
"""Most bins, and about the fewest images of one: with fewer its interval says nothing."""


class DistanceCurve(NamedTuple):
    """One row's accuracy by the distance of the two digits."""

    row: Row
    shares: tuple[Share, ...]
    """Right answers among the images of a distance, in pixels; the nearest first."""


def by_distance(rows: Sequence[Row], runs: Sequence[Path]) -> list[DistanceCurve]:
    """The curve of every row on `pairs` whose predictions, with their indices, are there.

    Arguments:
        rows: of one or several runs.
        runs: directories in which their predictions lie.
    """
    return [DistanceCurve(row, shares) for row in rows if (shares := _shares(row, runs))]


def _shares(row: Row, runs: Sequence[Path]) -> tuple[Share, ...]:
    if row.accuracy is None or row.accuracy.dataset != DATASET or row.cell.round > 0:
        return ()
    found = read_predictions(row, runs)
    if found is None or found.indices is None:
        return ()
    from longvis_bench.data.pairs import Pairs

    try:
        pixels = Pairs().distances("val", found.indices.tolist(), row.cell.resolution)
    except IndexError:  # another data set's indices: as if they were not there
        return ()
    bins = max(1, min(BINS, len(pixels) // BIN_IMAGES))
    return tuple(share_by(pixels, found.right.tolist(), bins))
