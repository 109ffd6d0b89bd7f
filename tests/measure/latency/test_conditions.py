"""What the harness sets while it times: threads on cores of their own, freed memory kept."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from longvis_bench.measure.latency.conditions import ThreadsApart, one_per_core, pinned, steady_conditions
from longvis_bench.records import Cell

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins threads")


def affinities() -> dict[int, frozenset[int]]:
    return {
        int(task.name): frozenset(os.sched_getaffinity(int(task.name)))
        for task in Path("/proc/self/task").iterdir()
    }


@contextmanager
def workers(count: int) -> Iterator[list[int]]:
    """Threads that have worked for some milliseconds, and one that has slept."""
    done, numbers = threading.Event(), []

    def work() -> None:
        until = monotonic() + 0.02
        while monotonic() < until:
            sum(range(1000))
        numbers.append(threading.get_native_id())
        done.wait()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    while len(numbers) < count:
        sum(range(1000))
    try:
        yield sorted(numbers)
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_threads_of_one_pool_get_different_cores_and_idle_ones_keep_theirs() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("one processor")
    idle, release = threading.Thread(target=lambda: release.wait()), threading.Event()
    idle.start()
    with pinned(2):
        apart = ThreadsApart(cores)
        with workers(2) as numbers:
            assert apart.look() >= 3  # the two and this one
            found = affinities()
            assert len({found[number] for number in numbers}) == 2
            assert all(len(found[number]) == 1 for number in numbers)
            assert idle.native_id is not None
            assert len(found[idle.native_id]) == 2
            assert apart.look() == 0
    release.set()
    idle.join()


def test_all_threads_may_run_everywhere_afterwards(cell: Cell) -> None:
    before = frozenset(os.sched_getaffinity(0))
    with steady_conditions(cell) as steady, workers(1):
        steady.look()
    assert set(affinities().values()) == {before}


def test_the_row_is_told_in_words_and_an_accelerators_host_is_left_alone(cell: Cell) -> None:
    with steady_conditions(cell, keep_memory=False) as steady:
        first = one_per_core(os.sched_getaffinity(0))[0]
        assert steady.described == {
            "threads": f"on processors {first}, each on a physical core of its own",
            "freed memory": "given back",
        }
    with steady_conditions(cell.model_copy(update={"device": "cuda"})) as steady:
        steady.look()
        assert steady.described == {}


def test_more_threads_than_cores_are_not_pinned(cell: Cell) -> None:
    with steady_conditions(cell.model_copy(update={"threads": 4096})) as steady:
        steady.look()
        assert "threads" not in steady.described


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for processor, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / str(processor)).write_text(siblings)
    assert one_per_core({0, 1, 2, 3}, str(tmp_path / "{}")) == [0, 1]
