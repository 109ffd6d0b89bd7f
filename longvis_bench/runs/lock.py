"""A file lock that the system releases when the process that holds it ends.

The lock is a POSIX record lock, not flock: a forked child does not inherit it, so an orphan of a dead run
cannot keep it.  Record locks have two weaknesses.  Closing any descriptor of the file releases the lock, so
only this module opens the file.  And the process that holds the lock can take it again, so `_held` lists the
locks of this process.
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
        path: the lock file, which is created if necessary.

    Raises:
        RunDirectoryError: another process, or this one, holds the lock.
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
        """Release the lock."""
        os.close(_held.pop(self._key))

    def _refusal(self) -> RunDirectoryError:
        return RunDirectoryError(
            f"another longvis run is writing to {self._folder}; wait for it, or choose another --out."
        )


def _take(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no lock that ends with its process
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
