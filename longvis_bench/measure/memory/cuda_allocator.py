"""What torch's caching allocator for CUDA makes of a trace: rounded sizes, and the segments it reserves.

A request is rounded up to 512 B.  Up to 1 MiB it is cut from segments of 2 MiB, up to 10 MiB from segments of
20 MiB, and beyond from a segment of its own, rounded up to 2 MiB.  What is freed stays reserved, is joined
with free neighbours in its segment, and serves later requests, each from the smallest block that holds it.
Those are torch's constants (c10/cuda/CUDACachingAllocator.h, the default configuration).

When the device is full, torch gives unused segments back and tries again.  So a model certainly fits if its
reserve fits, certainly does not if what is allocated does not, and between the two it depends on how the free
pieces lie.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from longvis_bench.measure.memory.trace import Trace

ROUNDING = 512
SMALL = 1 << 20
"""Largest request that is small."""
SMALL_SEGMENT = 2 << 20
MEDIUM = 10 << 20
"""Largest request that is cut from a shared segment."""
MEDIUM_SEGMENT = 20 << 20
LARGE_ROUNDING = 2 << 20


def rounded(size: int) -> int:
    """Bytes that a request takes of its segment."""
    return max(ROUNDING, -(-size // ROUNDING) * ROUNDING)


def segment(size: int) -> int:
    """Bytes of a new segment for a rounded request."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < MEDIUM:
        return MEDIUM_SEGMENT
    return -(-size // LARGE_ROUNDING) * LARGE_ROUNDING


def reserved_peak(trace: Trace) -> int:
    """Bytes that the allocator has reserved at most, if it never has to give anything back."""
    pools = {True: _Pool(smallest=ROUNDING), False: _Pool(smallest=SMALL + 1)}
    held: dict[int, tuple[_Pool, _Block]] = {}
    for event in trace.events:
        number = abs(event) - 1
        if event > 0:
            size = rounded(trace.sizes[number])
            pool = pools[size <= SMALL]
            held[number] = pool, pool.take(size)
        else:
            pool, block = held.pop(number)
            pool.give_back(block)
    return sum(pool.reserved for pool in pools.values())


@dataclass(eq=False)
class _Block:
    """A piece of a segment, with its neighbours there."""

    size: int
    number: int
    free: bool = True
    before: _Block | None = None
    after: _Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.size, self.number


@dataclass
class _Pool:
    """Segments of one kind of request, and their free blocks by size."""

    smallest: int
    """Rest of a block that is cut off; a smaller one stays with the request."""
    reserved: int = 0
    _free: list[tuple[int, int]] = field(default_factory=list)
    _blocks: dict[int, _Block] = field(default_factory=dict)
    _made: int = 0

    def take(self, size: int) -> _Block:
        """The smallest free block that holds the request, cut to size."""
        position = bisect_left(self._free, (size, 0))
        if position < len(self._free):
            block = self._blocks.pop(self._free.pop(position)[1])
        else:
            block = self._new(segment(size))
            self.reserved += block.size
        block.free = False
        if block.size - size >= self.smallest:
            rest = self._new(block.size - size)
            block.size, rest.before, rest.after = size, block, block.after
            if block.after is not None:
                block.after.before = rest
            block.after = rest
            self._keep(rest)
        return block

    def give_back(self, block: _Block) -> None:
        """Join a block with its free neighbours and keep it."""
        after, before = block.after, block.before
        if after is not None and after.free:
            self._forget(after)
            self._swallow(block, after)
        if before is not None and before.free:
            self._forget(before)
            self._swallow(before, block)
            block = before
        block.free = True
        self._keep(block)

    def _swallow(self, block: _Block, after: _Block) -> None:
        block.size += after.size
        block.after = after.after
        if after.after is not None:
            after.after.before = block

    def _new(self, size: int) -> _Block:
        self._made += 1
        return _Block(size, self._made)

    def _keep(self, block: _Block) -> None:
        insort(self._free, block.key)
        self._blocks[block.number] = block

    def _forget(self, block: _Block) -> None:
        self._free.pop(bisect_left(self._free, block.key))
        del self._blocks[block.number]
