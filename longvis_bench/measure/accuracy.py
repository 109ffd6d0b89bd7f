"""Accuracy: correct predictions on held-out images at the cell's resolution.

Top-1 counts the images whose largest logit is the label's, top-5 those whose label is among the five
largest (None with five classes or fewer, where it would mean little).  The row stores counts rather than
shares, so that intervals can be computed from them (`stats.wilson`).  The run stores the prediction for
each image, too (`runs/predictions.py`): two models can then be compared on the same images, and accuracy
plotted against properties of the images.

`weights/` chooses and loads the weights; `cell.py` refuses to measure a model with random tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from longvis_bench.data.protocol import BROKEN_SHARE, ImageData, too_many_broken
from longvis_bench.errors import DataError
from longvis_bench.measure.validity.checks import no_recompiling
from longvis_bench.measure.validity.outputs import check_logits
from longvis_bench.records import AccuracyRecord
from longvis_bench.resolution import Resolution, sides
from longvis_bench.runs.predictions import Predictions

TOP = 5


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A model's predictions on held-out images of a data set."""

    dataset: str
    labels: NDArray[np.int64]
    """(images): the true class."""
    predictions: NDArray[np.int64]
    """(images): the class of the largest logit."""
    indices: NDArray[np.int64]
    """(images): indices in the held-out split."""
    correct_top1: int
    correct_top5: int | None
    classes: tuple[str, ...] = ()
    """Names of the data's classes, by label; empty where they are not needed."""
    restricted: bool = False
    """Whether the model has logits for further classes, which were ignored."""
    broken: tuple[str, ...] = ()
    """Held-out files that could not be read and so were left out."""

    @property
    def images(self) -> int:
        """Number of held-out images evaluated."""
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Share of images whose class was predicted correctly, 0-1."""
        return self.correct_top1 / self.images

    @property
    def top5(self) -> float | None:
        """Share of images whose label has one of the five largest logits, 0-1; None with up to 5 classes."""
        return None if self.correct_top5 is None else self.correct_top5 / self.images

    def to_record(self, *, weights: str, trained_resolution: Resolution | None = None) -> AccuracyRecord:
        """The stored form; `weights` is a file name or hash, never a path."""
        return AccuracyRecord(
            correct_top1=self.correct_top1,
            correct_top5=self.correct_top5,
            images=self.images,
            dataset=self.dataset,
            weights=weights,
            trained_resolution=trained_resolution,
            broken=self.broken,
            classes=len(self.classes) if self.restricted else None,
        )

    def to_predictions(self) -> Predictions:
        """The predictions for each image, as a run stores them."""
        return Predictions(
            labels=self.labels, predictions=self.predictions, indices=self.indices, classes=self.classes
        )


class StoredAccuracy(BaseModel):
    """An accuracy in plain types, as the cache keeps it; one that contradicts itself is refused.

    Raises:
        ValidationError: lengths differ, an index is negative, or the predictions give other counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    labels: tuple[NonNegativeInt, ...] = Field(min_length=1)
    predictions: tuple[NonNegativeInt, ...]
    indices: tuple[NonNegativeInt, ...]
    correct_top1: int
    correct_top5: int | None
    classes: tuple[str, ...]
    restricted: bool
    broken: tuple[str, ...]

    @model_validator(mode="after")
    def _agrees(self) -> StoredAccuracy:
        pairs = list(zip(self.labels, self.predictions, strict=True))
        if len(self.indices) != len(pairs) or sum(a == b for a, b in pairs) != self.correct_top1:
            raise ValueError("the predictions do not give the counts")
        if self.correct_top5 is not None and not self.correct_top1 <= self.correct_top5 <= len(pairs):
            raise ValueError("top-5 is below top-1, or more than all images")
        return self

    @classmethod
    def of(cls, accuracy: Accuracy) -> StoredAccuracy:
        """The same in plain types."""
        return cls(**{field.name: _plain(getattr(accuracy, field.name)) for field in fields(accuracy)})

    def restore(self) -> Accuracy:
        """The same with arrays."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        arrays = ("labels", "predictions", "indices")
        return Accuracy(**values | {name: np.array(values[name], dtype=np.int64) for name in arrays})


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def batch_for(resolution: Resolution) -> int:
    """Images per forward: at most 8, and at most as many pixels as 8 images of 512 px have."""
    return max(1, min(8, 8 * 512**2 // prod(sides(resolution))))


def measure_accuracy(
    model: nn.Module,
    data: ImageData,
    *,
    resolution: Resolution,
    images: int | None = None,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    logits: int | None = None,
    logit_indices: Sequence[int] | None = None,
) -> Accuracy:
    """Evaluate the model on `images` held-out images, evenly spaced over the split.

    Data sets are ordered by writer or by class, so the first images would be a biased sample.

    Arguments:
        model: on `device` and of `dtype` already; left in the mode it came in.
        data: where the images come from.
        resolution: pixels per side.
        images: how many; all of them where None, or where the split has fewer.
        batch_size: images per forward; without influence on a model that passes validity.
        device: where the batches are created.
        dtype: dtype of the batches; float32 by default.
        logits: number of logits of the model; by default the number of classes of the data.
        logit_indices: for each class of the data the index of its logit, where the model has further classes,
            whose logits are ignored; None where the logits are those of the data's classes.

    Raises:
        InvalidOutput: the logits are not (batch, `logits`), or not finite.
        DataError: there is no image to evaluate, or more than 1 % of the images cannot be read.
    """
    count = min(images if images is not None else data.size("val"), data.size("val"))
    if count < 1:
        raise DataError(f"accuracy needs at least one held-out image of {data.name}; {count} were asked for.")
    ask = partial(_ask, model, logits or data.num_classes, logit_indices)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        chunks = _chunks(_spaced(count, data.size("val")), batch_size)
        answers = list(_answers(ask, data, resolution, chunks, device, dtype))
    finally:
        for module, training in modes:
            module.training = training
    indices = [index for _, _, kept in answers for index in kept]
    broken = _broken(data, count, count - len(indices))
    ranked = torch.cat([ranked for ranked, _, _ in answers])
    labels = torch.cat([labels for _, labels, _ in answers])
    hits = ranked == labels[:, None]
    return Accuracy(
        dataset=data.name,
        labels=labels.numpy(),
        predictions=ranked[:, 0].numpy(),
        indices=np.array(indices, dtype=np.int64),
        correct_top1=int(hits[:, 0].sum()),
        correct_top5=int(hits.sum()) if data.num_classes > TOP else None,
        classes=tuple(data.classes),
        restricted=logit_indices is not None,
        broken=broken,
    )


def _broken(data: ImageData, asked: int, left_out: int) -> tuple[str, ...]:
    """Names of the held-out files that were left out.

    Raises:
        DataError: they are more than 1 % of the images that were to be evaluated.
    """
    names = tuple(sorted(name for name in data.broken if not name.startswith("train/")))
    if left_out > BROKEN_SHARE * asked:
        raise too_many_broken(left_out, asked, names[-1], data.broken[names[-1]])
    return names


def _spaced(count: int, size: int) -> list[int]:
    """`count` of `size` indices, evenly spaced; all of them where count is size."""
    return [index * size // count for index in range(count)]


def _chunks(indices: list[int], batch_size: int) -> Iterator[list[int]]:
    return (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))


def _ask(model: nn.Module, logits: int, logit_indices: Sequence[int] | None, images: Tensor) -> Tensor:
    """Logits (batch, classes of the data), checked."""
    found = check_logits(model(images), len(images), logits)
    return found if logit_indices is None else found[:, list(logit_indices)]


def _answers(
    ask: Callable[[Tensor], Tensor],
    data: ImageData,
    resolution: Resolution,
    chunks: Iterator[list[int]],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Evaluate chunk by chunk.

    Yields:
        On the CPU: the classes of the largest logits (batch, up to 5), largest first; labels (batch); the
        indices of the images in the split.
    """
    with torch.inference_mode(), no_recompiling():
        for chunk in chunks:
            images, labels = data.batch("val", chunk, resolution, device=device, dtype=dtype)
            if not len(labels):  # every file of the chunk is broken
                continue
            logits = ask(images).float()
            ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :TOP]  # ties: lowest class first
            yield ranked.cpu(), labels.cpu(), _kept(data, chunk, resolution, len(labels))


def _kept(data: ImageData, chunk: list[int], resolution: Resolution, count: int) -> list[int]:
    """The indices of a chunk whose images are in its batch of `count` images; broken files are not."""
    if count == len(chunk):
        return chunk
    return [index for index in chunk if len(data.batch("val", [index], resolution)[1])]
