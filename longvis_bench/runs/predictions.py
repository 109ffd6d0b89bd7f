"""A model's answers to held-out images, in a file beside its row.

`predictions/<key>.npz` holds, image by image, `labels` (the truth), `predictions` (the class of the largest
logit) and `indices` (which image of the held-out split it is), and `classes`, their names by label; files of
earlier versions have no indices and no names.
What else is known of an image, as the distance in `pairs`, follows from its index and is not stored.
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
    """Answers to held-out images; arrays of one length, (images)."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    indices: NDArray[np.int64] | None
    """Indices in the held-out split; None in files that do not hold them."""
    classes: tuple[str, ...] = ()
    """Names by label; none in files that do not hold them."""

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each answer is the truth."""
        right: NDArray[np.bool_] = self.predictions == self.labels
        return right

    def same_images(self, other: Predictions) -> bool:
        """Whether both are about the same images: by their indices, or else by their labels."""
        if self.indices is not None and other.indices is not None:
            return bool(np.array_equal(self.indices, other.indices))
        return bool(np.array_equal(self.labels, other.labels))

    def save(self, path: Path) -> None:
        """Write them to `path`, whole and durable; see `files.write_whole`."""
        arrays: dict[str, NDArray[Any]] = {"labels": self.labels, "predictions": self.predictions}
        if self.indices is not None:
            arrays["indices"] = self.indices
        if self.classes:
            arrays["classes"] = np.array(self.classes)
        write_whole(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def read_predictions(row: Row, runs: Iterable[Path]) -> Predictions | None:
    """What the row's model answered; None where no run keeps it, or where the file is damaged.

    Arguments:
        row: one with an accuracy.
        runs: directories in which its predictions may lie.
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
    except _DAMAGED:  # as if it were not there
        return None
    return found if _whole(found) else None


class Answers(NamedTuple):
    """What one model said of held-out images."""

    row: Row
    images: Predictions


def read_answers(rows: Iterable[Row], runs: Iterable[Path]) -> list[Answers]:
    """The answers of every row that has any, once where several rounds gave the same ones.

    Arguments:
        rows: of one or several runs.
        runs: directories in which their predictions may lie.
    """
    folders = list(runs)
    first = (row for row in rows if row.accuracy is not None and row.cell.round == 0)
    found = ((row, read_predictions(row, folders)) for row in first)
    return [Answers(row, images) for row, images in found if images is not None]


def _whole(found: Predictions) -> bool:
    """Whether all arrays are integers from 0 up, of one length above 0."""
    arrays = [found.labels, found.predictions, *([] if found.indices is None else [found.indices])]
    alike = all(a.ndim == 1 and a.dtype.kind == "i" and len(a) == len(found.labels) for a in arrays)
    return alike and len(found.labels) > 0 and all(int(a.min()) >= 0 for a in arrays)
