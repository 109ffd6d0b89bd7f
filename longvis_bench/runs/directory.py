"""The run directory: rows, which are appended and never rewritten, and files derived from them.

    run.json        the resolved configuration (`--config` replays it), command, environment, versions
    cells.jsonl     one row per line; a line is flushed to the disk before the next cell starts
    cells.torn      incomplete lines that a crash or a full disk left behind
    planned.json    the cells of the sweep, for `longvis status`; see `progress.py`
    predictions/    <key>.npz, for rows with an accuracy
    summary.csv, summary.md, plots/    derived; `longvis report` writes them again from the rows

The last row of a key counts; earlier attempts stay in the file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longvis_bench.errors import RunDirectoryError
from longvis_bench.files import absence, make_folder, sync_folder, write_whole
from longvis_bench.records import SCHEMA, Environment, Row
from longvis_bench.runs.lock import Lock
from longvis_bench.runs.migrations import migrate_row, migrate_run

ROWS = "cells.jsonl"
PREDICTIONS = "predictions"
RUN = "run.json"
TORN = "cells.torn"
LOCK = ".lock"


class RunDirectory:
    """A run's directory, locked and open for appending.  Use as a context manager.

    Arguments:
        path: the directory, which is created if necessary.

    Raises:
        RunDirectoryError: the directory cannot be written, or another run writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Lock | None = None

    def __enter__(self) -> RunDirectory:
        try:
            make_folder(self.path)
            self._lock = Lock(self.path / LOCK)
            self._set_torn_tail_aside()
        except OSError as error:
            self.__exit__()
            raise cannot_write(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def rows(self) -> list[Row]:
        """All rows so far, in the order they were appended."""
        return read_rows(self.path) if (self.path / ROWS).exists() else []

    def append(self, row: Row) -> None:
        """Append a row and flush it to the disk.

        Raises:
            RunDirectoryError: the disk is full, or the directory is missing or read-only.
        """
        line = (row.to_json() + "\n").encode()
        try:
            descriptor = os.open(self.path / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _write_all(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def write_run(self, content: dict[str, Any]) -> None:
        """Write run.json; see `read_run`."""
        self.write(RUN, json.dumps({"schema": SCHEMA, **content}, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a derived file atomically."""
        try:
            write_whole(self.path / name, lambda file: file.write(text.encode()))
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def remove(self, name: str) -> None:
        """Remove a file of the directory, if it is there and may be removed."""
        with suppress(OSError):
            (self.path / name).unlink()

    def _set_torn_tail_aside(self) -> None:
        """Move an incomplete last line to cells.torn, so that the next row starts on a new line."""
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
    """The content of run.json in the current schema; None if there is no such file.

    Raises:
        RunDirectoryError: the file is no run file, or has an unknown schema.
    """
    file = path / RUN
    if not file.exists():
        return None
    try:
        content = parse_document(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{file} is not a longvis run file; choose another --out.") from error
    return migrate_run(content, str(path))


def read_rows(path: Path) -> list[Row]:
    """All complete rows of a run directory or of a cells.jsonl file, in order.

    Raises:
        RunDirectoryError: there are no rows, or a line is damaged or has an unknown schema.
    """
    file = path if path.is_file() else path / ROWS
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        what = f"{path} holds no {ROWS}" if path.exists() else absence(path, "run directory")
        raise RunDirectoryError(f"{what}: give the directory of a longvis run.") from error
    except UnicodeDecodeError as error:
        raise RunDirectoryError(f"{file} is not a longvis rows file: {error.reason}.") from error
    complete = lines[:-1]  # after the last newline there is nothing, or an incomplete line
    return [_read_row(line, number, file) for number, line in enumerate(complete, start=1) if line.strip()]


def _read_row(line: str, number: int, file: Path) -> Row:
    try:
        content = parse_document(line)
    except ValueError as error:
        raise RunDirectoryError(f"{file} line {number} is damaged; move that line away and retry.") from error
    try:
        return Row.model_validate(migrate_row(content, f"{file} line {number}"))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        raise RunDirectoryError(f"{file} line {number}: {field}: {fault['msg']}.") from error


def parse_document(text: str) -> dict[str, Any]:
    """Parse a JSON object that has a `schema`.

    Raises:
        ValueError: the text is no such object.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError("no object with a schema")
    return content


def has_torn_tail(path: Path) -> bool:
    """Whether the rows of a run end in an incomplete line, which `read_rows` skips."""
    file = path if path.is_file() else path / ROWS
    with file.open("rb") as lines:
        if lines.seek(0, os.SEEK_END) == 0:
            return False
        lines.seek(-1, os.SEEK_END)
        return lines.read() != b"\n"


def _whole(digits: str) -> int:
    """Parse a whole number of at most 64 bits, which a column of a table can hold.

    Raises:
        ValueError: the number needs more bits.
    """
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{digits[:20]}... does not fit into 64 bits")
    return number


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row per key, the last one, in the order in which keys first appeared."""
    last: dict[str, Row] = {}
    for row in rows:
        last[row.key] = row
    return list(last.values())


def current(rows: Iterable[Row]) -> list[Row]:
    """The last row per cell and machine: rows of newer code replace rows of older code.

    Tables, plots and frames show these rows; the old rows stay in the file.
    """
    last: dict[tuple[str, str], Row] = {}
    for row in latest(rows):
        searched = ("batch_size",) if row.cell.batch_auto else ()
        last[row.machine, row.cell.identity(without=searched)] = row
    return list(last.values())


def check_environment(
    path: Path,
    run: Mapping[str, Any],
    environment: Environment,
    advice: str = "choose another --out, or --fresh for a new directory",
) -> None:
    """Check that a run was measured in this environment, because a run never mixes environments.

    Arguments:
        path: the run's directory, for the message.
        run: the content of its run.json.
        environment: the environment of the new rows.
        advice: what the user can do about it, for the message.

    Raises:
        RunDirectoryError: the environments differ; the message lists the differences.
    """
    there = run.get("environment", {})
    here = environment.model_dump(mode="json")
    if "cpu" not in there:
        here = _as_recorded_before(here)
    differing = differences(there, here)
    if differing:
        raise RunDirectoryError(
            f"{path} holds rows of another environment ({'; '.join(differing)}); {advice}."
        )


def _as_recorded_before(here: dict[str, Any]) -> dict[str, Any]:
    """The environment as older versions stored it, without details of processor, GPUs and CUDA."""
    versions = {n: v for n, v in here["versions"].items() if n != "cuda" and not n.startswith("nvidia-")}
    if "torch" in versions:
        versions["torch"] = versions["torch"].partition("+")[0]
    kept = {name: value for name, value in here.items() if name not in ("cpu", "gpus")}
    return {**kept, "versions": versions}


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Differences of two plain mappings, e.g. `versions.torch: "2.11" there, "2.15" here`."""
    found = []
    for name in dict.fromkeys([*here, *there]):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {_short(old)} there, {_short(new)} here")
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def fresh_directory(path: Path) -> Path:
    """`path` if it has no run, else the first of `path-2`, `path-3`, ... without one; nothing is deleted."""
    candidate, number = path, 1
    while (candidate / ROWS).exists() or (candidate / RUN).exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def cannot_write(path: Path, error: OSError) -> RunDirectoryError:
    """The error for a run directory that cannot be written, with advice by the error number."""
    advice = _ADVICE.get(error.errno or 0, "choose another --out")
    reason = error.strerror or error
    return RunDirectoryError(f"cannot write to {path}: {reason}; rows written so far are kept: {advice}.")


_AGAIN = "then give the same command again to resume"
_ADVICE = {
    errno.ENOSPC: f"free some space, {_AGAIN}",
    errno.EDQUOT: f"free some of your quota, {_AGAIN}",
    errno.EFBIG: f"raise the limit on file sizes (ulimit -f), {_AGAIN}",
    errno.EIO: f"check that disk for errors, {_AGAIN}",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EACCES: "you have no permission to write there; choose another --out",
    errno.ENOENT: "the directory was moved or deleted; if it was moved, give its new path to --out",
}
