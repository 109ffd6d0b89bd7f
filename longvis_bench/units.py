"""Formats numbers for people, and parses numbers with units; no other module does either.

Every formatter takes None for "unknown" and shows it as `-`; stored values keep full precision.  A parser
(`read_seconds`, ...) raises ValueError with a valid form as its message, e.g. "a time like 90s, 2m or 1h".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from math import isfinite, nan
from statistics import median_low
from typing import NamedTuple

from pydantic import ByteSize, TypeAdapter, ValidationError

from longvis_bench.resolution import Resolution, resolution_of

UNKNOWN = "-"


class Scale(NamedTuple):
    """A unit, and the factor that a value is divided by to be shown in it."""

    factor: float
    unit: str


COUNTS = (Scale(1e12, "T"), Scale(1e9, "G"), Scale(1e6, "M"), Scale(1e3, "k"), Scale(1, ""))
SIZES = (Scale(1 << 30, "GiB"), Scale(1 << 20, "MiB"), Scale(1 << 10, "KiB"), Scale(1, "B"))
SECONDS = (Scale(1, "s"), Scale(1e-3, "ms"), Scale(1e-6, "µs"))
JOULES = (Scale(1e3, "kJ"), Scale(1, "J"), Scale(1e-3, "mJ"))
HOURS = (Scale(1, "h"),)
RATES = (Scale(1, ""),)
SHARES = (Scale(0.01, "%"),)


@cache
def _bytes() -> TypeAdapter[ByteSize]:
    """Made where the first size is read: it would be a twentieth of what `longvis --help` takes."""
    return TypeAdapter(ByteSize)


def significant(value: float, digits: int = 3) -> str:
    """Round to `digits` significant digits, without an exponent: 0.01234 -> "0.0123", 1234.5 -> "1234"."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def count(value: float | None) -> str:
    """Parameters, MACs, FLOPs: 28_589_128 -> "28.6 M"."""
    if value is None:
        return UNKNOWN
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    return _with_unit(value, COUNTS)


def seconds(value: float | None) -> str:
    """0.0123 -> "12.3 ms"; 75 -> "1 min 15 s"."""
    if value is None:
        return UNKNOWN
    if _rounded(abs(value)) >= 60:
        minutes, rest = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    return "0 s" if value == 0 else _with_unit(value, SECONDS)


def joules(value: float | None) -> str:
    """0.0123 -> "12.3 mJ"."""
    return UNKNOWN if value is None else _with_unit(value, JOULES)


def hours(value: float | None) -> str:
    """Hours of a training: 12.345 -> "12.3 h"."""
    return UNKNOWN if value is None else f"{significant(value)} h"


def size(value: float | None) -> str:
    """Bytes with binary prefixes: 1_610_612_736 -> "1.50 GiB"."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f} B" if abs(value) < 1023.5 else _with_unit(value, SIZES)


def rate(value: float | None) -> str:
    """Images per second: 12.345 -> "12.3"."""
    return UNKNOWN if value is None else significant(value)


def percent(value: float | None) -> str:
    """A share between 0 and 1: 0.9104 -> "91.0 %"."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def percents_apart(one: float, other: float) -> tuple[str, str]:
    """Two different shares with as many decimals as tell them apart: 0.0204, 0.02 -> "2.04 %", "2.00 %"."""
    texts = ((f"{100 * one:.{digits}f} %", f"{100 * other:.{digits}f} %") for digits in range(1, 16))
    return next(((a, b) for a, b in texts if a != b), (percent(one), percent(other)))


def chance(p: float) -> str:
    """A p value: `p = 0.021`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {significant(p, 2)}"


def plain(value: object) -> str:
    """Names, whole numbers and other values without a unit."""
    return UNKNOWN if value is None or value == "" else str(value)


def several(number: int, noun: str, plural: str = "") -> str:
    """1, "row" -> "1 row"; 3, "row" -> "3 rows"; 3, "process", "processes" -> "3 processes"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(names: Sequence[str], most: int) -> str:
    """`["a", "b", "c", "d"]`, 3 -> "a, b, c and 1 more"."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def shared_scale(values: Sequence[float], scales: Sequence[Scale]) -> Scale | None:
    """One scale for a whole column, so that the header can show its unit.

    Arguments:
        values: all values of the column.
        scales: scales to choose from, largest first.

    Returns:
        The scale of the median value, or None if it would show some value as less than 0.01 or with more
        than six digits; then each value is shown with its own unit.
    """
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return scales[-1] if len(scales) == 1 else None
    scale = _scale_of(median_low(sizes), scales)
    fits = min(sizes) / scale.factor >= 0.01 and max(sizes) / scale.factor < 1e6
    return scale if fits or len(scales) == 1 else None


def _with_unit(value: float, scales: Sequence[Scale]) -> str:
    scale = _scale_of(abs(value), scales)
    return f"{significant(value / scale.factor)} {scale.unit}".rstrip()


def _scale_of(value: float, scales: Sequence[Scale]) -> Scale:
    """The largest scale in which the rounded value is at least 1; else the smallest."""
    return next((scale for scale in scales if _rounded(value / scale.factor) >= 1), scales[-1])


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


Formatter = Callable[[float | None], str]


_TIMES = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?|\.\d+) *([a-z]*)")


def read_seconds(text: str) -> float:
    """A duration of one or several parts: "90", "90s", "2m", "1h 30min", "500ms" -> seconds.

    Raises:
        ValueError: the text is no duration; the message shows valid ones.
    """
    plain_text = text.strip().lower()
    parts = _TIME.findall(plain_text)
    if not parts or _TIME.sub("", plain_text).strip() or any(unit not in ("", *_TIMES) for _, unit in parts):
        raise ValueError("a time like 90s, 2m or 1h")
    if len(parts) > 1 and any(not unit for _, unit in parts):
        raise ValueError("a time like 90s, 2m or 1h")
    return sum(float(number) * _TIMES[unit or "s"] for number, unit in parts)


def read_share(text: str) -> float:
    """A share, as a fraction or in per cent: "0.02", "2%" -> 0.02.

    Raises:
        ValueError: the text is no share; the message shows valid ones.
    """
    number, percent_sign, rest = text.strip().partition("%")
    try:
        value = float(number)
    except ValueError:
        value = nan
    if not isfinite(value) or rest.strip():
        raise ValueError("a share like 2% or 0.02")
    return value / 100 if percent_sign else value


def read_whole(text: str) -> int:
    """A positive whole number; "1_000" is one, too.

    Raises:
        ValueError: the text is no such number; the message says what is valid.
    """
    if re.fullmatch(r"\d+(_\d+)*", text.strip(), re.ASCII) is None or len(text) > 30 or int(text) < 1:
        raise ValueError("whole numbers from 1 up")
    return int(text)


def read_pixels(text: str) -> Resolution:
    """Pixels per side, "1024", "1024px" or "2k" -> 2048; or width x height, "2560x1920" -> 1920 rows of 2560.

    Raises:
        ValueError: the text is no such size; the message shows valid ones.
    """
    bare = re.sub(r" ?px$", "", text.strip().lower())
    width, cross, height = bare.replace("×", "x").partition("x")
    try:
        return resolution_of((_side(height), _side(width)) if cross else _side(bare))
    except ValueError:
        raise ValueError(
            "whole numbers from 1 up, like 1024,2048 or 1k,2k, or width x height, like 2560x1920"
        ) from None


def _side(text: str) -> int:
    """Pixels of one side."""
    thousand = re.fullmatch(r"(\d{1,4})k", text.strip())
    return 1024 * read_whole(thousand[1]) if thousand else read_whole(text)


def read_size(text: str) -> int:
    """Bytes with a unit: "8GiB" -> 8589934592; "8G" and "8GB" are decimal, 8000000000.

    Raises:
        ValueError: the text has no unit or is no size; the message shows valid ones.
    """
    bare = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*", text)
    if bare is not None:
        raise ValueError(f"a size with its unit: {bare[1]} what? {bare[1]}GiB, for example")
    wrong = ValueError("a size like 8GiB (binary) or 8G (decimal)")
    if re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*[a-zA-Z]+\s*", text) is None:
        raise wrong
    try:
        return int(_bytes().validate_python(text.strip()))
    except ValidationError:
        raise wrong from None
