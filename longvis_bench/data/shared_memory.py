"""How worker processes return batches: through shared memory, through pipes, or no workers at all.

torch passes tensors through shared memory, on Linux files under /dev/shm.  Containers often have 64 MiB of
it, and SIGBUS kills a worker that writes beyond that; without it, semaphores cannot be created either.
Therefore the free shared memory is read first.  Pipes copy batches, which takes time but no shared memory.
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
"""`longvis doctor` reports less than this, which a few batches of large images fill."""
HEADROOM = 0.9
"""Largest share of the free shared memory that the batches take."""
ENLARGE = "in Docker, --shm-size=8g gives more"
OWN_LOCKS, LOCKS_PER_WORKER = 12, 4
"""Locks in torch's loader: in its queue of results and its events, and in the queue of each worker."""


class Handover(NamedTuple):
    """How a loader runs its workers."""

    workers: int
    way: Literal["shared memory", "pipes"]
    note: str | None = None
    """A sentence for the user on a change; None if the request was met."""


def plan_handover(workers: int, batch_bytes: int, batches: int) -> Handover:
    """The number of workers, and how they return batches, that this machine's shared memory allows.

    Arguments:
        workers: the requested number.
        batch_bytes: bytes of one batch as a worker sends it.
        batches: number of batches that exist at once.
    """
    if workers == 0:
        return Handover(0, "shared memory")
    if not has_semaphores(OWN_LOCKS + LOCKS_PER_WORKER * workers):
        note = (
            f"images are loaded without workers: {SHARED_MEMORY} is missing, not writable or full; {ENLARGE}."
        )
        return Handover(0, "shared memory", note)
    free, needed = free_shared_memory(), batches * batch_bytes
    if free is None or needed <= HEADROOM * free:
        return Handover(workers, "shared memory")
    note = (
        f"the workers send their batches through pipes, which is slower: {batches} batches of "
        f"{units.size(batch_bytes)} do not fit the {units.size(free)} free in {SHARED_MEMORY}; {ENLARGE}."
    )
    return Handover(workers, "pipes", note)


def has_semaphores(number: int = 1) -> bool:
    """Whether processes can share this many locks, found by creating them; each takes a page of memory."""
    context = multiprocessing.get_context()
    try:
        _ = [context.Lock() for _ in range(number)]
    except (OSError, ImportError):
        return False
    return True


def free_shared_memory() -> int | None:
    """Bytes free in /dev/shm; 0 if it is missing, None on systems without it by design."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def shared_memory_fault() -> str | None:
    """A sentence for `longvis doctor` on a fault of this machine's shared memory; None without a fault."""
    if not has_semaphores():
        return f"{SHARED_MEMORY} is missing or not writable, so images are loaded without workers; {ENLARGE}."
    free = free_shared_memory()
    if free is None or free >= SMALL_BYTES:
        return None
    return f"{SHARED_MEMORY} has {units.size(free)} free, which large batches exceed; {ENLARGE}."
