"""From an image file to pixels: the same picture, whatever the format.

EXIF orientation is applied, palettes become colour, transparent parts show white, CMYK and the like become
RGB; grey stays one channel.  Grey images of more than 8 bits keep their depth as float32: 16 bits are
scaled over their full range, or by a window of pixel values, as mammography needs; 32 bits and floats have no
known range and need the window.  Pillow reads 16-bit colour as 8 bits a channel.  Of several pages the first
counts.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from longvis_bench.data.protocol import BrokenImage
from longvis_bench.errors import DataError

Window = tuple[float, float]
FULL_16_BIT = (0.0, 65535.0)
MOST_PIXELS = 1 << 30
"""A file that declares more is taken for broken; Pillow's own limit is below what pathology uses."""


def decode(path: Path, name: str, window: Window | None = None) -> NDArray[Any]:
    """The pixels of a file.

    Arguments:
        path: where it is.
        name: what to call it in messages.
        window: pixel values (low, high) that become 0 and 1, for grey images of more than 8 bits.

    Returns:
        (1 or 3, height, width), uint8 in 0-255 or float32 in 0-1, contiguous.

    Raises:
        BrokenImage: the file is missing, truncated or no image.
        DataError: the window does not fit the kind of image, or is needed and not given.
    """
    try:
        image = _read(path)
        deep = image.mode == "F" or image.mode.startswith("I")
        range_ = _range(image, name, window) if deep else None
        if range_ is not None:
            return _scaled(image, range_)
        if window is not None:
            raise DataError(f"{name} has 8 bits a channel: --window is for grey images of more than that.")
        return _eight_bit(image)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail anywhere in Pillow's readers
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise BrokenImage(name, why.replace(str(path), name)) from error


def _read(path: Path) -> Image.Image:
    """The image, upright, with its pixels in memory."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that is not used here
        try:
            Image.MAX_IMAGE_PIXELS = None
            # An open file: by name, Pillow (13.0) maps uncompressed TIFFs and garbles those on their side.
            with path.open("rb") as file, Image.open(file) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"it declares {image.width} x {image.height} pixels")
                image.load()
                upright = ImageOps.exif_transpose(image)
                upright.format = image.format
                return upright
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _range(image: Image.Image, name: str, window: Window | None) -> Window:
    """The pixel values that become 0 and 1."""
    if window is not None:
        return window
    # Older versions of Pillow read 16-bit PNGs into 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return FULL_16_BIT
    raise DataError(f"{name} has 32 bits a pixel, whose range nobody knows: give it with --window LO,HI.")


def _scaled(image: Image.Image, window: Window) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are no numbers")
    low, high = window
    values -= low
    values /= high - low
    return values.clip(0, 1)[None]


def _eight_bit(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
