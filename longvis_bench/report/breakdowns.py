"""Memory breakdown (`longvis report --memory`) and timing breakdown (`--overhead`) of each cell.

The columns are those of `columns.py`; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME, MEMORY_PARTS
from longvis_bench.report.grouping import Grouped, in_order, in_words
from longvis_bench.report.phase_table import phase_table
from longvis_bench.report.plain_table import plain_table
from longvis_bench.stats import median

PEAK, TENSORS = "peak_memory_bytes", "tensor_peak_bytes"
_BROKEN = {
    "activations": "activa-\ntions",
    "gradients": "gradi-\nents",
    "optimizer": "opti-\nmizer",
    "workspace": "work-\nspace",
}
"""Shorter headings for columns of narrow numbers."""
_MIB = 1 << 20
SPENT = ("start_s", "import_s", "other_s", "teardown_s", "overhead_s", "build_s", "measure_s")


def _number(row: Row, name: str) -> float | None:
    value = BY_NAME[name].value(row)
    assert value is None or isinstance(value, int | float)
    return value


# Memory -------------------------------------------------------------------------------------------------


NO_MEMORY = "No row of these runs has a memory measurement."


def with_memory(rows: Sequence[Row]) -> list[Row]:
    """The rows of which some memory is known, in the order of tables."""
    return [row for row in in_order(rows) if any(_number(row, name) is not None for name in (PEAK, TENSORS))]


def memory_columns(rows: Sequence[Row]) -> list[str]:
    """The peak, the parts that sum to it, and the peak of the tensors: those that are not 0 in every row."""
    return [name for name in (PEAK, *MEMORY_PARTS, TENSORS) if any(_number(row, name) for row in rows)]


def memory_table(rows: Sequence[Row]) -> RenderableType:
    """One line per cell: the peak, the parts that sum to it, and the peak of the tensors, in MiB."""
    known = with_memory(rows)
    if not known:
        return Text(NO_MEMORY)
    shown = memory_columns(known)
    conditions = Grouped(known).varying
    table = plain_table(["model"], ["px"])
    if conditions:
        table.add_column("measured", overflow="fold")
    for name in shown:
        heading = part_name(name)
        table.add_column(_BROKEN.get(heading, heading), justify="right", no_wrap=True)
    for row in known:
        words = (in_words(name, BY_NAME[name].value(row)) for name in conditions)
        measured = [", ".join(word for word in words if word)] if conditions else []
        values = [_mib(_number(row, name)) for name in shown]
        table.add_row(Text(row.cell.model), str(row.cell.resolution), *map(Text, measured), *values)
    return Group(table, Text(), *(Text(line) for line in _memory_legend(shown)))


def part_name(name: str) -> str:
    """Short name of a column of memory: `peak`, `tensors`, or the part."""
    return {PEAK: "peak", TENSORS: "tensors"}.get(name) or name.removesuffix("_memory_bytes")


def _mib(size: float | None) -> str:
    return units.UNKNOWN if size is None else f"{size / _MIB:.1f}"


def _memory_legend(shown: Sequence[str]) -> list[str]:
    meanings = [
        f"{part_name(name)}: {BY_NAME[name].meaning.removeprefix('Part of the peak: ')}" for name in shown
    ]
    nothing = [part_name(name) for name in MEMORY_PARTS if name not in shown]
    lines = ["In MiB. The columns between peak and tensors sum to the peak."]
    return lines + meanings + ([f"Zero in every cell: {', '.join(nothing)}."] if nothing else [])


# Time ---------------------------------------------------------------------------------------------------


def overhead_table(rows: Sequence[Row]) -> RenderableType:
    """Seconds by phase over all cells; then one line per cell, in the order of tables, medians and sums."""
    timed = [row for row in in_order(rows) if row.overhead_s]
    if not timed:
        return Text("No row of these runs has a timing breakdown.")
    table = plain_table(["model"], ["size", *(name.removesuffix("_s") for name in SPENT)])
    for row in timed:
        values = [_seconds(_number(row, name)) for name in SPENT]
        table.add_row(Text(row.cell.model), str(row.cell.resolution), *values, end_section=row is timed[-1])
    columns = [[s for row in timed if (s := _number(row, name)) is not None] for name in SPENT]
    table.add_row("median", "", *(_seconds(median(column)) for column in columns))
    table.add_row("sum", "", *(_seconds(sum(column) if column else None) for column in columns))
    legend = (Text(line) for line in _overhead_legend(timed))
    return Group(phase_table(timed), Text(), table, Text(), *legend)


def _seconds(seconds: float | None) -> str:
    return units.UNKNOWN if seconds is None else units.significant(seconds)


def _overhead_legend(timed: Sequence[Row]) -> list[str]:
    spent = sum(_number(row, "overhead_s") or 0.0 for row in timed)
    whole = sum(sum(row.overhead_s.values()) for row in timed)
    share = units.percent(spent / whole) if whole else units.UNKNOWN
    lines = [f"In seconds; overhead = start + import + other + teardown: {share} of the time of these cells."]
    return lines + [f"{name.removesuffix('_s')}: {BY_NAME[name].meaning}" for name in SPENT]
