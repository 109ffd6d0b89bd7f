"""The only place where a number becomes text for people.

Every formatter takes None for "not known" and shows it as `-`; stored values keep full precision.
"""

from __future__ import annotations

from collections.abc import Callable

UNKNOWN = "-"

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent: 0.01234 -> "0.0123", 1234.5 -> "1234"."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    whole = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    if whole:
        return f"{value:.{max(0, digits - whole)}f}"
    text = f"{rounded:.12f}".rstrip("0")
    return text + "0" * max(0, digits - len(text.split(".")[1].lstrip("0")))


def count(value: float | None) -> str:
    """Parameters, MACs, FLOPs: 28_589_128 -> "28.6 M"."""
    if value is None:
        return UNKNOWN
    for factor, prefix in _DECIMAL:
        if abs(value) >= factor:
            return f"{significant(value / factor)} {prefix}"
    return significant(value)


def seconds(value: float | None) -> str:
    """0.0123 -> "12.3 ms"; 75 -> "1 min 15 s"."""
    if value is None:
        return UNKNOWN
    if abs(value) >= 60:
        minutes, rest = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    if abs(value) >= 1 or value == 0:
        return f"{significant(value)} s"
    if abs(value) >= 1e-3:
        return f"{significant(value * 1e3)} ms"
    return f"{significant(value * 1e6)} µs"


def size(value: float | None) -> str:
    """Bytes with binary prefixes: 1_610_612_736 -> "1.50 GiB"."""
    if value is None:
        return UNKNOWN
    for factor, prefix in _BINARY:
        if abs(value) >= factor:
            return f"{significant(value / factor)} {prefix}"
    return f"{value:.0f} B"


def rate(value: float | None) -> str:
    """Images per second: 12.345 -> "12.3"."""
    return UNKNOWN if value is None else significant(value)


def percent(value: float | None) -> str:
    """A share of 0-1: 0.9104 -> "91.0 %"."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def plain(value: object) -> str:
    """Names, whole numbers and everything else that needs no unit."""
    return UNKNOWN if value is None or value == "" else str(value)


Formatter = Callable[[float | None], str]
