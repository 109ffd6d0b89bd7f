"""The run directory: rows appended one by one, never rewritten, and files derived from them.

    run.json        the resolved configuration (`--config` replays it), command, environment, versions
    cells.jsonl     one row a line; a line is complete and on the disk before the next cell starts
    cells.torn      what was left of a line that a dying process or a full disk cut off
    predictions/    <key>.npz, where accuracy was measured
    summary.csv, summary.md, plots/    derived; `longvis report` makes them again from the rows

The last row of a key counts; earlier attempts stay in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longvis_bench.errors import RunDirectoryError
from longvis_bench.migration import migrate_row, migrate_run
from longvis_bench.records import SCHEMA, Environment, Row, digest

ROWS = "cells.jsonl"
RUN = "run.json"
TORN = "cells.torn"
LOCK = ".lock"


class RunDirectory:
    """One run's directory, open for appending.  Use as a context manager; it holds a lock.

    Arguments:
        path: made where it does not exist.

    Raises:
        RunDirectoryError: it cannot be written, or another run writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __enter__(self) -> RunDirectory:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path / LOCK)
            self._set_torn_tail_aside()
        except OSError as error:
            raise RunDirectoryError(_cannot_write(self.path, error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def rows(self) -> list[Row]:
        """All rows so far, in the order they were appended."""
        return read_rows(self.path) if (self.path / ROWS).exists() else []

    def append(self, row: Row) -> None:
        """Add one row and wait until it is on the disk.

        Raises:
            RunDirectoryError: the disk is full, or the directory is gone or read-only.
        """
        line = (row.to_json() + "\n").encode()
        try:
            descriptor = os.open(self.path / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _write_all(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _sync_folder(self.path)
        except OSError as error:
            raise RunDirectoryError(_cannot_write(self.path, error)) from error

    def write_run(self, content: dict[str, Any]) -> None:
        """Write run.json; see `read_run`."""
        self.write(RUN, json.dumps({"schema": SCHEMA, **content}, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a derived file whole or not at all."""
        target = self.path / name
        temporary = target.with_name(target.name + ".new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise RunDirectoryError(_cannot_write(self.path, error)) from error

    def _set_torn_tail_aside(self) -> None:
        """Move an unfinished last line to cells.torn, so that the next row starts on a line of its own."""
        path = self.path / ROWS
        if not path.exists():
            return
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return
        with (self.path / TORN).open("ab") as torn:
            torn.write(content[end:] + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())


def read_run(path: Path) -> dict[str, Any] | None:
    """run.json, or None where there is none yet.

    Raises:
        RunDirectoryError: it is no run file, or of a schema that is not known.
    """
    file = path / RUN
    if not file.exists():
        return None
    try:
        content = _document(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{file} is not a longvis run file; choose another --out.") from error
    return migrate_run(content, str(path))


def read_rows(path: Path) -> list[Row]:
    """All complete rows of a run directory or of a cells.jsonl file, in order.

    Raises:
        RunDirectoryError: there are no rows, a line is damaged, or of a schema that is not known.
    """
    file = path if path.is_file() else path / ROWS
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise RunDirectoryError(f"{path} holds no {ROWS}: give the directory of a longvis run.") from error
    except UnicodeDecodeError as error:
        raise RunDirectoryError(f"{file} is not a longvis rows file: {error.reason}.") from error
    complete = lines[:-1]  # what follows the last newline is a torn line
    return [_read_row(line, number, file) for number, line in enumerate(complete, start=1) if line.strip()]


def _read_row(line: str, number: int, file: Path) -> Row:
    try:
        content = _document(line)
    except ValueError as error:
        raise RunDirectoryError(f"{file} line {number} is damaged; move that line away and retry.") from error
    try:
        return Row.model_validate(migrate_row(content, f"{file} line {number}"))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise RunDirectoryError(f"{file} line {number}: {place}: {fault['msg']}.") from error


def _document(text: str) -> dict[str, Any]:
    """A JSON object that says its schema.

    Raises:
        ValueError: the text is anything else.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError("no object with a schema")
    return content


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row a key, the last one, in the order in which keys first appeared."""
    last: dict[str, Row] = {}
    for row in rows:
        last[row.key] = row
    return list(last.values())


def current(rows: Iterable[Row]) -> list[Row]:
    """One row a cell and machine, the last one: a cell measured again with changed code replaces its old row.

    What tables, plots and frames show; the old rows stay in the file.
    """
    last: dict[str, Row] = {}
    for row in latest(rows):
        last[digest([row.machine, row.cell.model_dump(mode="json")])] = row
    return list(last.values())


def check_environment(path: Path, run: dict[str, Any], environment: Environment) -> None:
    """Refuse to mix rows of two environments, naming what differs.

    Raises:
        RunDirectoryError: some field differs.
    """
    there = run.get("environment", {})
    here = environment.model_dump(mode="json")
    differing = [name for name in here if here[name] != there.get(name)]
    if differing:
        name = differing[0]
        raise RunDirectoryError(
            f"{path} holds rows of another environment ({name}: {_short(there.get(name))} there, "
            f"{_short(here[name])} here); choose another --out, or --fresh for a new directory."
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def fresh_directory(path: Path) -> Path:
    """`path` if nothing is there, else `path-2`, `path-3`, ...: nothing is ever deleted."""
    candidate, number = path, 1
    while (candidate / ROWS).exists() or (candidate / RUN).exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _lock(path: Path) -> int:
    """An advisory lock that the kernel drops with its holder, however that ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl
    except ImportError:  # Windows: no advisory lock that dies with its holder
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunDirectoryError(
            f"another longvis run is writing to {path.parent}; wait for it, or choose another --out."
        ) from None
    return descriptor


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _sync_folder(path: Path) -> None:
    """Make the file's directory entry durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"cannot write to {path}: {reason}; rows written so far are kept, choose another --out."
