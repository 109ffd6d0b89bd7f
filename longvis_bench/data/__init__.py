"""The images a cell sees: labelled, real, at the cell's resolution.

A data set is anything that follows `ImageData`; `open_data` finds one by its name on the command line.
Importing this module imports neither torch nor the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from longvis_bench.errors import UnknownName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Split = Literal["train", "val"]
"""`val` is held out: no recipe is chosen on it and nothing is trained on it."""

KNOWN = ("digits",)


class ImageData(Protocol):
    """Labelled images, produced at whatever resolution is asked for."""

    @property
    def name(self) -> str:
        """Stored with every row and weight file made from these images."""

    @property
    def num_classes(self) -> int:
        """Labels are 0 to `num_classes` - 1."""

    def size(self, split: Split) -> int:
        """Images in a split."""

    def batch(
        self,
        split: Split,
        indices: Sequence[int],
        resolution: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images and labels by their index in the split.

        Arguments:
            split: "train" or "val".
            indices: which images, 0-based.
            resolution: pixels per side.
            device: where the batch is made and left.
            dtype: of the images; float32 unless given.

        Returns:
            Images (batch, 3, resolution, resolution), normalised, and labels (batch), int64.
        """


def open_data(spec: str) -> ImageData:
    """The data set a user names.

    Raises:
        UnknownName: nothing answers to it.
    """
    if spec != "digits":
        raise UnknownName("data set", spec, KNOWN)
    from longvis_bench.data.digits import Digits

    return Digits()
