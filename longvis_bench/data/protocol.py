"""The protocol of data sets: labelled images at the cell's resolution.

A data set is an object that implements `ImageData`; `open_data` opens one by its name on the command line:

    digits        real handwritten digits, upsampled (`digits.py`)
    pairs         two small digits far apart on a large canvas, labelled same or different (`pairs.py`)
    lookup[...]   the texture of the disc that has the colour of another disc (`lookup.py`)
    folder:PATH   the user's own images, in class folders (`folder.py`)

Importing this module and opening a data set import neither torch nor Pillow, and read no image.

There are two ways to get images, which give the same pixels:

    images, labels = data.batch("val", [0, 7], 1024, device="cuda")         # by index, in this process

    loader = Loader(data, "train", resolution=1024, batch_size=16, seed=0, workers=4, device="cuda")
    for epoch in range(epochs):
        for images, labels, indices in loader.epoch(epoch, start=0):        # one epoch, decoded ahead
            ...
        loader.waited_s                                                     # seconds spent waiting for images

`loader.py` has `Loader`.  Its docstring has the rules for the order of images, resuming at a batch, ranks of
several processes, augmentation, and broken files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from longvis_bench.errors import DataError, UnknownName
from longvis_bench.records import DataSpec
from longvis_bench.resolution import Resolution

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Split = Literal["train", "val"]
"""`val` is held out: it is used neither for training nor for choosing a recipe."""

KNOWN = ("digits", "folder:PATH", "lookup", "pairs")
FOLDER = "folder:"
GENERATED = ("digits", "lookup", "pairs")
"""Data sets that code determines; `lookup` may have dials in brackets."""
BROKEN_SHARE = 0.01
"""A split with a larger share of broken files raises an error."""


class ImageData(Protocol):
    """Labelled images at any resolution."""

    @property
    def name(self) -> str:
        """Name stored in rows and weight files made from these images; contains no path."""

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to `num_classes` - 1."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the labels."""

    @property
    def broken(self) -> Mapping[str, str]:
        """Files that this process could not read -> the reason; training ones begin with train/."""

    def size(self, split: Split) -> int:
        """Number of images in a split."""

    def batch(
        self,
        split: Split,
        indices: Sequence[int],
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images and labels by their index in the split.

        Arguments:
            split: "train" or "val".
            indices: which images, 0-based.
            resolution: pixels per side, or a `Rectangle`.
            device: of the returned tensors.
            dtype: of the images; float32 unless given.

        Returns:
            Images (batch, 3, height, width), normalised, and labels (batch), int64.  Broken files
            are left out.

        Raises:
            DataError: more than 1 % of the split's files are broken.
        """


class LoadableData(ImageData, Protocol):
    """Data whose images are prepared in two steps: on a worker's CPU, then on the device."""

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of the files that were found, without a full stop."""

    @property
    def fresh(self) -> bool:
        """Whether images are drawn, and each epoch of a training has new ones.

        Image i of epoch e is then image e * size + i, and training images have no largest index.
        """

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        """One image at its stored size, on the CPU, and its label.

        Returns:
            (1 or 3, height, width), uint8 in 0-255 or float32 in 0-1, and the label.

        Raises:
            BrokenImage: the file cannot be read.
        """

    def fit(self, image: Tensor, resolution: Resolution) -> Tensor:
        """A loaded image brought to the resolution: (1 or 3, height, width), on its device, in its dtype."""

    def finish(
        self,
        images: Sequence[Tensor] | Tensor,
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Loaded images, resized or not, as a normalised batch (batch, 3, height, width)."""

    def note_broken(self, split: Split, broken: Mapping[str, str]) -> None:
        """Record files that a loader's worker could not read.

        Raises:
            DataError: more than 1 % of the split's files are broken.
        """


@runtime_checkable
class HasDistances(Protocol):
    """Data whose images have a distance that information must travel."""

    def distances(self, split: Split, indices: Sequence[int], resolution: Resolution) -> list[float]:
        """The distance in each image, in pixels; no image is drawn.

        Raises:
            IndexError: the split has fewer images.
        """


class BrokenImage(Exception):
    """A file that cannot be read; callers leave it out and count it, so the user does not see this error.

    Arguments:
        name: the file, relative to the data set's folder.
        why: the reason.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why


def too_many_broken(count: int, of: int, name: str, why: str) -> DataError:
    """The error of a split with more than 1 % of broken files."""
    return DataError(
        f"{count} of {of} images cannot be read, more than {BROKEN_SHARE:.0%}, the last of them {name} "
        f"({why}); repair or remove them."
    )


def is_generated(name: str) -> bool:
    """Whether code and the scans in `digits.csv.gz` determine the images of a data set."""
    return name in GENERATED or name.startswith("lookup[")


def open_data(spec: str | DataSpec) -> LoadableData:
    """Open a data set by its name or specification.

    Raises:
        UnknownName: there is no data set, list of classes or class of that name.
        DataError: the layout of a folder is wrong, or an option does not apply to the data set.
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
            bands=spec.bands,
            fit=spec.fit,
        )
    if not is_generated(spec.data):
        is_path = "/" in spec.data or Path(spec.data).is_dir()
        hint = f"for a folder of images write {FOLDER}{spec.data}." if is_path else ""
        raise UnknownName("data set", spec.data, [] if is_path else KNOWN, hint)
    natural = None if spec.class_order == "sorted" else spec.class_order
    given = (("--classes", spec.classes), ("--window", spec.window), ("--class-order", natural))
    shape = None if spec.fit == "crop" else spec.fit
    for option, value in (*given, ("--bands", spec.bands), ("--fit", shape)):
        if value is not None:
            raise DataError(f"{option} is for folder:PATH, and the data is {spec.data}.")
    if spec.data.partition("[")[0] == "lookup":
        from longvis_bench.data.lookup import Lookup, read_dials

        return Lookup(read_dials(spec.data))
    if spec.data == "pairs":
        from longvis_bench.data.pairs import Pairs

        return Pairs()
    from longvis_bench.data.digits import Digits

    return Digits()
