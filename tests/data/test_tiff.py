"""TIFFs that Pillow cannot read: named for what they are without tifffile, and read with it."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longvis_bench.data.decode import decode
from longvis_bench.data.tiff import tiff_kind
from longvis_bench.errors import DataError, MissingDependency


def _write(path: Path, pixels: NDArray[Any], *, white_is_zero: bool = False) -> Path:
    """An uncompressed TIFF of (height, width, bands), written without tifffile."""
    height, width, bands = pixels.shape
    number = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    bits = pixels.itemsize * 8
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1),
        (273, 4, 0),
        (277, 3, bands),
        (278, 4, height),
        (279, 4, pixels.nbytes),
        (339, 3, number),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    extra = b""
    entries = b""
    for tag, kind, value in tags:
        count = bands if tag in (258, 339) else 1
        if count > 2:
            entries += struct.pack("<HHLL", tag, kind, count, start + len(extra))
            extra += struct.pack(f"<{count}H", *[value] * count)
        elif kind == 3:
            entries += struct.pack("<HHLHH", tag, kind, count, value, value if count == 2 else 0)
        else:
            entries += struct.pack("<HHLL", tag, kind, count, value)
    entries = entries.replace(
        struct.pack("<HHLL", 273, 4, 1, 0), struct.pack("<HHLL", 273, 4, 1, start + len(extra))
    )
    head = b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", len(tags)) + entries + bytes(4) + extra
    path.write_bytes(head + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    return path


BANDS = np.arange(2 * 3 * 13, dtype=np.uint16).reshape(2, 3, 13) * 800
KINDS: dict[str, tuple[NDArray[Any], str]] = {
    "13 bands": (BANDS, "a TIFF of 13 bands, uint16"),
    "float16": (np.array([[[0.5], [1.5]]], np.float16), "a TIFF of 1 band, float16"),
    "float64": (np.array([[[0.5], [1.5]]], np.float64), "a TIFF of 1 band, float64"),
    "uint64": (np.array([[[5], [2**40]]], np.uint64), "a TIFF of 1 band, uint64"),
    "int8": (np.array([[[-5], [100]]], np.int8), "a TIFF of 1 band, int8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_named_for_what_they_are(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    pixels, said = KINDS[kind]
    with pytest.raises(MissingDependency, match=r"'longvis-bench\[tiff\]'") as caught:
        decode(_write(tmp_path / "x.tif", pixels), "val/a/x.tif")
    assert f"val/a/x.tif ({said}) needs the package tifffile" in str(caught.value)


def test_the_kind_of_a_file_that_is_no_tiff_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0\xff\xff\xff\0")
    assert tiff_kind(tmp_path / "x.tif") is None
    (tmp_path / "x.tif").write_bytes(b"hello")
    assert tiff_kind(tmp_path / "x.tif") is None


def test_bands_are_taken_by_number_from_1(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    path = _write(tmp_path / "x.tif", BANDS)
    expected = BANDS[..., [3, 2, 1]].transpose(2, 0, 1).astype(float)
    assert np.allclose(decode(path, "x", None, (4, 3, 2)), expected / 65535, atol=1e-7)
    assert np.allclose(
        decode(path, "x", (800, 8000), (4, 3, 2)), ((expected - 800) / 7200).clip(0, 1), atol=1e-6
    )
    assert decode(path, "x", None, (13,)).shape == (1, 2, 3)


def test_bands_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    path = _write(tmp_path / "x.tif", BANDS)
    with pytest.raises(DataError, match=r"x is a TIFF of 13 bands, uint16: select .* like --bands 3,2,1"):
        decode(path, "x")
    with pytest.raises(DataError, match="x has 13 bands, so there is no band 14"):
        decode(path, "x", None, (14, 2, 1))


def _paged(path: Path, pages: list[NDArray[Any]], **options: Any) -> Path:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, contiguous=False, metadata=None, **options)
    return path


PAGES = [np.full((2, 3), 1000 * number, np.uint16) for number in range(1, 5)]


def test_bands_on_pages_are_taken_by_number_from_1(tmp_path: Path) -> None:
    path = _paged(tmp_path / "x.tif", PAGES)
    pixels = decode(path, "x", (0, 4000), (4, 2, 1))
    assert pixels.shape == (3, 2, 3)
    assert [band.mean() for band in pixels] == pytest.approx([1.0, 0.5, 0.25])
    assert decode(path, "x", (0, 4000)).mean() == pytest.approx(0.25), "without --bands it is the first page"
    assert decode(path, "x", (0, 4000), (1,)).mean() == pytest.approx(0.25)
    assert decode(path, "x", None, (3,)).mean() == pytest.approx(3000 / 65535)


def test_pages_of_8_bits_and_turned_ones(tmp_path: Path) -> None:
    page = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turned = (274, 3, 1, 6, True)  # the orientation: rotated by a quarter
    path = _paged(tmp_path / "x.tif", [page, page + 10], extratags=[turned])
    pixels = decode(path, "x", None, (2, 1, 2))
    assert np.array_equal(pixels[0], np.rot90(page + 10, -1))
    assert np.array_equal(pixels[1], np.rot90(page, -1))


def test_pages_that_are_no_bands_are_named(tmp_path: Path) -> None:
    path = _paged(tmp_path / "x.tif", [*PAGES, np.zeros((1, 1), np.uint16), np.zeros((2, 3), np.uint8)])
    with pytest.raises(DataError, match="x has 6 pages, so there is no band 7"):
        decode(path, "x", None, (7, 2, 1))
    with pytest.raises(DataError, match=r"no bands of one image, 2 and 5 \(2 x 3 uint16 and 1 x 1 uint16\)"):
        decode(path, "x", None, (2, 5, 1))
    with pytest.raises(DataError, match=r"2 x 3 uint16 and 2 x 3 uint8"):
        decode(path, "x", None, (1, 2, 6))
    one = _write(tmp_path / "one.tif", np.zeros((2, 3, 1), np.uint16))
    with pytest.raises(DataError, match="one has 1 band, so there is no band 3"):
        decode(one, "one", None, (3, 2, 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint64, np.int16, np.uint32])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_numbers_of_any_size_are_read_by_a_window(dtype: type, white_is_zero: bool, tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    pixels: NDArray[Any] = np.array([[[0], [25], [50], [100]]], dtype)
    path = _write(tmp_path / "x.tif", pixels, white_is_zero=white_is_zero)
    unit = np.array([0, 0.25, 0.5, 1])
    assert np.allclose(decode(path, "x", (0, 100))[0, 0], 1 - unit if white_is_zero else unit)
    with pytest.raises(DataError, match="whose range is unknown: give it with --window"):
        decode(path, "x")


@pytest.mark.parametrize("compression", ["jpeg2000", "lerc", "jpegxl"])
def test_compressions_that_pillow_does_not_know(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    colours = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    options = {"compressionargs": {"reversible": True}} if compression == "jpeg2000" else {}
    tifffile.imwrite(tmp_path / "x.tif", colours, photometric="rgb", compression=compression, **options)
    assert np.array_equal(decode(tmp_path / "x.tif", "x"), colours.transpose(2, 0, 1))
    said = {"jpeg2000": "JPEG 2000", "lerc": "LERC", "jpegxl": "JPEG XL"}[compression]
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingDependency, match=f"a TIFF of 3 bands, uint8, compressed with {said}"):
        decode(tmp_path / "x.tif", "x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(orientation: int, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "small.tif", pixels, extratags=tag, photometric="minisblack")
    tifffile.imwrite(tmp_path / "big.tif", pixels.astype(np.uint64), extratags=tag, photometric="minisblack")
    by_pillow, by_tifffile = (decode(tmp_path / f"{name}.tif", "x", (0, 5)) for name in ("small", "big"))
    assert np.allclose(by_pillow, by_tifffile)


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_16_bit_colour_with_a_window_keeps_its_depth(planes: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    colours = np.random.default_rng(0).integers(0, 4096, (4, 5, 3), dtype=np.uint16)
    stored = colours if planes == "contig" else colours.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planes)
    expected = colours.transpose(2, 0, 1) / 4095
    assert np.allclose(decode(tmp_path / "x.tif", "x", (0, 4095)), expected, atol=1e-6)
    whole = decode(tmp_path / "x.tif", "x")
    assert whole.dtype == (np.uint8 if planes == "contig" else np.float32)  # Pillow garbles 16-bit planes
    if planes == "separate":
        assert np.allclose(whole, colours.transpose(2, 0, 1) / 65535, atol=1e-6)
