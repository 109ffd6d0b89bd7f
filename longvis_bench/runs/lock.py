"""A file lock that the system releases when the process that holds it ends.

Where there are POSIX record locks, it is one, not flock: a forked child does not inherit it, so an orphan of
a dead run cannot keep it.  Record locks have two weaknesses.  Closing any descriptor of the file releases the
lock, so only this module opens the file.  And the process that holds the lock can take it again, so `_held`
lists the locks of this process.  Windows has neither fork nor record locks; there filelock locks the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from longvis_bench.errors import RunDirectoryError

Release = Callable[[], object]
"""Releases a lock that was taken."""

_held: dict[tuple[int, Path], Release] = {}
"""(process, file) -> its release.  A forked child finds its parent's entries under another process."""


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
        release = _take(path)
        if release is None:
            raise self._refusal()
        _held[self._key] = release

    def release(self) -> None:
        """Release the lock."""
        _held.pop(self._key)()

    def _refusal(self) -> RunDirectoryError:
        return RunDirectoryError(
            f"another longvis run is writing to {self._folder}; wait for it, or choose another --out."
        )


def is_held(path: Path) -> bool:
    """Whether a process holds a lock; False where there is no lock file, or it cannot be opened."""
    if (os.getpid(), path.resolve()) in _held:
        return True
    if not path.exists():
        return False
    try:
        release = _take(path)
    except OSError:
        return False
    if release is None:
        return True
    release()
    return False


def _take(path: Path) -> Release | None:
    """Lock a file; None if another process has it."""
    try:
        import fcntl
    except ImportError:
        return _take_by_filelock(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    return partial(os.close, descriptor)


def _take_by_filelock(path: Path) -> Release | None:
    """Lock a file on a system without POSIX locks; None if another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock.release
