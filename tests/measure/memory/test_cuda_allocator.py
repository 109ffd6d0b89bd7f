"""The caching allocator's segments, against cases that can be worked out by hand."""

from __future__ import annotations

import random

import pytest

from longvis_bench.measure.memory.cuda_allocator import reserved_peak, rounded, segment
from longvis_bench.measure.memory.trace import Trace

MIB = 1 << 20


def trace(sizes: list[int], events: list[int]) -> Trace:
    return Trace(tuple(sizes), ("activations",) * len(sizes), tuple(events))


@pytest.mark.parametrize(("size", "taken"), [(0, 512), (1, 512), (512, 512), (513, 1024)])
def test_requests_are_rounded_to_512_bytes(size: int, taken: int) -> None:
    assert rounded(size) == taken


@pytest.mark.parametrize(
    ("size", "taken"),
    [(512, 2 * MIB), (MIB, 2 * MIB), (MIB + 512, 20 * MIB), (10 * MIB, 10 * MIB), (11 * MIB, 12 * MIB)],
)
def test_segments(size: int, taken: int) -> None:
    assert segment(size) == taken
    assert reserved_peak(trace([size], [1])) == taken


def test_what_was_freed_is_used_again() -> None:
    assert reserved_peak(trace([40 * MIB, 30 * MIB, 10 * MIB], [1, -1, 2, 3])) == 40 * MIB


def test_neighbours_are_joined_and_others_are_not() -> None:
    three = [8 * MIB, 8 * MIB, 4 * MIB]
    joined = trace([*three, 16 * MIB], [1, 2, 3, -1, -2, 4])
    apart = trace([*three, 12 * MIB], [1, 2, 3, -1, -3, 4])
    assert reserved_peak(joined) == 20 * MIB
    assert reserved_peak(apart) == 32 * MIB


def test_small_and_large_requests_have_pools_of_their_own() -> None:
    assert reserved_peak(trace([40 * MIB, 1000], [1, -1, 2])) == 42 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    sizes = [30 * MIB, 40 * MIB, 29 * MIB, 40 * MIB]
    assert reserved_peak(trace(sizes, [1, 2, -1, -2, 3, 4])) == 70 * MIB


def test_the_reserve_is_never_less_than_what_is_alive() -> None:
    draw = random.Random(0)
    for _ in range(30):
        sizes: list[int] = []
        events: list[int] = []
        alive: list[int] = []
        for _ in range(200):
            if alive and draw.random() < 0.45:
                events.append(-alive.pop(draw.randrange(len(alive))))
            else:
                sizes.append(int(10 ** draw.uniform(1, 8)))
                alive.append(len(sizes))
                events.append(len(sizes))
        found = trace(sizes, events)
        assert found.peak(rounded) <= reserved_peak(found) <= sum(segment(rounded(size)) for size in sizes)
