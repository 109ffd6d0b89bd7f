"""Held-out accuracy in training, over all processes: each evaluates every n-th image, and all get the sum.

If one process evaluated alone, the others would wait in their next collective call for longer than its
time-out allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn

from longvis_bench.data.protocol import ImageData, Split
from longvis_bench.errors import LongvisError
from longvis_bench.measure.accuracy import Accuracy, measure_accuracy
from longvis_bench.resolution import Resolution


@dataclass(frozen=True)
class HeldOutShare:
    """A part of a data set's held-out images, as a data set; see `ImageData`."""

    data: ImageData
    indices: tuple[int, ...]
    """Indices of the images in the data's held-out split."""

    @property
    def name(self) -> str:
        """Name of the whole data set."""
        return self.data.name

    @property
    def num_classes(self) -> int:
        """Number of classes of the whole data set."""
        return self.data.num_classes

    @property
    def classes(self) -> Sequence[str]:
        """Classes of the whole data set."""
        return self.data.classes

    @property
    def broken(self) -> dict[str, str]:
        """Files that could not be read so far -> the reason."""
        return dict(self.data.broken)

    def size(self, split: Split) -> int:
        """Number of images of the share."""
        return len(self.indices)

    def batch(
        self,
        split: Split,
        indices: Sequence[int],
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `ImageData.batch`; indices are those within the share."""
        chosen = [self.indices[index] for index in indices]
        return self.data.batch("val", chosen, resolution, device=device, dtype=dtype)


def shared_accuracy(
    model: nn.Module,
    data: ImageData,
    accelerator: Accelerator,
    *,
    resolution: Resolution,
    images: int,
    batch_size: int,
    device: torch.device,
) -> Accuracy:
    """Accuracy on `images` held-out images, evenly spaced over all; the same in every process.

    Arguments:
        model: one per process; its buffers are replaced by those of the main process.
        data: the data set.
        accelerator: the group of processes, each of which must call this function.
        resolution: pixels per side.
        images: number of images; all if there are fewer.
        batch_size: images per forward and process.
        device: of this process.

    Raises:
        LongvisError: in all processes, if one failed; see `measure_accuracy`.
    """
    processes = int(accelerator.num_processes)
    if processes > 1:
        broadcast(list(model.buffers()))
    size = data.size("val")
    count = min(images, size)
    spaced = [index * size // count for index in range(count)]
    mine = HeldOutShare(data, tuple(spaced[accelerator.process_index :: processes]))
    found: Accuracy | LongvisError | None = None
    try:
        if mine.indices or processes == 1:
            part = measure_accuracy(model, mine, resolution=resolution, batch_size=batch_size, device=device)
            found = replace(part, indices=np.array(mine.indices, dtype=np.int64)[part.indices])
    except LongvisError as error:
        if processes == 1:
            raise
        found = error
    return _joined(gather_object([found]) if processes > 1 else [found])


def _joined(parts: Sequence[Accuracy | LongvisError | None]) -> Accuracy:
    """Combine the accuracies of all processes, in the order of the images."""
    for part in parts:
        if isinstance(part, LongvisError):
            raise part
    known = [part for part in parts if isinstance(part, Accuracy)]
    indices = np.concatenate([part.indices for part in known])
    order = indices.argsort()
    top5 = [part.correct_top5 for part in known if part.correct_top5 is not None]
    return replace(
        known[0],
        indices=indices[order],
        labels=np.concatenate([part.labels for part in known])[order],
        predictions=np.concatenate([part.predictions for part in known])[order],
        correct_top1=sum(part.correct_top1 for part in known),
        correct_top5=sum(top5) if top5 else None,
        broken=tuple(sorted({name for part in known for name in part.broken})),
    )
