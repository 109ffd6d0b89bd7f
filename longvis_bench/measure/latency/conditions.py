"""What the harness removes for all models alike while it times: page faults and moving threads.

A C library that gives freed memory back takes the same pages anew in every iteration, at about 2 us each, as
often as the history of its heap has it: from 512 px on that is a fifth of the time, and another share in the
next process.  Threads that share a physical core, or move from one to another, do so by chance too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longvis_bench.measure.memory.allocator import keep_freed_memory
from longvis_bench.records import Cell

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@contextmanager
def steady_conditions(cell: Cell, *, keep_memory: bool = True) -> Iterator[dict[str, str]]:
    """Time inside; what was done is yielded, to be kept with the row.

    Arguments:
        cell: device and threads.
        keep_memory: False where memory is short: what is kept is not given to others.
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
    """Let this process run on as many physical cores as it has threads, and on one hardware thread of each.

    Yields:
        The processors in words; empty where the system does not do it or there are too few cores.
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
    """The first hardware thread of each physical core among some processors.

    Arguments:
        processors: numbers of those that may be used.
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


def _pin_all(processors: set[int]) -> None:
    """All threads there are; those that come take it from the one that starts them."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), processors)
        except OSError:  # it ended meanwhile, or the system does not allow it
            continue
