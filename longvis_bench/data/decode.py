"""Decode image files to pixels, independently of the format.

EXIF orientation is applied; palettes, CMYK and the like become RGB, transparent parts become white, and grey
images keep one channel.  Grey images of more than 8 bits keep their depth as float32: 16 bits are scaled over
their full range or by a window of pixel values, as mammography needs; 32 bits and floats have no known range
and need the window.  Pillow reads 16-bit colour as 8 bits per channel.  Of several pages the first is read.
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
from PIL import Image, ImageOps

from longvis_bench.data.protocol import BrokenImage
from longvis_bench.errors import DataError

Window = tuple[float, float]
FULL_16_BIT = (0.0, 65535.0)
MOST_PIXELS = 1 << 30
"""A file that declares more counts as broken; Pillow's own limit is below the sizes of pathology."""
LARGE_PIXELS = 1 << 20
"""JPEGs of at least this size are decoded by torchvision, whose import takes a second."""
ORIENTATION = 0x0112
"""EXIF tag of the orientation; 1 is upright."""


def decode(path: Path, name: str, window: Window | None = None) -> NDArray[Any]:
    """The pixels of a file.

    Arguments:
        path: the file.
        name: its name in messages.
        window: pixel values (low, high) that become 0 and 1, for grey images of more than 8 bits.

    Returns:
        (1 or 3, height, width), uint8 in 0-255 or float32 in 0-1.  Colour images are channels-last in
        memory, as decoders write them: reordering 4096 x 4096 pixels takes as long as decoding them.

    Raises:
        BrokenImage: the file is missing, truncated or no image.
        DataError: the window does not suit the kind of image, or is missing.
    """
    try:
        with _opened(path) as image:
            if window is None and (pixels := _fast_jpeg(image, path)) is not None:
                return pixels
            upright = _upright(image)
        return _pixels(upright, name, window)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything in Pillow's readers
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise BrokenImage(name, why.replace(str(path), name)) from error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not yet decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not used here, and torchvision's deprecations
        try:
            Image.MAX_IMAGE_PIXELS = None
            # An open file: given a path, Pillow (13.0) maps uncompressed TIFFs and garbles rotated ones.
            with path.open("rb") as file, Image.open(file) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"it declares {image.width} x {image.height} pixels")
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory, rotated by its EXIF orientation."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _pixels(image: Image.Image, name: str, window: Window | None) -> NDArray[Any]:
    """See `decode`."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image, _range(image, name, window))
    if window is not None:
        raise DataError(f"{name} has 8 bits per channel: --window is for grey images of more than that.")
    return _eight_bit(image)


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


def _range(image: Image.Image, name: str, window: Window | None) -> Window:
    """The pixel values that become 0 and 1."""
    if window is not None:
        return window
    # Older versions of Pillow read 16-bit PNGs into 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return FULL_16_BIT
    raise DataError(f"{name} has 32 bits per pixel, whose range is unknown: give it with --window LO,HI.")


def _scaled(image: Image.Image, window: Window) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are NaN or infinite")
    low, high = window
    values -= low
    values /= high - low
    return values.clip(0, 1)[None]


def _eight_bit(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    pixels = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
