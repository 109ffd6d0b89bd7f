"""The images a cell sees: labelled, at the cell's resolution.

A data set is anything that follows `ImageData`; `open_data` finds one by its name on the command line:

    digits        real handwritten digits, upsampled (`digits.py`)
    pairs         two small digits far apart on a large canvas: are they the same? (`pairs.py`)
    folder:PATH   the user's own images, in class folders (`folder.py`)

Importing this module, and opening any data set, imports neither torch nor Pillow nor images.

Two ways to get images, which give the same pixels:

    images, labels = data.batch("val", [0, 7], 1024, device="cuda")         # these indices, here and now

    loader = Loader(data, "train", resolution=1024, batch_size=16, seed=0, workers=4, device="cuda")
    for epoch in range(epochs):
        for images, labels, indices in loader.epoch(epoch, start=0):        # an epoch, decoded ahead
            ...
        loader.waited_s                                                     # seconds the model stood idle

`loader.py` is where `Loader` is, and its docstring has the rules: order by seed and epoch, continuing at a
batch, ranks of several processes, augmentation, and what becomes of broken files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from longvis_bench.errors import DataError, UnknownName
from longvis_bench.records import DataSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Split = Literal["train", "val"]
"""`val` is held out: no recipe is chosen on it and nothing is trained on it."""

KNOWN = ("digits", "folder:PATH", "pairs")
FOLDER = "folder:"
BROKEN_SHARE = 0.01
"""More broken files than this share are no accident."""


class ImageData(Protocol):
    """Labelled images, produced at whatever resolution is asked for."""

    @property
    def name(self) -> str:
        """Stored with every row and weight file made from these images; never holds a path."""

    @property
    def num_classes(self) -> int:
        """Labels are 0 to `num_classes` - 1."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, by label."""

    @property
    def broken(self) -> Mapping[str, str]:
        """Files this process could not read, with the reason; names begin with the split."""

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
            Images (batch, 3, resolution, resolution), normalised, and labels (batch), int64.  Broken files
            are left out.

        Raises:
            DataError: more than 1 % of the split's files are broken.
        """


class LoadableData(ImageData, Protocol):
    """Data whose images can be made in two steps: on a worker's CPU, then on the device."""

    def load(self, split: Split, index: int, resolution: int) -> tuple[Tensor, int]:
        """One image as it is stored, on the CPU, and its label.

        Returns:
            (1 or 3, height, width), uint8 in 0-255 or float32 in 0-1, and the label.

        Raises:
            BrokenImage: the file cannot be read.
        """

    def fit(self, image: Tensor, resolution: int) -> Tensor:
        """A loaded image at its size, (1 or 3, resolution, resolution), on its device and in its dtype."""

    def finish(
        self,
        images: Sequence[Tensor] | Tensor,
        resolution: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Loaded images, fitted or not, as a normalised batch (batch, 3, resolution, resolution)."""

    def note_broken(self, split: Split, broken: Mapping[str, str]) -> None:
        """Count files that a loader's worker could not read.

        Raises:
            DataError: they are more than 1 % of the split's files by now.
        """


class BrokenImage(Exception):
    """One file that cannot be read; it is left out and counted, and so never reaches the user as an error.

    Arguments:
        name: the file, relative to the data set's folder.
        why: what is wrong with it.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why


def too_many_broken(count: int, of: int, name: str, why: str) -> DataError:
    """The error of a data set that is damaged beyond 1 %."""
    return DataError(
        f"{count} of {of} images cannot be read, more than {BROKEN_SHARE:.0%}, the last of them {name} "
        f"({why}); repair or remove them."
    )


def open_data(spec: str | DataSpec) -> LoadableData:
    """The data set a user names.

    Raises:
        UnknownName: nothing answers to it, or to one of its classes.
        DataError: a folder that is not as it should be.
    """
    spec = DataSpec(spec) if isinstance(spec, str) else spec
    if spec.data.startswith(FOLDER):
        from longvis_bench.data.folder import Folder

        return Folder(
            spec.data.removeprefix(FOLDER),
            classes=spec.classes,
            window=spec.window,
            normalisation=spec.normalisation,
            class_order=spec.class_order,
        )
    if spec.data not in KNOWN:
        raise UnknownName("data set", spec.data, KNOWN)
    natural = None if spec.class_order == "sorted" else spec.class_order
    given = (("--classes", spec.classes), ("--window", spec.window), ("--class-order", natural))
    for option, value in given:
        if value is not None:
            raise DataError(f"{option} is for folder:PATH, and the data is {spec.data}.")
    if spec.data == "pairs":
        from longvis_bench.data.pairs import Pairs

        return Pairs()
    from longvis_bench.data.digits import Digits

    return Digits()
