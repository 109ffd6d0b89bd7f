"""Conditions that the harness sets for every model while it times: no page faults, no migrating threads.

A C library that returns freed memory to the system faults in the same pages again in every iteration, at
about 2 us per page.  How often it does so depends on the history of its heap: from 512 px on it is a fifth of
the time, and the share differs between processes.  The scheduler decides by chance, too, whether two threads
share a physical core or migrate to another; docs/measuring.md says what that costs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from longvis_bench.measure.memory.allocator import keep_freed_memory
from longvis_bench.records import Cell

BUSY_NS = 200_000
"""Time on a processor from which on a thread counts as one that takes part in an iteration."""
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Steady:
    """The conditions while they hold.

    Arguments:
        kept: whether freed memory is kept; None on an accelerator, whose host is left as it is.
        threads: None where threads cannot be pinned.
    """

    def __init__(self, kept: bool | None, threads: ThreadsApart | None) -> None:
        self._kept, self._threads = kept, threads

    def look(self) -> None:
        """Between iterations: give each thread that took part in the first one a core of its own."""
        if self._threads is not None:
            self._threads.look()

    @property
    def described(self) -> dict[str, str]:
        """What was done, in words, for the row; empty on an accelerator."""
        done = {}
        if self._threads is not None:
            cores = " ".join(map(str, self._threads.cores))
            done["threads"] = f"on processors {cores}, each on a physical core of its own"
        if self._kept is not None:
            done["freed memory"] = "kept" if self._kept else "given back"
        return done


@contextmanager
def steady_conditions(cell: Cell, *, keep_memory: bool = True) -> Iterator[Steady]:
    """Set the conditions for the timing inside.

    Arguments:
        cell: device and threads.
        keep_memory: False where memory is short: other processes cannot use freed memory that is kept.
    """
    if cell.device != "cpu":
        yield Steady(None, None)
        return
    with pinned(cell.threads) as cores, keep_freed_memory(keep_memory) as kept:
        yield Steady(kept, ThreadsApart(cores) if cores else None)


@contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Pin this process to as many physical cores as it has threads, one hardware thread per core.

    Yields:
        The processors; empty where the system cannot pin threads or has too few cores.
    """
    if sys.platform != "linux":
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    chosen = one_per_core(allowed)[:threads]
    if len(chosen) < threads:
        yield ()
        return
    _pin_all(set(chosen))
    try:
        yield tuple(chosen)
    finally:
        _pin_all(allowed)


class ThreadsApart:
    """Gives each thread that does the work a core of its own, once the work has been seen.

    A set of cores for the whole process is not enough: a scheduler may put two of its threads on one core
    and keep them there for seconds, so that a parallel operator takes as long as on one thread.  Threads
    of one pool are created one after the other, so cores are dealt out in the order of the threads' numbers.

    Arguments:
        cores: processors, as many as a pool has threads.
    """

    def __init__(self, cores: Sequence[int]) -> None:
        self.cores = tuple(cores)
        self._before: dict[int, int] | None = _thread_times()

    def look(self) -> int:
        """Pin the threads that worked since this object was made; the first call does it.

        Returns:
            How many threads were pinned; 0 where the system does not say which threads work.
        """
        if not self._before:
            return 0
        before, self._before = self._before, None
        after = _thread_times()
        busy = [thread for thread in sorted(after) if after[thread] - before.get(thread, 0) >= BUSY_NS]
        for index, thread in enumerate(busy):
            with suppress(OSError):  # the thread ended meanwhile, or the system does not allow it
                os.sched_setaffinity(thread, {self.cores[index % len(self.cores)]})
        return len(busy)


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
