"""Conditions that the harness sets for every model while it times: no page faults, no migrating threads.

A C library that returns freed memory to the system faults in the same pages again in every iteration, at
about 2 us per page.  How often it does so depends on the history of its heap: from 512 px on it is a fifth of
the time, and the share differs between processes.  The scheduler decides by chance, too, whether two threads
share a physical core or migrate to another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from longvis_bench.measure.memory.allocator import keep_freed_memory
from longvis_bench.records import Cell

BUSY_NS = 200_000
"""Time on a processor by which a thread is known to take part."""
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@contextmanager
def steady_conditions(cell: Cell, *, keep_memory: bool = True) -> Iterator[dict[str, str]]:
    """Set the conditions for the timing inside; yield a description of them, which the row stores.

    Arguments:
        cell: device and threads.
        keep_memory: False where memory is short: other processes cannot use freed memory that is kept.
    """
    done: dict[str, str] = {}
    if cell.device != "cpu":
        yield done
        return
    with pinned(cell.threads) as cores, keep_freed_memory(keep_memory) as kept:
        if cores:
            done["threads"] = f"on {cores}, one per physical core"
        done["freed memory"] = "kept" if kept else "given back"
        yield done


@contextmanager
def pinned(threads: int) -> Iterator[str]:
    """Pin this process to as many physical cores as it has threads, one hardware thread per core.

    Yields:
        The processors as text; empty where the system cannot pin threads or has too few cores.
    """
    if sys.platform != "linux":
        yield ""
        return
    allowed = os.sched_getaffinity(0)
    chosen = one_per_core(allowed)[:threads]
    if len(chosen) < threads:
        yield ""
        return
    _pin_all(set(chosen))
    try:
        yield "processors " + " ".join(map(str, chosen))
    finally:
        _pin_all(allowed)


def one_per_core(processors: set[int], siblings: str = _SIBLINGS) -> list[int]:
    """The first hardware thread of each physical core among the given processors.

    Arguments:
        processors: numbers of the processors that this process may use.
        siblings: path of the file that lists the hardware threads of a processor's core.
    """
    taken: set[str] = set()
    chosen = []
    for processor in sorted(processors):
        try:
            core = Path(siblings.format(processor)).read_text().strip()
        except OSError:
            core = str(processor)
        if core not in taken:
            taken.add(core)
            chosen.append(processor)
    return chosen


def keep_threads_apart(cores: Sequence[int], work: Callable[[], object]) -> int:
    """Give each thread that does the work a core of its own.

    A set of cores for the whole process is not enough: schedulers also put two of its threads on one core,
    for seconds on end, and a parallel operator then takes as long as on one thread, and longer.  Threads of
    one pool have numbers in a row, so cores are dealt out in the order of the numbers.

    Arguments:
        cores: processors, as many as a pool has threads.
        work: runs once, or until all pools are seen at work.

    Returns:
        How many threads were given a core; 0 where the system does not say which threads work.
    """
    before = _thread_times()
    if not before:
        return 0
    work()
    after = _thread_times()
    busy = [thread for thread in sorted(after) if after[thread] - before.get(thread, 0) >= BUSY_NS]
    for index, thread in enumerate(busy):
        with suppress(OSError):  # it ended meanwhile, or the system does not allow it
            os.sched_setaffinity(thread, {cores[index % len(cores)]})
    return len(busy)


def _thread_times() -> dict[int, int]:
    """Nanoseconds on a processor of each thread of this process; empty where the kernel does not say."""
    times = {}
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError, ValueError, IndexError):
            times[int(thread.name)] = int((thread / "schedstat").read_text().split()[0])
    return times


def _pin_all(processors: set[int]) -> None:
    """Pin all threads of this process; a thread started later inherits the affinity of its parent."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), processors)
        except OSError:  # the thread has ended, or the system does not allow it
            continue
