"""Group rows into series: one model under the same conditions, over its sizes.

Tables and figures take names, order and growth from one `Grouped`, so that they agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME, COLUMNS, Value, reasons_text
from longvis_bench.report.repeats import once, with_repeats
from longvis_bench.resolution import Resolution, side
from longvis_bench.stats import Growth, growth_exponent, median

CONDITIONS = (
    "batch_size",
    "mode",
    "output",
    "dtype",
    "device",
    "threads",
    "world",
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

RANKED_BY = "throughput_img_s"
"""The column by which tables and figures rank speed."""
_FLAGS = {"fused": "fused", "compiled": "compiled", "grad_checkpointing": "gradient checkpointing"}
_WORDS = {
    "batch_size": "batch {}",
    "threads": "{} threads",
    "world": "{} devices together",
    "num_classes": "{} classes",
    "seed": "seed {}",
    "round": "round {}",
}


class Grouped:
    """Rows in order, with the properties of all rows that tables and figures need, each computed once.

    Arguments:
        rows: of one or several runs, in any order; failed ones too.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._conditions = {id(row): tuple(BY_NAME[name].value(row) for name in CONDITIONS) for row in rows}
        self.rows = sorted(rows, key=self._place)
        self._by_size: dict[tuple[str, str], dict[Resolution, float]] = {}
        self._values: dict[str, list[Value]] = {}
        self._numbers: dict[str, dict[int, float | None]] = {}

    def _place(self, row: Row) -> tuple[object, ...]:
        """The rows sorted by resolution, then model, then conditions; numbers in names sort as numbers."""
        conditions = (str(value).rjust(12) for value in self._conditions[id(row)])
        return row.cell.resolution, natural(row.cell.model), row.cell.model, *conditions

    @cached_property
    def repeated(self) -> list[Row]:
        """The rows, each with what its cell's other repeats say of it."""
        return with_repeats(self.rows)

    @cached_property
    def shown(self) -> Grouped:
        """Rows of readable tables: one repeat of each cell, and every failed repeat."""
        return Grouped(once(self.repeated))

    def values(self, column: str) -> list[Value]:
        """A column of all rows in order, as `repeated` completes them."""
        if column not in self._values:
            value = BY_NAME[column].value
            found = [value(row) for row in self.repeated] if value is not reasons_text else self._reasons()
            self._values[column] = found
        return self._values[column]

    def _reasons(self) -> list[Value]:
        """The column of reasons, by the columns without a value."""
        columns = {column.name: self.values(column.name) for column in COLUMNS if column.metric}
        return [
            reasons_text(row, {name for name, found in columns.items() if found[index] is None})
            for index, row in enumerate(self.repeated)
        ]

    @cached_property
    def sizes(self) -> list[Resolution]:
        """Resolutions, smallest first."""
        return sorted({row.cell.resolution for row in self.rows})

    @cached_property
    def _differing(self) -> list[str]:
        columns = zip(*self._conditions.values(), strict=True)
        return [name for name, values in zip(CONDITIONS, columns, strict=False) if _differ(name, set(values))]

    @cached_property
    def varying(self) -> list[str]:
        """The conditions that differ among the rows; the repeat only if no other one does."""
        turn = CONDITIONS.index("round")
        others = {
            (row.cell.model, row.cell.resolution, *found[:turn], *found[turn + 1 :])
            for row in self.rows
            for found in [self._conditions[id(row)]]
        }
        names = self._differing
        return names if len(others) < len(self.rows) else [name for name in names if name != "round"]

    @cached_property
    def shared_conditions(self) -> str:
        """Conditions that all rows share, e.g. "batch 1, infer, fp32, cpu, 2 threads"."""
        if not self.rows:
            return ""
        values = dict(zip(CONDITIONS, self._conditions[id(self.rows[0])], strict=True))
        words = [in_words(name, value) for name, value in values.items() if name not in self._differing]
        return ", ".join(word for word in words if word)

    @cached_property
    def series(self) -> dict[str, list[Row]]:
        """Label -> rows by size; all repeats of a cell are in one series.  Labels state what varies."""
        names = [name for name in self.varying if name != "round"]
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(called(row, names), []).append(row)
        return dict(sorted(found.items(), key=lambda item: (natural(item[0]), item[0])))

    @cached_property
    def names(self) -> dict[str, str]:
        """Key of a row -> the name of its series."""
        return {row.key: label for label, of_one in self.series.items() for row in of_one}

    def by_size(self, label: str, column: str) -> dict[Resolution, float]:
        """Resolution -> median over a series' rows with a positive value that counts; others are left out."""
        if (label, column) not in self._by_size:
            known = self.numbers(column)
            found: dict[Resolution, list[float]] = {}
            for row in self.series[label]:
                value = known[id(row)]
                if value is not None and value > 0:
                    found.setdefault(row.cell.resolution, []).append(value)
            medians = {size: median(values) or 0.0 for size, values in sorted(found.items())}
            self._by_size[label, column] = medians
        return self._by_size[label, column]

    def numbers(self, column: str) -> dict[int, float | None]:
        """Identity of a row -> `number` of a column, for all rows."""
        if column not in self._numbers:
            self._numbers[column] = {id(row): number(row, column) for row in self.rows}
        return self._numbers[column]

    def growth(self, label: str, column: str) -> Growth | None:
        """Exponent with which a column of a series grows with the resolution."""
        values = self.by_size(label, column)
        return growth_exponent([side(size) for size in values], list(values.values()))


def _differ(name: str, values: set[Value]) -> bool:
    """Whether a condition has several values; that maps have no classes is said by `output` already."""
    return len(values - {None} if name == "num_classes" else values) > 1


def grouped(rows: Sequence[Row] | Grouped) -> Grouped:
    """The rows as `Grouped`; a `Grouped` is returned unchanged."""
    return rows if isinstance(rows, Grouped) else Grouped(rows)


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts `w=12` before `w=100`: runs of digits count as numbers."""
    parts = re.findall(r"(\d+)|(\D+)", text)
    return tuple((0, int(digits), "") if digits else (1, 0, other) for digits, other in parts)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """By resolution, then model, then conditions."""
    return Grouped(rows).rows


def in_words(name: str, value: Value) -> str | None:
    """A condition in words: "batch 8", "2 threads"; None if it needs no mention."""
    if name in _FLAGS:
        return _FLAGS[name] if value == "yes" else None
    usual = {"seed": 0, "round": 0, "world": 1}
    if value in (None, "logits") or (name in usual and value == usual[name]):
        return None
    if name == "train_length":
        return f"hours for {value} (images x epochs) on one device"
    if name == "threads" and value == 1:
        return "1 thread"
    return _WORDS.get(name, "{}").format(units.plain(value))


def called(row: Row, conditions: Sequence[str]) -> str:
    """A row's model and some of its conditions: "vit-s, batch 8, bf16"."""
    words = (condition(name, row) for name in conditions)
    return ", ".join([row.cell.model, *(word for word in words if word)])


def condition(name: str, row: Row) -> str | None:
    """One condition of a row in words; a batch that was searched for may differ from size to size."""
    searched = name == "batch_size" and row.cell.batch_auto
    return "best batch" if searched else in_words(name, BY_NAME[name].value(row))


def is_disturbed(row: Row) -> bool:
    """Whether other load disturbed all processes that timed the cell; its latency is shown, not ranked."""
    return row.timing is not None and row.timing.verdict == "disturbed"


def number(row: Row, column: str) -> float | None:
    """A value for comparisons: None unless the row is ok; counts are valid for other rows, too."""
    value = BY_NAME[column].value(row)
    if isinstance(value, str) or value is None:
        return None
    return float(value) if row.status == "ok" or BY_NAME[column].metric == "count" else None
