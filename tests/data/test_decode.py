"""Image files become the same pixels whatever their format; damaged ones are named."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from longvis_bench.data import decode as decoding
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
    with pytest.raises(DataError, match="range is unknown: give it with --window LO,HI"):
        decode(path, "train/a/x.tif")
    assert decode(path, "x", (0.5, 2.5)).tolist() == [[[0.0, 0.5]]]


def test_a_window_is_not_for_8_bits(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="8 bits per channel"):
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
    with pytest.raises(BrokenImage, match="NaN or infinite"):
        decode(tmp_path / "x.tif", "x.tif", (0, 1))


def test_pillows_limit_is_put_back(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    _kept(Image.fromarray(COLOURS), tmp_path / "x.png")
    assert before == Image.MAX_IMAGE_PIXELS


# Large JPEGs, which torchvision decodes


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """JPEGs of any size count as large; the list holds the bytes of each that torchvision was given."""
    from torchvision import io

    given: list[int] = []

    def counted(content: Tensor) -> Tensor:
        given.append(len(content))
        decoded: Tensor = torchvision_decode(content)
        return decoded

    torchvision_decode = io.decode_jpeg
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 1)
    monkeypatch.setattr(io, "decode_jpeg", counted)
    decoding.torchvision_decoder.cache_clear()
    yield given
    decoding.torchvision_decoder.cache_clear()


def _by_pillow(path: Path) -> NDArray[Any] | str:
    """What `decode` gives without torchvision; the reason for a broken file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "LARGE_PIXELS", 1 << 40)
        return _outcome(path)


def _outcome(path: Path) -> NDArray[Any] | str:
    try:
        return decode(path, "x")
    except BrokenImage as error:
        return error.why


def _same(one: NDArray[Any] | str, other: NDArray[Any] | str) -> bool:
    return one == other if isinstance(one, str) or isinstance(other, str) else np.array_equal(one, other)


def _smooth(mode: str) -> Image.Image:
    waves = np.random.default_rng(1).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(waves).resize((173, 131), Image.Resampling.BICUBIC).convert(mode)


JPEGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "colour": ("RGB", {"quality": 90}, True),
    "grey": ("L", {}, True),
    "progressive": ("RGB", {"progressive": True}, True),
    "not subsampled": ("RGB", {"subsampling": 0}, True),
    "stored as RGB": ("RGB", {"keep_rgb": True}, True),
    "restart markers": ("RGB", {"restart_marker_rows": 1}, True),
    "CMYK": ("CMYK", {}, False),
}
"""Mode, options of Pillow's writer, and whether torchvision is asked."""


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_have_the_pixels_that_pillow_gives(kind: str, tmp_path: Path, fast: list[int]) -> None:
    mode, options, asked = JPEGS[kind]
    _smooth(mode).save(tmp_path / "x.jpg", **options)
    pixels = decode(tmp_path / "x.jpg", "x")
    assert pixels.shape == (1 if mode == "L" else 3, 131, 173)
    assert _same(pixels, _by_pillow(tmp_path / "x.jpg"))
    assert bool(fast) == asked


@pytest.mark.parametrize("orientation", range(1, 10))
def test_turned_jpegs_have_the_pixels_that_pillow_gives(
    orientation: int, tmp_path: Path, fast: list[int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    _smooth("RGB").save(tmp_path / "x.jpg", exif=exif)
    pixels = decode(tmp_path / "x.jpg", "x")
    with Image.open(tmp_path / "x.jpg") as image:
        assert np.array_equal(pixels, np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1))


def test_damaged_jpegs_are_judged_as_pillow_judges_them(tmp_path: Path, fast: list[int]) -> None:
    _smooth("RGB").save(tmp_path / "whole.jpg")
    content, random = (tmp_path / "whole.jpg").read_bytes(), np.random.default_rng(0)
    cut = [content[:length] for length in (0, 2, 20, 200, len(content) // 2, len(content) - 2)]
    flipped = []
    for _ in range(150):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] = random.integers(256)
        flipped.append(bytes(damaged))
    joined = [content + content, content + b"\0" * 99, content[:2] + content]
    outcomes = []
    for number, content in enumerate([*cut, *flipped, *joined]):
        (path := tmp_path / f"{number}.jpg").write_bytes(content)
        outcomes.append(_outcome(path))
        assert _same(outcomes[-1], _by_pillow(path)), f"file {number}"
    broken = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(broken) >= 6
    assert len(outcomes) - len(broken) > 100


def test_without_torchvision_pillow_decodes(
    tmp_path: Path, fast: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    _smooth("RGB").save(tmp_path / "x.jpg")
    assert _same(decode(tmp_path / "x.jpg", "x"), _by_pillow(tmp_path / "x.jpg"))
    assert not fast


def test_small_jpegs_do_not_import_torchvision(tmp_path: Path) -> None:
    _smooth("RGB").save(tmp_path / "x.jpg")
    program = (
        "import sys; from pathlib import Path; from longvis_bench.data.decode import decode;"
        f"decode(Path({str(tmp_path / 'x.jpg')!r}), 'x'); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Grey TIFFs and PNGs as instruments and editors write them


@pytest.mark.parametrize("window", [None, (0, 60000)])
def test_a_16_bit_tiff_whose_0_is_white_is_inverted(
    window: tuple[float, float] | None, tmp_path: Path
) -> None:
    Image.fromarray(DEEP).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as image:
        assert isinstance(image, TiffImageFile)
        assert (image.tag_v2[262], np.array_equal(np.asarray(image), DEEP)) == (0, True)  # Pillow keeps it
    high = 65535 if window is None else window[1]
    expected = 1 - np.clip(DEEP / high, 0, 1)
    assert np.allclose(decode(tmp_path / "x.tif", "x", window)[0], expected, atol=1e-6)


def test_32_bits_above_2_to_the_31_are_unsigned_and_exact(tmp_path: Path) -> None:
    stored = np.array([[0, 3_999_999_990, 4_000_000_000, 4_294_967_295]], np.uint32)
    Image.fromarray(stored.view(np.int32)).save(tmp_path / "x.tif")
    content = (tmp_path / "x.tif").read_bytes()
    signed, unsigned = (struct.pack("<HHLL", 339, 3, 1, number) for number in (2, 1))  # the sample format
    assert content.count(signed) == 1
    (tmp_path / "x.tif").write_bytes(content.replace(signed, unsigned))
    window = (3_999_999_980.0, 4_000_000_000.0)
    assert decode(tmp_path / "x.tif", "x", window)[0, 0].tolist() == [0, 0.5, 1, 1]


def test_signed_numbers_keep_their_sign_and_need_a_window(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-100, 0, 100]], np.int32)).save(tmp_path / "x.tif")
    assert decode(tmp_path / "x.tif", "x", (-100, 100))[0, 0].tolist() == [0, 0.5, 1]
    with pytest.raises(DataError, match="signed numbers of 32 bits per pixel, whose range is unknown"):
        decode(tmp_path / "x.tif", "x")


def test_a_png_with_a_long_text_is_read(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("history", "x" * (3 << 20), zip=True)
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert limits[0] < 3 << 20
    assert np.array_equal(
        _kept(Image.fromarray(COLOURS), tmp_path / "x.png", pnginfo=info), COLOURS.transpose(2, 0, 1)
    )
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_bands_of_images_with_three(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    assert np.array_equal(decode(tmp_path / "x.png", "x", None, (3, 2, 1)), COLOURS.transpose(2, 0, 1)[::-1])
    assert np.array_equal(decode(tmp_path / "x.png", "x", None, (2,))[0], COLOURS[..., 1])
    with pytest.raises(DataError, match="x has 3 bands, so there is no band 4 of --bands"):
        decode(tmp_path / "x.png", "x", None, (4,))
