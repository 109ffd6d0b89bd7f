"""How worker processes hand batches over: through shared memory, through pipes, or there are none.

torch hands tensors over in shared memory, on Linux files under /dev/shm.  Containers often have 64 MiB of it,
and a worker that writes beyond that is killed by SIGBUS; without it, semaphores cannot be made either.  So it
is measured first.  Through pipes batches are copied, which costs time and no shared memory.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from longvis_bench import units

SHARED_MEMORY = Path("/dev/shm")
SMALL_BYTES = 1 << 30
"""Less than this is worth a line in `longvis doctor`: a few batches of large images fill it."""
HEADROOM = 0.9
"""Share of the free shared memory that the batches may take."""
ENLARGE = "in Docker, --shm-size=8g gives more"


class Handover(NamedTuple):
    """How a loader's workers are run."""

    workers: int
    way: Literal["shared memory", "pipes"]
    note: str | None = None
    """What the user should know; None where all is as asked."""


def plan_handover(workers: int, batch_bytes: int, batches: int) -> Handover:
    """Workers, and the way for their batches, that this machine's shared memory allows.

    Arguments:
        workers: how many are asked for.
        batch_bytes: of one batch as a worker sends it.
        batches: how many exist at once.
    """
    if workers == 0:
        return Handover(0, "shared memory")
    if not has_semaphores():
        note = f"images are loaded without workers: {SHARED_MEMORY} is missing or not writable; {ENLARGE}."
        return Handover(0, "shared memory", note)
    free, needed = free_shared_memory(), batches * batch_bytes
    if free is None or needed <= HEADROOM * free:
        return Handover(workers, "shared memory")
    note = (
        f"the workers send their batches through pipes, which is slower: {batches} batches of "
        f"{units.size(batch_bytes)} do not fit the {units.size(free)} free in {SHARED_MEMORY}; {ENLARGE}."
    )
    return Handover(workers, "pipes", note)


def has_semaphores() -> bool:
    """Whether processes can share a lock, which is tried."""
    try:
        multiprocessing.get_context().Lock()
    except (OSError, ImportError):
        return False
    return True


def free_shared_memory() -> int | None:
    """Bytes free in /dev/shm; 0 where it is missing; None on systems that share memory otherwise."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def shared_memory_fault() -> str | None:
    """What is wrong with this machine's shared memory, in a sentence for `longvis doctor`, or None."""
    if not has_semaphores():
        return f"{SHARED_MEMORY} is missing or not writable, so images are loaded without workers; {ENLARGE}."
    free = free_shared_memory()
    if free is None or free >= SMALL_BYTES:
        return None
    return f"{SHARED_MEMORY} has {units.size(free)} free, which large batches exceed; {ENLARGE}."
