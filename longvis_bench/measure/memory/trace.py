"""The storages of one iteration in the order they came and went, and the memory they take together.

The sizes of all storages are linear in the batch, as long as the same operators run.  Two traces of one cell
at two batches therefore give the trace of any batch, by `Trace.at`: not the peak is extrapolated, which may
lie at another moment, but every size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, groupby


@dataclass(frozen=True)
class Trace:
    """Storages numbered in the order they came."""

    sizes: tuple[int, ...]
    """Bytes of each."""
    parts: tuple[str, ...]
    """What each is: weights, activations, ..."""
    events: tuple[int, ...]
    """n + 1 where storage n comes, -(n + 1) where it goes."""

    def at(self, batch: int, other: Trace, batches: tuple[int, int]) -> Trace | None:
        """The trace of a third batch.

        Arguments:
            batch: whose trace is wanted.
            other: of the same cell.
            batches: that of this trace and of the other.

        Returns:
            None where the two do not run the same operators, so that nothing follows for a third.
        """
        if self.events != other.events or self.parts != other.parts:
            return None
        first, second = batches
        sizes = [
            a + (b - a) * (batch - first) // (second - first)
            for a, b in zip(self.sizes, other.sizes, strict=True)
        ]
        return Trace(tuple(sizes), self.parts, self.events)

    def growing(self, doubled: Trace) -> tuple[bool, ...] | None:
        """Which storages are as large as the batch, from a trace of twice the batch.

        Returns:
            None where other operators ran, or a size is neither the same nor twice as large.
        """
        if self.events != doubled.events or self.parts != doubled.parts:
            return None
        grows = tuple(a != b for a, b in zip(self.sizes, doubled.sizes, strict=True))
        twice = (2 * a == b for a, b in zip(self.sizes, doubled.sizes, strict=True) if a != b)
        return grows if all(twice) else None

    def times(self, batch: int, grows: tuple[bool, ...]) -> Trace:
        """The trace of another batch, from that of batch 1 and what grows with it."""
        sizes = tuple(size * batch if grow else size for size, grow in zip(self.sizes, grows, strict=True))
        return Trace(sizes, self.parts, self.events)

    def peak(self, rounded: Callable[[int], int] = int) -> int:
        """Most bytes alive together, each storage rounded as an allocator rounds it."""
        return max(self._totals(rounded), default=0)

    def parts_at_peak(self, rounded: Callable[[int], int] = int) -> dict[str, int]:
        """Bytes by part at that moment; they sum to the peak."""
        totals = self._totals(rounded)
        last = totals.index(max(totals)) if totals else -1
        parts: dict[str, int] = {}
        for event in self.events[: last + 1]:
            number = abs(event) - 1
            size = rounded(self.sizes[number])
            parts[self.parts[number]] = parts.get(self.parts[number], 0) + (size if event > 0 else -size)
        return {part: size for part, size in parts.items() if size}

    def _totals(self, rounded: Callable[[int], int]) -> list[int]:
        sizes = [rounded(size) for size in self.sizes]
        return list(
            accumulate(sizes[event - 1] if event > 0 else -sizes[-event - 1] for event in self.events)
        )


class TraceBuilder:
    """Collects a trace while an iteration runs."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._sizes: list[int] = []
        self._parts: list[str] = []
        self._events: list[int] = []

    def take(self, key: int, part: str, size: int) -> None:
        """A storage came, or turned out to be of another part."""
        if key in self._numbers:
            self._parts[self._numbers[key]] = part
            return
        self._numbers[key] = len(self._sizes)
        self._come(part, size)

    def free(self, key: int) -> None:
        """A storage went."""
        self._events.append(-self._numbers.pop(key) - 1)

    def pass_through(self, size: int) -> None:
        """A kernel takes memory inside itself, beside its results."""
        self._come("workspace", size)
        self._events.append(-len(self._sizes))

    def build(self) -> Trace:
        """What was collected; storages that go together go in the order they came.

        Autocast drops its copies of the weights in the order of their addresses, which no two runs share.
        """
        events: list[int] = []
        for goes, group in groupby(self._events, lambda event: event < 0):
            together = list(group)
            events += sorted(together, reverse=True) if goes else together
        return Trace(tuple(self._sizes), tuple(self._parts), tuple(events))

    def _come(self, part: str, size: int) -> None:
        self._sizes.append(size)
        self._parts.append(part)
        self._events.append(len(self._sizes))
