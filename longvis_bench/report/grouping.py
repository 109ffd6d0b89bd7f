"""Rows that belong together: one model under the same conditions, over its sizes.

Tables and plots take names, order and growth from here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME, Value
from longvis_bench.stats import Growth, growth_exponent, median

CONDITIONS = (
    "batch_size",
    "mode",
    "dtype",
    "device",
    "threads",
    "memory_format",
    "fused",
    "compiled",
    "grad_checkpointing",
    "dataset",
    "num_classes",
    "seed",
    "round",
    "machine",
    "train_length",
)
"""Columns in which two rows of one model and size can differ; tables show those that vary."""

_FLAGS = {"fused": "fused", "compiled": "compiled", "grad_checkpointing": "gradient checkpointing"}
_WORDS = {
    "batch_size": "batch {}",
    "threads": "{} threads",
    "num_classes": "{} classes",
    "seed": "seed {}",
    "round": "round {}",
}


def varying(rows: Sequence[Row]) -> list[str]:
    """The conditions that differ among the rows; the round only where it alone tells two rows apart."""
    names = _differing(rows)
    others = [(row.cell.model, row.cell.resolution, *_conditions(row, without="round")) for row in rows]
    return names if len(set(others)) < len(rows) else [name for name in names if name != "round"]


def _differing(rows: Sequence[Row]) -> list[str]:
    return [name for name in CONDITIONS if len({BY_NAME[name].value(row) for row in rows}) > 1]


def in_words(name: str, value: Value) -> str | None:
    """A condition for people: "batch 8", "2 threads"; None where there is nothing to say."""
    if name in _FLAGS:
        return _FLAGS[name] if value == "yes" else None
    if value is None or (name in ("seed", "round") and value == 0):
        return None
    if name == "train_length":
        return f"hours for {value} (images x epochs) on one device"
    if name == "threads" and value == 1:
        return "1 thread"
    return _WORDS.get(name, "{}").format(units.plain(value))


def shared_conditions(rows: Sequence[Row]) -> str:
    """What all rows have in common, e.g. "batch 1, infer, fp32, cpu, 2 threads"."""
    differing = _differing(rows)
    names = [name for name in CONDITIONS if name not in differing]
    words = [in_words(name, BY_NAME[name].value(rows[0])) for name in names] if rows else []
    return ", ".join(word for word in words if word)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """By resolution, then model, then conditions."""
    return sorted(rows, key=lambda row: (row.cell.resolution, row.cell.model, _conditions(row)))


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Label -> rows by size; rounds of a repeated sweep are one series.  Labels name what varies."""
    names = [name for name in varying(rows) if name != "round"]
    grouped: dict[str, list[Row]] = {}
    for row in in_order(rows):
        words = [_label(name, row) for name in names]
        label = ", ".join([row.cell.model, *(word for word in words if word)])
        grouped.setdefault(label, []).append(row)
    return dict(sorted(grouped.items()))


def _label(name: str, row: Row) -> str | None:
    """A condition in a series' name; a batch that was searched for may differ from size to size."""
    searched = name == "batch_size" and row.cell.batch_auto
    return "best batch" if searched else in_words(name, BY_NAME[name].value(row))


def by_size(rows: Sequence[Row], column: str) -> dict[int, float]:
    """Resolution -> median over the rows with a positive value that counts; other sizes are left out."""
    values: dict[int, list[float]] = {}
    for row in rows:
        value = number(row, column)
        if value is not None and value > 0:
            values.setdefault(row.cell.resolution, []).append(value)
    return {size: median(found) or 0.0 for size, found in sorted(values.items())}


def number(row: Row, column: str) -> float | None:
    """A value that may be compared: None unless the row is ok, except for counts, which do not run."""
    value = BY_NAME[column].value(row)
    if isinstance(value, str) or value is None:
        return None
    return float(value) if row.status == "ok" or BY_NAME[column].metric == "count" else None


def names(rows: Sequence[Row]) -> dict[str, str]:
    """Key of a row -> the name of its series."""
    return {row.key: label for label, of_one in series(rows).items() for row in of_one}


def growth(rows: Sequence[Row], column: str) -> Growth | None:
    """Exponent with which a column grows with the resolution, over the rows of one series."""
    values = by_size(rows, column)
    return growth_exponent(list(values), list(values.values()))


def _conditions(row: Row, without: str = "") -> tuple[str, ...]:
    """Numbers padded, so that batch 8 comes before batch 16."""
    return tuple(str(BY_NAME[name].value(row)).rjust(12) for name in CONDITIONS if name != without)
