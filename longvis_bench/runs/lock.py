"""A lock on a file that lives as long as the process that took it, and no longer.

POSIX record locks, not flock: a forked child does not inherit them, so that an orphan of a dead run cannot
keep its lock.  Their weakness, that any descriptor of the file closed by the process drops them, is met by
opening the file here only; that the process itself is never refused, by a list of what it holds.
"""

from __future__ import annotations

import os
from pathlib import Path

from longvis_bench.errors import RunDirectoryError

_held: dict[tuple[int, Path], int] = {}
"""(process, file) -> descriptor.  A forked child finds its parent's entries under another process."""


class Lock:
    """An exclusive lock, taken on construction.

    Arguments:
        path: the file; made where it does not exist.

    Raises:
        RunDirectoryError: another process, or this one, holds it.
        OSError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._key = os.getpid(), path.resolve()
        self._folder = path.parent
        if self._key in _held:
            raise self._refusal()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _take(descriptor):
            os.close(descriptor)
            raise self._refusal()
        _held[self._key] = descriptor

    def release(self) -> None:
        """Let go of it."""
        os.close(_held.pop(self._key))

    def _refusal(self) -> RunDirectoryError:
        return RunDirectoryError(
            f"another longvis run is writing to {self._folder}; wait for it, or choose another --out."
        )


def _take(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: no lock that dies with its holder
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
