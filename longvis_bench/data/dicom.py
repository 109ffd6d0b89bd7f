"""DICOM files through pydicom, the extra `dicom`.

The first frame is read.  Stored values are rescaled (slope and intercept, or the modality LUT), mapped to
0-1 by the window that is given, else by the file's own, else over the full range of their bits, and inverted
if 0 is white (MONOCHROME1); DICOM PS3.3, C.7.6.3.1.2, C.11.1 and C.11.2.  Frames of enhanced objects have
their own rescaling and windows (C.7.6.16.2.9 and C.7.6.16.2.10), which come before those of the whole file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvis_bench.errors import MissingDependency

SUFFIXES = (".dcm", ".dicom")
INSTALL = "python -m pip install 'longvis-bench[dicom]'"
Window = tuple[float, float]
_PREAMBLE, _MAGIC = 128, b"DICM"
"""PS3.10, section 7.1."""


def is_dicom(path: Path) -> bool:
    """Whether a file that has no suffix of an image is one: `DICM` follows a preamble of 128 bytes.

    Archives name DICOM files without a suffix (IM000001), or by their UIDs (1.2.840.113619.2.5), whose last
    part looks like one.
    """
    if path.suffix and not path.suffix[1:].isdecimal():
        return False
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def read_dicom(path: Path, name: str, window: Window | None) -> NDArray[Any]:
    """The pixels of the first frame.

    Arguments:
        path: the file.
        name: its name in messages.
        window: rescaled values (low, high) that become 0 and 1 in grey images, in place of the file's window.

    Returns:
        (1 or 3, height, width): grey as float32 in 0-1, colour as uint8 in 0-255 or, above 8 bits, float32.

    Raises:
        MissingDependency: pydicom, or the decoder of the file's compression, is not installed.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise MissingDependency("pydicom", name, INSTALL) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that do not follow the standard, and are not used here
        file = dcmread(path)
        if "PixelData" not in file:
            raise ValueError("it has no pixel data")
        _require_decoder(file, name)
        stored = pixel_array(file, index=0)
        photometric = file.PhotometricInterpretation
        if photometric == "PALETTE COLOR":
            return _palette(stored, file)
        if stored.ndim == 3:
            return _colour(stored, file.BitsStored)
        grey = _unit_grey(stored, file, window)
        return (1 - grey if photometric == "MONOCHROME1" else grey).astype(np.float32)[None]


def _require_decoder(file: Any, name: str) -> None:
    from pydicom.pixels import get_decoder

    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise MissingDependency("python-gdcm", f"{name} ({syntax.name})", INSTALL)


def _palette(stored: NDArray[Any], file: Any) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_color_lut

    colours: NDArray[Any] = apply_color_lut(stored, file)[..., :3]
    eight_bit = colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
    return eight_bit.transpose(2, 0, 1)


def _colour(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    planes = stored.transpose(2, 0, 1)
    return planes if bits == 8 else (planes / (2**bits - 1)).astype(np.float32)


def _unit_grey(stored: NDArray[Any], file: Any, window: Window | None) -> NDArray[np.float64]:
    """Grey values in 0-1, with 0 as black."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    rescaling = _of_frame(file, "PixelValueTransformationSequence")
    values = apply_modality_lut(stored, rescaling).astype(np.float64)
    view = _of_frame(file, "FrameVOILUTSequence")
    if window is not None:
        return _between(values, *window)
    if view.get("VOILUTSequence"):
        shown = apply_voi(values.astype(np.int64), view)
        return _between(shown.astype(np.float64), 0, 2.0 ** view.VOILUTSequence[0].LUTDescriptor[2] - 1)
    if view.get("WindowCenter") is not None and view.get("WindowWidth") is not None:
        centre, width = _first(view.WindowCenter), _first(view.WindowWidth)
        return _windowed(values, centre, width, view.get("VOILUTFunction", "LINEAR"))
    return _between(values, *_full_range(file, rescaling))


def _of_frame(file: Any, sequence: str) -> Any:
    """The data set that holds the first frame's values: its functional group, or the whole file."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        of_first = (file.get(groups) or [{}])[0]
        if of_first.get(sequence):
            return of_first[sequence][0]
    return file


def _first(value: Any) -> float:
    """A file can have several windows; the first one is shown."""
    return float(value if isinstance(value, int | float | str) else next(iter(value)))


def _windowed(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return _between(values, centre - width / 2, centre + width / 2)
    return _between(values, centre - width / 2, centre + width / 2 - 1)


def _between(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    if high <= low:  # a linear window of width 1 is a threshold
        return (values > low).astype(np.float64)
    return ((values - low) / (high - low)).clip(0, 1)


def _full_range(file: Any, rescaling: Any) -> Window:
    """The rescaled values of the smallest and the largest number that the stored bits hold."""
    if rescaling.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** rescaling.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    low = -(2.0 ** (file.BitsStored - 1)) if file.PixelRepresentation else 0.0
    slope, intercept = float(rescaling.get("RescaleSlope", 1)), float(rescaling.get("RescaleIntercept", 0))
    ends = (low * slope + intercept, (low + 2.0**file.BitsStored - 1) * slope + intercept)
    return min(ends), max(ends)
