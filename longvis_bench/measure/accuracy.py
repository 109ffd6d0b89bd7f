"""Accuracy: right answers on held-out images at the cell's resolution.

Top-1 counts the images whose largest logit is the label's, top-5 those whose label is among the five largest
(None with five classes or fewer, where it says nothing).  Counts are kept, not shares, so that intervals can
be made from them (`stats.wilson`); each image's prediction is kept too (`predictions.py`), so that two models
can be compared on the same images, and accuracy be drawn against what is known of an image.

Not here: which weights are loaded (`weights.py`), and whether any tensor of the model is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longvis_bench.data.protocol import BROKEN_SHARE, ImageData, too_many_broken
from longvis_bench.errors import DataError
from longvis_bench.measure.validity.checks import check_logits
from longvis_bench.records import AccuracyRecord
from longvis_bench.runs.predictions import Predictions

TOP = 5


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a model answered to held-out images of a data set."""

    dataset: str
    labels: NDArray[np.int64]
    """(images): the truth."""
    predictions: NDArray[np.int64]
    """(images): the class of the largest logit."""
    indices: NDArray[np.int64]
    """(images): places in the held-out split."""
    correct_top1: int
    correct_top5: int | None
    classes: tuple[str, ...] = ()
    """Names of the data's classes, by label; empty where nobody needs them."""
    restricted: bool = False
    """Whether the model knows further classes, which were no answers."""
    broken: tuple[str, ...] = ()
    """Held-out files that could not be read and so were left out."""

    @property
    def images(self) -> int:
        """Held-out images asked."""
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Share of right answers, 0-1."""
        return self.correct_top1 / self.images

    @property
    def top5(self) -> float | None:
        """Share of images whose label is among the five best answers, 0-1."""
        return None if self.correct_top5 is None else self.correct_top5 / self.images

    def to_record(self, *, weights: str, trained_resolution: int | None = None) -> AccuracyRecord:
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
        """What a run keeps of it, image by image."""
        return Predictions(
            labels=self.labels, predictions=self.predictions, indices=self.indices, classes=self.classes
        )


def batch_for(resolution: int) -> int:
    """Images at once: at most 8, and no more pixels than 8 of 512 px have."""
    return max(1, min(8, 8 * 512**2 // resolution**2))


def measure_accuracy(
    model: nn.Module,
    data: ImageData,
    *,
    resolution: int,
    images: int | None = None,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    logits: int | None = None,
    places: Sequence[int] | None = None,
) -> Accuracy:
    """Ask the model about `images` held-out images, evenly spaced over all of them.

    Data sets are ordered, by writer or by class: the first few would be a sample of their own kind.

    Arguments:
        model: on `device` and of `dtype` already; left in the mode it came in.
        data: where the images come from.
        resolution: pixels per side.
        images: how many; all where None or where there are fewer.
        batch_size: images a forward; of no influence on a model that passes validity.
        device: where the batches are made.
        dtype: of the batches; float32 unless given.
        logits: the model's; as many as the data has classes unless given.
        places: for each class of the data its logit, where the model knows further classes, which are then no
            answers; None where the logits are those of the data's classes.

    Raises:
        InvalidOutput: the logits are not (batch, `logits`), or not finite.
        DataError: there is no image to ask about, or more than 1 % of them cannot be read.
    """
    count = min(images if images is not None else data.size("val"), data.size("val"))
    if count < 1:
        raise DataError(f"accuracy needs at least one held-out image of {data.name}; {count} were asked for.")
    ask = partial(_ask, model, logits or data.num_classes, places)
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
        restricted=places is not None,
        broken=broken,
    )


def _broken(data: ImageData, asked: int, left_out: int) -> tuple[str, ...]:
    """Names of the held-out files that were left out.

    Raises:
        DataError: they are more than 1 % of those asked about.
    """
    names = tuple(sorted(name for name in data.broken if name.startswith("val/")))
    if left_out > BROKEN_SHARE * asked:
        raise too_many_broken(left_out, asked, names[-1], data.broken[names[-1]])
    return names


def _spaced(count: int, size: int) -> list[int]:
    """`count` of `size` places, evenly spaced; all of them where count is size."""
    return [index * size // count for index in range(count)]


def _chunks(places: list[int], batch_size: int) -> Iterator[list[int]]:
    return (places[start : start + batch_size] for start in range(0, len(places), batch_size))


def _ask(model: nn.Module, logits: int, places: Sequence[int] | None, images: Tensor) -> Tensor:
    """Logits (batch, classes of the data), checked."""
    found = check_logits(model(images), len(images), logits)
    return found if places is None else found[:, list(places)]


def _answers(
    ask: Callable[[Tensor], Tensor],
    data: ImageData,
    resolution: int,
    chunks: Iterator[list[int]],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """For each chunk, on the CPU: the most likely classes (batch, up to 5), best first; labels; indices."""
    with torch.inference_mode():
        for chunk in chunks:
            images, labels = data.batch("val", chunk, resolution, device=device, dtype=dtype)
            if not len(labels):  # every file of the chunk is broken
                continue
            logits = ask(images).float()
            ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :TOP]  # ties: lowest class first
            yield ranked.cpu(), labels.cpu(), _kept(data, chunk, resolution, len(labels))


def _kept(data: ImageData, chunk: list[int], resolution: int, count: int) -> list[int]:
    """Those of the indices whose image is in a batch of `count`: the broken ones are not."""
    if count == len(chunk):
        return chunk
    return [index for index in chunk if len(data.batch("val", [index], resolution)[1])]
