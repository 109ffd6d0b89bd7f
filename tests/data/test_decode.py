"""Image files become the same pixels whatever their format; damaged ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from longvis_bench.data.decode import decode
from longvis_bench.data.protocol import BrokenImage
from longvis_bench.errors import DataError

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = np.array([[0, 1000, 20000], [30000, 65534, 65535]], dtype=np.uint16)


def _kept(image: Image.Image, path: Path, **options: Any) -> NDArray[Any]:
    image.save(path, **options)
    return decode(path, path.name)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_colour_is_kept_exactly(suffix: str, tmp_path: Path) -> None:
    pixels = _kept(Image.fromarray(COLOURS), tmp_path / f"x.{suffix}")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, COLOURS.transpose(2, 0, 1))


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    pixels = _kept(Image.fromarray(smooth), tmp_path / "x.jpg", quality=95)
    assert pixels.shape == (3, 64, 64)
    assert np.abs(pixels.astype(int) - smooth.transpose(2, 0, 1)).mean() < 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied(suffix: str, orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :8] = 255  # top left
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # quarter turns to the left the stored pixels are at
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = _kept(Image.fromarray(np.rot90(upright, turns)), tmp_path / f"x.{suffix}", exif=exif)
    assert pixels.shape == (1, 16, 32)
    assert np.abs(pixels[0].astype(int) - upright).mean() < 2


def test_grey_stays_one_channel(tmp_path: Path) -> None:
    assert np.array_equal(_kept(Image.fromarray(COLOURS[..., 0]), tmp_path / "x.png")[0], COLOURS[..., 0])


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    assert _kept(Image.new("1", (4, 3), 1), tmp_path / "x.png").tolist() == [[[255] * 4] * 3]


def test_palette_becomes_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert _kept(image, tmp_path / "x.png")[:, 0, 0].tolist() == [10, 200, 30]


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for place, alpha in enumerate((0, 255, 51)):
        image.putpixel((place, 0), (100, 0, 0, alpha))
    pixels = _kept(image, tmp_path / "x.png")
    assert pixels[:, 0].T.tolist() == [[255, 255, 255], [100, 0, 0], [224, 204, 204]]


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_alpha_of_grey_and_of_palettes_is_laid_over_white(mode: str, tmp_path: Path) -> None:
    image, options = Image.new(mode, (2, 2), (0, 0) if mode == "LA" else 0), {}
    if mode == "P":
        image.putpalette([0, 0, 0])
        options = {"transparency": 0}
    assert _kept(image, tmp_path / "x.png", **options).min() == 255


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_over_their_full_range(suffix: str, tmp_path: Path) -> None:
    pixels = _kept(Image.fromarray(DEEP), tmp_path / f"x.{suffix}")
    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 2, 3)
    assert np.allclose(pixels[0], DEEP / 65535, atol=1e-7)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_a_window(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(DEEP).save(path)
    expected = np.clip((DEEP.astype(float) - 1000) / 29000, 0, 1)
    assert np.allclose(decode(path, "x", (1000, 30000))[0], expected, atol=1e-6)


def test_floats_need_a_window(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([[0.5, 1.5]], dtype=np.float32)).save(path)
    with pytest.raises(DataError, match="range nobody knows: give it with --window LO,HI"):
        decode(path, "train/a/x.tif")
    assert decode(path, "x", (0.5, 2.5)).tolist() == [[[0.0, 0.5]]]


def test_a_window_is_not_for_8_bits(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="8 bits a channel"):
        decode(tmp_path / "x.png", "train/a/x.png", (0, 100))


def _damaged(kind: str, path: Path) -> None:
    Image.fromarray(np.repeat(COLOURS, 40, axis=1)).save(path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[kind])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_damaged_files_are_named_without_their_folder(kind: str, suffix: str, tmp_path: Path) -> None:
    _damaged(kind, tmp_path / f"x.{suffix}")
    with pytest.raises(BrokenImage) as caught:
        decode(tmp_path / f"x.{suffix}", f"train/a/x.{suffix}")
    assert caught.value.name == f"train/a/x.{suffix}"
    assert str(tmp_path) not in caught.value.why


def test_missing_files_and_numbers_that_are_none_are_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="No such file"):
        decode(tmp_path / "gone.png", "gone.png")
    Image.fromarray(np.array([[np.nan]], dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BrokenImage, match="no numbers"):
        decode(tmp_path / "x.tif", "x.tif", (0, 1))


def test_pillows_limit_is_put_back(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    _kept(Image.fromarray(COLOURS), tmp_path / "x.png")
    assert before == Image.MAX_IMAGE_PIXELS
