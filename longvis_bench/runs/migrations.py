"""Convert stored documents of older schemas to the current one on reading; files are never rewritten.

There is one step per version: `ROW_STEPS[1]` converts the JSON value of a row of schema 1 to schema 2.  A new
schema adds its step here, a line to the history in `records.py`, and a fixture under `tests/data/` that tests
read from then on.  A new field needs no step if its default is true of the old rows.

Old runs behave as follows:

- reading (report, `load_results`, plots): like rows of the current schema, field for field;
- merging: `longvis merge` writes their rows in the current schema, with their old keys;
- resuming: a key contains the hash of the measuring code, so the sweep measures cells of older code again and
  appends the new rows to the same directory; `--only-missing` uses the old rows instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from longvis_bench.errors import RunDirectoryError
from longvis_bench.records import SCHEMA

Document = dict[str, Any]
Step = Callable[[Document], Document]


def _unchanged(document: Document) -> Document:
    return document


def _with_invocations(run: Document) -> Document:
    """Move the only command of a run.json of schema 1 from the top level into `invocations`."""
    moved = ("longvis", "created", "command", "config")
    rest = {name: value for name, value in run.items() if name not in moved}
    first = {name: run.get(name) for name in moved} | {"shard": None, "cut": []}
    return {**rest, "invocations": [first]}


ROW_STEPS: Mapping[int, Step] = {1: _unchanged, 2: _unchanged}
"""Version -> step to the next one, for lines of cells.jsonl; a cell with `resolution` alone is a square."""
RUN_STEPS: Mapping[int, Step] = {1: _with_invocations, 2: _unchanged}
"""Version -> step to the next one, for run.json."""
HIDDEN = "the version that measured this row could not detect the attention kernel; measure it again"
"""Why older inference rows have no `attention`: they stored `math` although torch ran a fused kernel."""


def migrate_row(document: Document, where: str) -> Document:
    """Convert a stored row to the current schema.

    Arguments:
        document: the JSON value of a line of cells.jsonl.
        where: name of the file, for the message.

    Raises:
        RunDirectoryError: this version does not know the schema of the row.
    """
    return _with_attention(_migrate(document, ROW_STEPS, where))


def migrate_run(document: Document, where: str) -> Document:
    """Convert a stored run.json to the current schema; see `migrate_row`."""
    return _migrate(document, RUN_STEPS, where)


def _migrate(document: Document, steps: Mapping[int, Step], where: str) -> Document:
    version = document["schema"]
    if type(version) is not int or not (version == SCHEMA or version in steps):
        raise RunDirectoryError(_unknown(version, where))
    while version < SCHEMA:
        version += 1
        document = {**steps[version - 1](document), "schema": version}
    return document


def _with_attention(row: Document) -> Document:
    """Move the attention kernel of older rows from `backends` to `attention`; in inference it was wrong."""
    backends, cell, reasons = row.get("backends"), row.get("cell"), row.get("null_reasons", {})
    if not (isinstance(backends, dict) and isinstance(cell, dict) and isinstance(reasons, dict)):
        return row  # damaged: the validation by `Row` reports the field
    if "attention" not in backends:
        return row
    kept = {name: kernel for name, kernel in backends.items() if name != "attention"}
    if cell.get("mode") == "train":
        return {**row, "backends": kept, "attention": backends["attention"]}
    return {**row, "backends": kept, "null_reasons": {**reasons, "attention": HIDDEN}}


def _unknown(version: object, where: str) -> str:
    newer = type(version) is int and version > SCHEMA
    advice = "use a newer longvis to read it" if newer else "longvis did not write it"
    return f"{where} has schema {version}, and this longvis reads schemas 1 to {SCHEMA}; {advice}."
