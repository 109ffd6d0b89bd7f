"""The folder of this package, and atomic, durable writes; `write_whole` alone replaces files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

PACKAGE = Path(__file__).resolve().parent
"""The folder of `longvis_bench` itself; paths of other files of the package start here."""


def absence(path: Path, what: str) -> str:
    """Message for a missing path, or for a pattern: a shell passes on a pattern that matches no file.

    Arguments:
        path: the path as the user gave it.
        what: kind of file that was expected there, e.g. "weight file".

    Returns:
        A clause without a full stop.
    """
    if any(sign in str(path) for sign in "*?["):
        return f"no {what} matches {path}"
    return f"the {what} {path} does not exist"


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = True) -> None:
    """Write a file atomically and durably: after a crash or a power cut it has the old or the new content.

    The content goes to a hidden file beside `path`, which is flushed to the disk and renamed; then the
    folder is flushed.  On any failure `path` keeps its content and the hidden file is removed.

    Arguments:
        path: file to create or replace; missing parent folders are created.
        write: called once with the open binary file.
        durable: False skips the flushes, for files in temporary folders, which a power cut may delete.

    Raises:
        OSError: the file cannot be written.
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
    """Copy a file's content with `write_whole`; the same errors."""
    with source.open("rb") as content:
        write_whole(target, lambda file: shutil.copyfileobj(content, file))


def make_folder(path: Path) -> None:
    """Create a folder and its parents, and flush each new entry to the disk.

    Raises:
        OSError: a folder cannot be created.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to the disk; does nothing on systems other than POSIX."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
