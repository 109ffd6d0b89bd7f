"""Positions of labels and ticks; the other modules draw them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle; x and y grow to the right and upwards."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart within low..high, as near as possible to those wanted (least squares).

    With y_i the i-th smallest position, the numbers y_i - i x gap must not decrease: an isotonic regression,
    solved by pooling neighbours that are out of order.  Where there is no room the gap shrinks.
    """
    n = len(wanted)
    gap = min(gap, (high - low) / max(1, n - 1))
    order = sorted(range(n), key=lambda i: (wanted[i], i))
    flat = _isotonic([wanted[i] - rank * gap for rank, i in enumerate(order)])
    top = max(low, high - (n - 1) * gap)
    positions = [0.0] * n
    for rank, i in enumerate(order):
        positions[i] = min(max(flat[rank], low), top) + rank * gap
    return positions


def _isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing numbers nearest to the values, by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, weight = value, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, weight = (mean * weight + before * count) / (weight + count), weight + count
        pools.append((mean, weight))
    return [mean for mean, weight in pools for _ in range(weight)]


def round_numbers(low: float, high: float, *, binary: bool = False, apart: float = 0.1) -> list[float]:
    """Ticks of a logarithmic axis within low..high.

    Over a wide range the coarsest of 1, 10, 100 ..., then 1, 3, 10 ..., then 1, 2, 5, 10 ... of which three
    lie within; over a narrow one equal steps.

    Arguments:
        low: lower end, positive.
        high: upper end.
        binary: powers of two, and steps in KiB, MiB, ..., for bytes.
        apart: least distance of two ticks, as a share of the axis.
    """
    for base, steps in _BINARY if binary else _DECIMAL:
        first, last = math.floor(math.log(low, base)) - 1, math.ceil(math.log(high, base)) + 1
        every = [float(base) ** power * step for power in range(first, last + 1) for step in steps]
        found = [tick for tick in every if low * _LESS <= tick <= high / _LESS]
        if len(found) >= 3 and high / low > 4:
            return _thinned(found, apart * math.log(high / low))
    unit = 1024 ** math.floor(math.log(low, 1024)) if binary and low >= 1 else 1
    return _thinned(_equal_steps(low, high, unit), apart * math.log(high / low))


def _thinned(ticks: Sequence[float], distance: float) -> list[float]:
    """The values far enough from the previous one, on a logarithmic scale."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) >= distance:
            kept.append(tick)
    return kept


_LESS = 1 - 1e-9
_DECIMAL = ((10, (1.0,)), (10, (1.0, 3.0)), (10, (1.0, 2.0, 5.0)))
_BINARY = ((1024, (1.0,)), (16, (1.0,)), (4, (1.0,)), (2, (1.0,)))


def _equal_steps(low: float, high: float, unit: float) -> list[float]:
    """At most five multiples of a round step of the unit."""
    exact = (high - low) / unit / 5
    power = 10 ** math.floor(math.log10(exact))
    step = next(power * n for n in (1, 2, 5, 10, 20) if power * n >= exact) * unit
    return [n * step for n in range(math.ceil(low / step * _LESS), math.floor(high / step / _LESS) + 1)]


def pack(spans: Iterable[tuple[float, float]]) -> list[int]:
    """A row, from 0, for each (left, right) span, so that spans of one row do not touch."""
    ends: list[list[tuple[float, float]]] = []
    rows = []
    for left, right in spans:
        free = (i for i, row in enumerate(ends) if all(right < a or b < left for a, b in row))
        chosen = next(free, len(ends))
        if chosen == len(ends):
            ends.append([])
        ends[chosen].append((left, right))
        rows.append(chosen)
    return rows


def best_place(candidates: Sequence[Box], frame: Box, solid: Sequence[Box], thin: Sequence[Box]) -> int:
    """Index of the position that covers least: solid boxes above all, thin ones a little; in the frame."""

    def cost(box: Box) -> float:
        outside = box.area - box.overlap(frame)
        return (
            sum(box.overlap(other) for other in solid)
            + 0.3 * sum(box.overlap(other) for other in thin)
            + 4 * outside
        )

    return min(range(len(candidates)), key=lambda i: (round(cost(candidates[i]), 3), i))
