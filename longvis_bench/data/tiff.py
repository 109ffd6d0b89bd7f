"""TIFFs that Pillow cannot read, or reads only in part: through tifffile, the extra `tiff`.

These are images of more than four bands, floats of 16 and 64 bits, and compressions such as JPEG 2000.  The
first page is read.  `--bands` selects its bands; without it there have to be one or three.  Microscopes and
satellites also store each band as a page of its own: where the pages have one band each, `--bands` selects
pages, which must be alike in size and kind of number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from longvis_bench.errors import DataError, MissingDependency

Bands = tuple[int, ...]
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 277, 284, 339
"""Tags of TIFF 6.0."""
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NUMBERS = {1: "uint", 2: "int", 3: "float", 4: "uint", 5: "complex int", 6: "complex"}
"""Kinds of numbers by the sample format; 4 is undefined, which readers take as the default."""
_COMPRESSIONS = {
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34933: "PNG",
    34934: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
"""Compressions that Pillow does not read."""
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda image: image[:, :, ::-1],
    3: lambda image: image[:, ::-1, ::-1],
    4: lambda image: image[:, ::-1],
    5: lambda image: image.transpose(0, 2, 1),
    6: lambda image: image.transpose(0, 2, 1)[:, :, ::-1],
    7: lambda image: image.transpose(0, 2, 1)[:, ::-1, ::-1],
    8: lambda image: image.transpose(0, 2, 1)[:, ::-1],
}
"""Orientation -> what makes (bands, height, width) upright."""


class Kind(NamedTuple):
    """What the tags of a TIFF's first page say of its pixels."""

    samples: int
    """Bands per pixel."""
    bits: int
    """Bits per band."""
    number: str
    """"uint", "int" or "float", which the window depends on; or complex kinds."""
    compression: int
    is_white_zero: bool
    is_planar: bool
    """Whether bands are stored one after the other."""

    def __str__(self) -> str:
        bands = "1 band" if self.samples == 1 else f"{self.samples} bands"
        packed = _COMPRESSIONS.get(self.compression)
        return f"a TIFF of {bands}, {self.number}{self.bits}" + (
            f", compressed with {packed}" if packed else ""
        )


def tiff_kind(path: Path) -> Kind | None:
    """The kind of a TIFF; None if the file is none, or its first directory cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head[:4] not in _MAGIC:
                return None
            if 43 in head[2:4]:
                head += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
        return kind_of_tags(tags)
    except Exception:  # a damaged file can raise anything in Pillow's readers
        return None


def kind_of_tags(tags: Any) -> Kind:
    """The kind of a TIFF from a mapping of its tags, with the defaults of TIFF 6.0."""
    return Kind(
        samples=int(tags.get(_SAMPLES, 1)),
        bits=int(_first(tags.get(_BITS, 1))),
        number=_NUMBERS.get(_first(tags.get(_SAMPLE_FORMAT, 1)), "unknown "),
        compression=int(tags.get(_COMPRESSION, 1)),
        is_white_zero=tags.get(_PHOTOMETRIC) == 0,
        is_planar=tags.get(_PLANES) == 2,
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def read_tiff(path: Path, name: str, kind: Kind, bands: Bands | None) -> NDArray[Any]:
    """The pixels of the first page, upright, as they are stored.

    Arguments:
        path: the file.
        name: its name in messages.
        kind: what its tags say, for messages.
        bands: numbers of the bands to take, from 1.

    Returns:
        (1 or 3, height, width), in the file's dtype.

    Raises:
        MissingDependency: tifffile, or its codecs, are not installed.
        DataError: the bands are too many, or do not exist.
    """
    install = "python -m pip install 'longvis-bench[tiff]'"
    try:
        import tifffile
    except ImportError as error:
        raise MissingDependency("tifffile", f"{name} ({kind})", install) from error
    if bands is None and kind.samples not in (1, 3):
        raise DataError(f"{name} is {kind}: select 1 or 3 of its bands with --bands, like --bands 3,2,1.")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        try:
            if bands is not None and kind.samples == 1 and len(file.pages) > 1:
                return _pages(file.pages, name, bands)
            planes = _planes(page)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise MissingDependency("imagecodecs", f"{name} ({kind})", install) from error
    return select_bands(planes, name, bands)


def _planes(page: Any) -> NDArray[Any]:
    """The bands of a page (bands, height, width), upright."""
    stored, orientation = page.asarray(), page.tags.valueof("Orientation", 1)
    planes = np.moveaxis(stored, page.axes.index("S"), 0) if "S" in page.axes else stored[None]
    return _UPRIGHT[orientation](planes) if orientation in _UPRIGHT else planes


def _pages(pages: Any, name: str, bands: Bands) -> NDArray[Any]:
    """The pages that are asked for, each one band.

    Raises:
        DataError: a page does not exist, or differs from the first one that is asked for.
    """
    if max(bands) > len(pages):
        raise DataError(f"{name} has {len(pages)} pages, so there is no band {max(bands)} of --bands.")
    planes = [_planes(pages[band - 1]) for band in bands]
    first = planes[0]
    for band, plane in zip(bands, planes, strict=True):
        if len(plane) != 1 or (plane.shape, plane.dtype) != (first.shape, first.dtype):
            shapes = f"{_described(first)} and {_described(plane)}"
            raise DataError(
                f"{name} has pages that are no bands of one image, {bands[0]} and {band} ({shapes}): choose "
                "pages of one size and kind, or convert the file."
            )
    return np.concatenate(planes)


def _described(planes: NDArray[Any]) -> str:
    return f"{planes.shape[1]} x {planes.shape[2]} {planes.dtype}"


def select_bands(pixels: NDArray[Any], name: str, bands: Bands | None) -> NDArray[Any]:
    """The bands of (bands, height, width) that are asked for; all if none are.

    Raises:
        DataError: the image does not have all of them.
    """
    if bands is None:
        return pixels
    if max(bands) > len(pixels):
        have = "1 band" if len(pixels) == 1 else f"{len(pixels)} bands"
        raise DataError(f"{name} has {have}, so there is no band {max(bands)} of --bands.")
    return pixels[[band - 1 for band in bands]]
