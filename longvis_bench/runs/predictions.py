"""A model's predictions for held-out images, stored in a file per row.

`predictions/<key>.npz` has, per image, `labels` (the true class), `predictions` (the class of the largest
logit) and `indices` (index in the held-out split); and `classes`, the class names in the order of labels.
Files of earlier versions have neither indices nor names.  Other properties of an image, e.g. the distance in
`pairs`, follow from its index and are not stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from longvis_bench.files import write_whole
from longvis_bench.records import Row
from longvis_bench.runs.directory import PREDICTIONS

_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for held-out images; arrays of shape (images)."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    indices: NDArray[np.int64] | None
    """Indices in the held-out split; None in files of earlier versions."""
    classes: tuple[str, ...] = ()
    """Class names by label; empty in files of earlier versions."""

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, shape (images)."""
        right: NDArray[np.bool_] = self.predictions == self.labels
        return right

    def same_images(self, other: Predictions) -> bool:
        """Whether both have the same images: by their indices, or by their labels if one has no indices."""
        if self.indices is not None and other.indices is not None:
            return bool(np.array_equal(self.indices, other.indices))
        return bool(np.array_equal(self.labels, other.labels))

    def save(self, path: Path) -> None:
        """Write them to `path` with `files.write_whole`."""
        arrays: dict[str, NDArray[Any]] = {"labels": self.labels, "predictions": self.predictions}
        if self.indices is not None:
            arrays["indices"] = self.indices
        if self.classes:
            arrays["classes"] = np.array(self.classes)
        write_whole(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def read_predictions(row: Row, runs: Iterable[Path]) -> Predictions | None:
    """The predictions of a row; None if no run has them or the file is damaged.

    Arguments:
        row: a row with an accuracy.
        runs: run directories that may have its predictions.
    """
    files = (run / PREDICTIONS / f"{row.key}.npz" for run in runs)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            found = Predictions(
                labels=stored["labels"],
                predictions=stored["predictions"],
                indices=stored.get("indices", None),
                classes=tuple(map(str, stored.get("classes", ()))),
            )
    except _DAMAGED:
        return None
    return found if _whole(found) else None


class Answers(NamedTuple):
    """A row and its predictions for held-out images."""

    row: Row
    images: Predictions


def read_answers(rows: Iterable[Row], runs: Iterable[Path]) -> list[Answers]:
    """The predictions of every row that has any; of several repeats, which predict the same, the first only.

    Arguments:
        rows: rows of one or several runs.
        runs: run directories that may have their predictions.
    """
    folders = [run for run in runs if (run / PREDICTIONS).is_dir()]
    first = (row for row in rows if row.accuracy is not None and row.cell.round == 0)
    found = ((row, read_predictions(row, folders)) for row in first)
    return [Answers(row, images) for row, images in found if images is not None]


def _whole(found: Predictions) -> bool:
    """Whether all arrays are non-empty vectors of non-negative integers, of the same length."""
    arrays = [found.labels, found.predictions, *([] if found.indices is None else [found.indices])]
    alike = all(a.ndim == 1 and a.dtype.kind == "i" and len(a) == len(found.labels) for a in arrays)
    return alike and len(found.labels) > 0 and all(int(a.min()) >= 0 for a in arrays)
