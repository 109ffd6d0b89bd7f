"""DICOM files: values, windows and photometric interpretations, files made here and those of pydicom."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longvis_bench.data.decode import decode
from longvis_bench.data.dicom import is_dicom
from longvis_bench.data.folder import Folder
from longvis_bench.data.protocol import BrokenImage
from longvis_bench.errors import MissingDependency

STORED = np.array([[[0, 100, 200], [300, 400, 4095]], [[1, 1, 1], [1, 1, 1]]], np.uint16)
"""Two frames of 12 bits."""


def test_a_file_without_the_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "x.DCM").write_bytes(b"")
    with pytest.raises(MissingDependency, match=r"val/a/x.DCM needs the package pydicom.*\[dicom\]"):
        decode(tmp_path / "x.DCM", "val/a/x.DCM")


def _made(path: Path, **tags: Any) -> Path:
    """A multi-frame file of `STORED`, with further tags."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.SOPClassUID, file.SOPInstanceUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "1.2.3"
    file.Rows, file.Columns, file.NumberOfFrames, file.SamplesPerPixel = 2, 3, 2, 1
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PhotometricInterpretation = "MONOCHROME2"
    file.PixelData = STORED.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def _first(path: Path, window: tuple[float, float] | None = None) -> NDArray[Any]:
    pixels = decode(path, "x", window)
    assert pixels.shape == (1, 2, 3)
    assert pixels.dtype == np.float32
    first: NDArray[Any] = pixels[0]
    return first


def test_the_first_frame_over_the_range_of_its_bits(tmp_path: Path) -> None:
    assert np.allclose(_first(_made(tmp_path / "x.dcm")), STORED[0] / 4095)


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113619.2.55", "x.0001"])
def test_files_without_a_suffix_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            _made(folder / name)
            (folder / "NOTES").write_text("no image", encoding="utf-8")
            (folder / "list.7").write_bytes(b"")
    assert is_dicom(tmp_path / "val" / "a" / name)
    found = Folder(str(tmp_path))
    assert (found.size("train"), found.size("val")) == (2, 2)
    image, _ = found.load("val", 0, 2)
    assert np.allclose(image[0], STORED[0] / 4095)
    assert "8 files are left out because of their kind: " in found.notes[0]
    assert "4 without a suffix" in found.notes[0]


def test_other_suffixes_are_not_looked_into(tmp_path: Path) -> None:
    assert not is_dicom(_made(tmp_path / "x.dcm").rename(tmp_path / "x.bak"))
    assert not is_dicom(tmp_path / "gone")


def test_white_is_zero(tmp_path: Path) -> None:
    path = _made(tmp_path / "x.dcm", PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(_first(path), 1 - STORED[0] / 4095)


def test_the_files_window_and_one_that_is_given(tmp_path: Path) -> None:
    """Values are rescaled first; the linear window of PS3.3 C.11.2.1.2 is the width less 1 wide."""
    path = _made(
        tmp_path / "x.dcm", RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[200, 7], WindowWidth=[401, 8]
    )
    rescaled = STORED[0] * 2.0 - 100
    expected = ((rescaled - 199.5) / 400 + 0.5).clip(0, 1)
    assert np.allclose(_first(path), expected)
    assert np.allclose(_first(path, (100, 500)), ((rescaled - 100) / 400).clip(0, 1))


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_functions_of_the_window(function: str, tmp_path: Path) -> None:
    path = _made(tmp_path / "x.dcm", WindowCenter=200, WindowWidth=100, VOILUTFunction=function)
    exact = (STORED[0] - 150.0) / 100
    sigmoid = 1 / (1 + np.exp(-4 * (STORED[0] - 200.0) / 100))
    assert np.allclose(_first(path), exact.clip(0, 1) if function == "LINEAR_EXACT" else sigmoid, atol=1e-6)


def test_signed_values_over_the_range_of_their_bits(tmp_path: Path) -> None:
    signed = np.array([[[-2048, -1, 0], [1, 2, 2047]]] * 2, np.int16)
    path = _made(
        tmp_path / "x.dcm",
        PixelRepresentation=1,
        PixelData=signed.tobytes(),
        RescaleSlope=-1,
        RescaleIntercept=0,
    )
    assert np.allclose(_first(path), (2047 - signed[0]) / 4095, atol=1e-6)  # -2047 to 2048


def test_frames_with_their_own_rescaling_and_window(tmp_path: Path) -> None:
    """Enhanced objects: the frame's come before those of the whole file."""
    pytest.importorskip("pydicom")
    from pydicom import Dataset

    def item(**tags: Any) -> Dataset:
        made = Dataset()
        for name, value in tags.items():
            setattr(made, name, value)
        return made

    shared = item(
        PixelValueTransformationSequence=[item(RescaleSlope=10, RescaleIntercept=5, RescaleType="US")]
    )
    frames = [
        item(FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=1001)]) for centre in (1000.5, 1)
    ]
    path = _made(
        tmp_path / "x.dcm",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        WindowCenter=1,
        WindowWidth=2,
    )
    assert np.allclose(_first(path), ((STORED[0] * 10 + 5 - 500.0) / 1000).clip(0, 1))


def test_a_table_of_values(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from pydicom import Dataset

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 100, 8], [255, 51, 102, 0]
    table["LUTData"].VR = "US"
    table["LUTDescriptor"].VR = "US"
    path = _made(tmp_path / "x.dcm", VOILUTSequence=[table])
    assert np.allclose(_first(path), np.array([[255, 255, 0], [0, 0, 0]]) / 255)


def test_colour_has_the_values_of_its_bits(tmp_path: Path) -> None:
    colours = np.arange(36, dtype=np.uint8).reshape(2, 2, 3, 3)
    path = _made(
        tmp_path / "x.dcm",
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=colours.tobytes(),
    )
    pixels = decode(path, "x")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, colours[0].transpose(2, 0, 1))


def _shipped(name: str) -> Path:
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    return Path(str(get_testdata_file(name, download=False)))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("CT_small.dcm", 1),
        ("MR_small_RLE.dcm", 1),
        ("MR_small_jpeg_ls_lossless.dcm", 1),
        ("MR_small_jp2klossless.dcm", 1),
        ("SC_rgb_rle_2frame.dcm", 3),
        ("SC_rgb_jpeg_gdcm.dcm", 3),
        ("examples_palette.dcm", 3),
        ("SC_rgb_rle_16bit_2frame.dcm", 3),
    ],
)
def test_files_that_pydicom_ships(name: str, channels: int) -> None:
    pixels = decode(_shipped(name), name)
    assert pixels.shape[0] == channels
    assert pixels.max() > pixels.min()
    assert pixels.dtype == np.uint8 or (pixels.min() >= 0 and pixels.max() <= 1)


def test_one_image_in_three_compressions_is_one_image() -> None:
    plain = decode(_shipped("MR_small.dcm"), "x")
    for packed in ("MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"):
        assert np.array_equal(plain, decode(_shipped(packed), "x")), packed


def test_palettes_are_those_of_pydicom() -> None:
    path = _shipped("examples_palette.dcm")
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut

    file = dcmread(path)
    expected = apply_color_lut(file.pixel_array, file) >> 8
    assert np.array_equal(decode(path, "x"), expected.transpose(2, 0, 1))


def test_files_without_an_image_are_broken() -> None:
    with pytest.raises(BrokenImage, match="no pixel data"):
        decode(_shipped("test-SR.dcm"), "x")
