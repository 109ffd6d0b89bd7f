"""Decode image files to pixels, independently of the format.

EXIF orientation is applied; palettes, CMYK and the like become RGB, transparent parts become white, and grey
images keep one channel.  Grey images of more than 8 bits keep their depth as float32: 16 bits are scaled
over their full range or by a window of pixel values, as mammography needs; signed values, 32 bits and floats
have no known range and need the window.  TIFFs whose 0 is white are inverted after that.  Pillow reads
16-bit colour as 8 bits per channel.  Of several pages or frames the first is read, unless the bands that are
asked for are pages of a TIFF.  `tiff.py` reads TIFFs
that Pillow cannot read, and `dicom.py` DICOM files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from longvis_bench.data import dicom
from longvis_bench.data.protocol import BrokenImage
from longvis_bench.data.tiff import (
    Bands,
    Kind,
    kind_of_tags,
    read_tiff,
    select_bands,
    tiff_kind,
)
from longvis_bench.errors import DataError, MissingDependency

Window = tuple[float, float]
MOST_PIXELS = 1 << 30
"""A file that declares more counts as broken; Pillow's own limit is below the sizes of pathology."""
MOST_TEXT_BYTES = 1 << 28
"""A PNG whose texts are longer counts as broken.  Pillow's own limit is below the histories of editors."""
LARGE_PIXELS = 1 << 20
"""JPEGs of at least this size are decoded by torchvision, whose import takes a second."""
ORIENTATION = 0x0112
"""EXIF tag of the orientation; 1 is upright."""


def decode(path: Path, name: str, window: Window | None = None, bands: Bands | None = None) -> NDArray[Any]:
    """The pixels of a file.

    Arguments:
        path: the file.
        name: its name in messages.
        window: pixel values (low, high) that become 0 and 1, for images of more than 8 bits.
        bands: numbers of the bands to take, from 1: one or three.

    Returns:
        (1 or 3, height, width), uint8 in 0-255 or float32 in 0-1.  Colour images are channels-last in
        memory, as decoders write them: reordering 4096 x 4096 pixels takes as long as decoding them.

    Raises:
        BrokenImage: the file is missing, truncated or no image.
        DataError: the window or the bands do not suit the kind of image, or are missing.
        MissingDependency: this kind of file needs a package that is not installed.
    """
    try:
        return _decoded(path, name, window, bands)
    except (DataError, MissingDependency, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything in Pillow's readers
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise BrokenImage(name, why.replace(str(path), name)) from error


def _decoded(path: Path, name: str, window: Window | None, bands: Bands | None) -> NDArray[Any]:
    """See `decode`."""
    if path.suffix.lower() in dicom.SUFFIXES or dicom.is_dicom(path):
        return select_bands(dicom.read_dicom(path, name, window), name, bands)
    try:
        with _opened(path) as image:
            kind = kind_of_tags(image.tag_v2) if isinstance(image, TiffImageFile) else None
            if kind is None or not (_is_beyond_pillow(kind, window, bands) or _in_pages(image, kind, bands)):
                return select_bands(_by_pillow(image, path, kind, name, window), name, bands)
    except UnidentifiedImageError:
        kind = tiff_kind(path)
        if kind is None:
            raise
    return _by_tifffile(path, name, kind, window, bands)


def _by_pillow(
    image: Image.Image, path: Path, kind: Kind | None, name: str, window: Window | None
) -> NDArray[Any]:
    if window is None and (pixels := _fast_jpeg(image, path)) is not None:
        return pixels
    upright = _upright(image)
    if upright.mode != "F" and not upright.mode.startswith("I"):
        _refuse_window(name, window)
        return _eight_bit(upright)
    values = np.asarray(upright)
    if kind is None:  # older versions of Pillow read 16-bit PNGs into 32 bits
        bits = 16 if upright.mode.startswith("I;16") or image.format == "PNG" else 32
        return _scaled(values, window or _full_range(name, "uint", bits))
    if kind.number == "uint" and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    return _scaled(values, window or _full_range(name, kind.number, kind.bits), inverted=kind.is_white_zero)


def _in_pages(image: Image.Image, kind: Kind, bands: Bands | None) -> bool:
    """Whether bands are asked for that a TIFF of one band per page can only have on further pages."""
    return bands is not None and max(bands) > 1 and kind.samples == 1 and getattr(image, "n_frames", 1) > 1


def _is_beyond_pillow(kind: Kind, window: Window | None, bands: Bands | None) -> bool:
    """Whether Pillow (13.0) reads the TIFF as something else: fewer bands, unsigned, or garbled planes."""
    if kind.samples == 1:
        return kind.number == "int" and kind.bits == 8
    is_deep_colour = kind.bits > 8 and (kind.is_planar or window is not None)
    return kind.samples > 4 or is_deep_colour or (bands is not None and kind.samples > 3)


def _by_tifffile(
    path: Path, name: str, kind: Kind, window: Window | None, bands: Bands | None
) -> NDArray[Any]:
    stored = read_tiff(path, name, kind, bands)
    if stored.dtype == np.uint8:
        _refuse_window(name, window)
        return 255 - stored if kind.is_white_zero else stored
    if not np.issubdtype(stored.dtype, np.integer) and not np.issubdtype(stored.dtype, np.floating):
        raise ValueError(f"it is {kind}, whose numbers are not real")
    return _scaled(stored, window or _full_range(name, kind.number, kind.bits), inverted=kind.is_white_zero)


def _refuse_window(name: str, window: Window | None) -> None:
    if window is not None:
        raise DataError(f"{name} has 8 bits per channel: --window is for images of more than that.")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not yet decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    texts = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not used here, and torchvision's deprecations
        try:
            Image.MAX_IMAGE_PIXELS = None
            PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_TEXT_BYTES
            # An open file: given a path, Pillow (13.0) maps uncompressed TIFFs and garbles rotated ones.
            with path.open("rb") as file, Image.open(file) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"it declares {image.width} x {image.height} pixels")
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = texts


def _upright(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory, rotated by its EXIF orientation."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _fast_jpeg(image: Image.Image, path: Path) -> NDArray[np.uint8] | None:
    """The pixels of a large grey or RGB JPEG by torchvision's decoder, which needs no padded copy.

    None for files left to Pillow: other kinds of images, those with an EXIF rotation, and all that
    torchvision rejects, so that Pillow alone decides which files are broken.
    """
    kind = (image.format, image.mode)
    if kind not in (("JPEG", "RGB"), ("JPEG", "L")) or image.width * image.height < LARGE_PIXELS:
        return None
    decode_jpeg = torchvision_decoder()
    if decode_jpeg is None or image.getexif().get(ORIENTATION, 1) != 1:
        return None
    try:
        pixels: NDArray[np.uint8] = decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8))).numpy()
    except RuntimeError:
        return None
    return pixels if pixels.shape == (len(image.getbands()), image.height, image.width) else None


@cache
def torchvision_decoder() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The JPEG decoder of torchvision; None if torchvision is not installed or was built without it."""
    try:
        from torchvision.io import decode_jpeg
    except (ImportError, RuntimeError):
        return None
    built: bool = hasattr(torch.ops.image, "decode_jpeg")
    return decode_jpeg if built else None


def _full_range(name: str, number: str, bits: int) -> Window:
    """The pixel values that become 0 and 1 where no window is given.

    Raises:
        DataError: the numbers have no known range.
    """
    if number == "uint" and bits <= 16:
        return 0.0, 2.0**bits - 1
    kinds = {
        "uint": f"{bits} bits",
        "int": f"signed numbers of {bits} bits",
        "float": f"floats of {bits} bits",
    }
    what = kinds.get(number, f"{bits} bits")
    raise DataError(f"{name} has {what} per pixel, whose range is unknown: give it with --window LO,HI.")


def _scaled(stored: NDArray[Any], window: Window, *, inverted: bool = False) -> NDArray[np.float32]:
    """(height, width) or (bands, height, width) -> (bands, height, width) in 0-1."""
    # float32 holds every 16-bit number; the difference of larger ones from a window has to be exact
    values: NDArray[Any] = stored.astype(
        np.float32 if stored.itemsize <= 2 or stored.dtype == np.float32 else np.float64
    )
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are NaN or infinite")
    low, high = window
    values -= low
    values /= high - low
    unit = values.clip(0, 1).astype(np.float32, copy=False)
    unit = 1 - unit if inverted else unit
    return unit[None] if unit.ndim == 2 else unit


def _eight_bit(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    pixels = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
