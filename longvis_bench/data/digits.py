"""HR-Digits: real handwritten digits at any resolution, without a download.

1,797 scanned digits (8 x 8 pixels, values 0-16; the test part of UCI's "Optical Recognition of Handwritten
Digits", CC BY 4.0, see `digits.md`) are upsampled bicubically to the cell's resolution, as HR-ImageNet-100
upsamples ImageNet (arXiv:2503.12355); a rectangle stretches them.  Upsampling adds no detail, so the data
set tests the receptive field only: at 1024 px a stroke is hundreds of pixels wide, and a model whose last
features depend on a small part of the image cannot read the digit.  It does not test fine detail.

Split: the last 397 images in file order are held out.  The file lists its 13 writers one after the other, so
that held-out digits are by writers (except one at the boundary) that training does not see.

Images are upsampled batch by batch and not stored.  torch is imported with the first batch, so that a sweep
is planned without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from longvis_bench.data.protocol import Split
from longvis_bench.data.without_files import WithoutFiles
from longvis_bench.files import PACKAGE
from longvis_bench.resolution import Resolution, sides

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

IMAGES = 1797
TRAIN_IMAGES = 1400
HIGHEST_VALUE = 16.0
MEAN, DEVIATION = 0.3055, 0.3757
"""Mean and standard deviation of the 1,400 training images' pixels, divided by `HIGHEST_VALUE`."""


FILE = PACKAGE / "data" / "digits.csv.gz"
"""The scans: one line per image, 64 values and the digit."""


@cache
def read_scans() -> NDArray[np.float64]:
    """All scans with their labels, (1797, 65) float64; read once, without a tensor operation."""
    import numpy as np

    return np.loadtxt(FILE, delimiter=",")


@cache
def scans_hash() -> str:
    """SHA-256 of the scans, in hexadecimal: what all images of `digits` and `pairs` are made from."""
    return hashlib.sha256(read_scans().tobytes()).hexdigest()


@cache
def _originals() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8), float32 in 0-1, and their labels (1797), int64."""
    import torch

    scans = torch.from_numpy(read_scans())
    return scans[:, :-1].float().view(-1, 1, 8, 8) / HIGHEST_VALUE, scans[:, -1].long()


class Digits(WithoutFiles):
    """HR-Digits; see the module's docstring."""

    name = "digits"
    num_classes = 10
    classes = tuple("0123456789")

    def size(self, split: Split) -> int:
        """Number of images in a split: 1,400 for training, 397 held out."""
        return len(self._range(split))

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        """One digit of 8 x 8 pixels; see `LoadableData.load`."""
        images, labels = _originals()
        position = self._range(split)[index]
        return images[position], int(labels[position])

    def fit(self, image: Tensor, resolution: Resolution) -> Tensor:
        """Resize by torch's bicubic kernel (a = -0.75), as in the training of the shipped weights."""
        from torch.nn import functional as F

        size = sides(resolution)
        return F.interpolate(image[None], size=size, mode="bicubic", align_corners=False)[0]

    def finish(
        self,
        images: Sequence[Tensor] | Tensor,
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A normalised batch; see `LoadableData.finish`.  Digits are normalised before they are upsampled."""
        import torch
        from torch.nn import functional as F

        dtype = dtype or torch.float32
        if not len(images):
            return torch.empty(0, 3, *sides(resolution), device=device, dtype=dtype)
        batch = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
        unit = batch.float() / 255 if batch.dtype == torch.uint8 else batch
        batch = ((unit - MEAN) / DEVIATION).to(device)
        if tuple(batch.shape[-2:]) != sides(resolution):
            batch = F.interpolate(batch, size=sides(resolution), mode="bicubic", align_corners=False)
        return batch.to(dtype).expand(-1, 3, -1, -1).contiguous()

    @staticmethod
    def _range(split: Split) -> range:
        """Positions of a split's images in the file."""
        first, last = {"train": (0, TRAIN_IMAGES), "val": (TRAIN_IMAGES, IMAGES)}[split]
        return range(first, last)
