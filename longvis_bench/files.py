"""Where this package's own files lie, and how files appear on a disk.

`write_whole` is the one way in which this package replaces a file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

PACKAGE = Path(__file__).resolve().parent
"""The folder of `longvis_bench` itself; what finds other files of the package starts here."""


def absence(path: Path, what: str) -> str:
    """Say that a path is not there; a shell hands on a pattern that matches nothing as it was typed.

    Arguments:
        path: as the user gave it.
        what: it should be, e.g. "weight file".

    Returns:
        A clause without a full stop.
    """
    if any(sign in str(path) for sign in "*?["):
        return f"no {what} matches {path}"
    return f"the {what} {path} does not exist"


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = True) -> None:
    """Write a file so that it appears whole or not at all, and stands after a power cut.

    The content goes to a hidden file beside `path`, which is flushed to the disk and renamed; then the
    folder is flushed.  Where anything fails, `path` holds what it held before and the hidden file is removed.

    Arguments:
        path: replaced if it is there; missing folders above it are made.
        write: called once with the open binary file.
        durable: False saves the flushes, for files in a temporary folder that a power cut removes anyway.

    Raises:
        OSError: the disk does not take it.
        Exception: whatever `write` raises.
    """
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file's content by `write_whole`; errors as there."""
    with source.open("rb") as content:
        write_whole(target, lambda file: shutil.copyfileobj(content, file))


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each entry durable.

    Raises:
        OSError: the disk does not take it.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
