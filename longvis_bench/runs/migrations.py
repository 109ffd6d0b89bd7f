"""Stored documents of older schemas become present ones on reading; the files are never rewritten.

One step per version, chained: `ROW_STEPS[1]` takes the plain JSON value of a row of schema 1 and gives that
of schema 2.  A new schema adds its step here, its line to the history in `records.py`, and a fixture under
`tests/data/` that is read for ever.  A new field with a default needs no work in the step, provided the
default is true of the old rows.

What holds for old runs:

- read (report, `load_results`, plots): as if they had been written today, field for field;
- merge: their rows are written to the merged run in the present schema, under their old keys;
- resume: a key holds the hash of the measuring code, so that cells measured by older code are measured anew
  into the same directory, beside the old rows, which stay; `--only-missing` keeps the old ones instead.
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
    """run.json of schema 1 held its first command only, at the top."""
    moved = ("longvis", "created", "command", "config")
    rest = {name: value for name, value in run.items() if name not in moved}
    first = {name: run.get(name) for name in moved} | {"shard": None, "cut": []}
    return {**rest, "invocations": [first]}


ROW_STEPS: Mapping[int, Step] = {1: _unchanged}
"""Version -> step to the next one, for lines of cells.jsonl."""
RUN_STEPS: Mapping[int, Step] = {1: _with_invocations}
"""The same for run.json."""
HIDDEN = "this row was measured before longvis could see the attention kernel of inference; measure it again"
"""Why older inference rows have no `attention`: they said `math` where torch ran a fused kernel."""


def migrate_row(document: Document, where: str) -> Document:
    """A stored row as the present schema has it.

    Arguments:
        document: the JSON value of a line of cells.jsonl.
        where: names the file in the message.

    Raises:
        RunDirectoryError: it is of a schema that this version does not know.
    """
    return _with_attention(_migrate(document, ROW_STEPS, where))


def migrate_run(document: Document, where: str) -> Document:
    """A stored run.json as the present schema has it; see `migrate_row`."""
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
    """Rows written before `Row.attention` kept the kernel in `backends`, and in inference a wrong one."""
    backends, cell, reasons = row.get("backends"), row.get("cell"), row.get("null_reasons", {})
    if not (isinstance(backends, dict) and isinstance(cell, dict) and isinstance(reasons, dict)):
        return row  # damaged: reading it into a Row says how
    if "attention" not in backends:
        return row
    kept = {name: kernel for name, kernel in backends.items() if name != "attention"}
    if cell.get("mode") == "train":
        return {**row, "backends": kept, "attention": backends["attention"]}
    return {**row, "backends": kept, "null_reasons": {**reasons, "attention": HIDDEN}}


def _unknown(version: object, where: str) -> str:
    newer = type(version) is int and version > SCHEMA
    advice = "use a newer longvis to read it" if newer else "it was not written by longvis"
    return f"{where} is of schema {version}, this longvis knows schemas 1 to {SCHEMA}; {advice}."
