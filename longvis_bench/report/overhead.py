"""What `longvis report --overhead` shows: where the seconds of every cell went.

The columns are those of `columns.py`; this adds medians and sums, and tells the harness's own share.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import in_order
from longvis_bench.stats import median

SHOWN = ("start_s", "import_s", "other_s", "teardown_s", "overhead_s", "build_s", "measure_s")


def overhead_table(rows: Sequence[Row]) -> RenderableType:
    """A line a cell in the order they ran within a size, then medians and sums."""
    ran = [row for row in in_order(rows) if row.overhead_s]
    if not ran:
        return Text("No cell of these runs has booked its time.")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for name in ("size", *(name.removesuffix("_s") for name in SHOWN)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in ran:
        last = row is ran[-1]
        values = [_text(_seconds(row, name)) for name in SHOWN]
        table.add_row(Text(row.cell.model), str(row.cell.resolution), *values, end_section=last)
    columns = [[s for row in ran if (s := _seconds(row, name)) is not None] for name in SHOWN]
    table.add_row("median", "", *(_text(median(column)) for column in columns))
    table.add_row("sum", "", *(_text(sum(column) if column else None) for column in columns))
    return Group(table, Text(), *(Text(line) for line in _legend(ran)))


def _seconds(row: Row, name: str) -> float | None:
    value = BY_NAME[name].value(row)
    assert value is None or isinstance(value, int | float)
    return value


def _text(seconds: float | None) -> str:
    return units.UNKNOWN if seconds is None else units.significant(seconds)


def _legend(ran: Sequence[Row]) -> list[str]:
    spent = sum(_seconds(row, "overhead_s") or 0.0 for row in ran)
    own = sum(sum(row.overhead_s.values()) for row in ran)
    share = units.percent(spent / own) if own else units.UNKNOWN
    lines = [f"In seconds; overhead = start + import + other + teardown: {share} of the time of these cells."]
    return lines + [f"{name.removesuffix('_s')}: {BY_NAME[name].meaning}" for name in SHOWN]
