"""The run directory: rows appended one by one, never rewritten, and files derived from them.

    run.json        the resolved configuration (`--config` replays it), command, environment, versions
    cells.jsonl     one row per line; a line is complete and on the disk before the next cell starts
    cells.torn      what was left of a line that a dying process or a full disk cut off
    predictions/    <key>.npz, where accuracy was measured
    summary.csv, summary.md, plots/    derived; `longvis report` makes them again from the rows

The last row of a key counts; earlier attempts stay in the file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
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
    """One run's directory, open for appending.  Use as a context manager; it holds a lock.

    Arguments:
        path: made where it does not exist.

    Raises:
        RunDirectoryError: it cannot be written, or another run writes to it.
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
            sync_folder(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def write_run(self, content: dict[str, Any]) -> None:
        """Write run.json; see `read_run`."""
        self.write(RUN, json.dumps({"schema": SCHEMA, **content}, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a derived file whole or not at all."""
        try:
            write_whole(self.path / name, lambda file: file.write(text.encode()))
        except OSError as error:
            raise cannot_write(self.path, error) from error

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
        content = parse_document(file.read_text(encoding="utf-8"))
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
        what = f"{path} holds no {ROWS}" if path.exists() else absence(path, "run directory")
        raise RunDirectoryError(f"{what}: give the directory of a longvis run.") from error
    except UnicodeDecodeError as error:
        raise RunDirectoryError(f"{file} is not a longvis rows file: {error.reason}.") from error
    complete = lines[:-1]  # what follows the last newline is a torn line
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
    """A JSON object with a `schema`.

    Raises:
        ValueError: the text is anything else.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError("no object with a schema")
    return content


def has_torn_tail(path: Path) -> bool:
    """Whether the rows of a run end in an unfinished line, which reading leaves out."""
    file = path if path.is_file() else path / ROWS
    with file.open("rb") as lines:
        if lines.seek(0, os.SEEK_END) == 0:
            return False
        lines.seek(-1, os.SEEK_END)
        return lines.read() != b"\n"


def _whole(digits: str) -> int:
    """A whole number that a column can hold: 64 bits.

    Raises:
        ValueError: it has more.
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
    """One row per cell and machine, the last one: cells measured with changed code replace their old rows.

    What tables, plots and frames show; the old rows stay in the file.
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
    """Refuse to mix rows of two environments, naming what differs.

    Raises:
        RunDirectoryError: some field differs.
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
    """An environment as older runs hold it, without details of processor, GPUs and CUDA."""
    versions = {n: v for n, v in here["versions"].items() if n != "cuda" and not n.startswith("nvidia-")}
    if "torch" in versions:
        versions["torch"] = versions["torch"].partition("+")[0]
    kept = {name: value for name, value in here.items() if name not in ("cpu", "gpus")}
    return {**kept, "versions": versions}


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two plain mappings, as `versions.torch: "2.11" there, "2.15" here`."""
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
    """`path` if nothing is there, else `path-2`, `path-3`, ...: nothing is ever deleted."""
    candidate, number = path, 1
    while (candidate / ROWS).exists() or (candidate / RUN).exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def cannot_write(path: Path, error: OSError) -> RunDirectoryError:
    """The error for a run's directory that takes no more files, with advice by the error's number."""
    advice = _ADVICE.get(error.errno or 0, "choose another --out")
    reason = error.strerror or error
    return RunDirectoryError(f"cannot write to {path}: {reason}; rows written so far are kept: {advice}.")


_AGAIN = "then give the same command again, which goes on from there"
_ADVICE = {
    errno.ENOSPC: f"free some space, {_AGAIN}",
    errno.EDQUOT: f"free some of your quota, {_AGAIN}",
    errno.EFBIG: f"raise the limit on file sizes (ulimit -f), {_AGAIN}",
    errno.EIO: f"look after that disk, {_AGAIN}",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EACCES: "you may not write there; choose another --out",
    errno.ENOENT: "the directory was moved or deleted; where it was moved, give its new path to --out",
}
