"""What `longvis report --memory` shows: what every cell's peak is made of, beside that of its tensors alone.

The columns are those of `columns.py`; nothing is measured or derived here.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME, MEMORY_PARTS
from longvis_bench.report.grouping import in_order, in_words, varying

PEAK, TENSORS = "peak_memory_bytes", "tensor_peak_bytes"
_BROKEN = {
    "activations": "activa-\ntions",
    "gradients": "gradi-\nents",
    "optimizer": "opti-\nmizer",
    "workspace": "work-\nspace",
}
"""Headings far wider than their numbers."""
_MIB = 1 << 20


def memory_table(rows: Sequence[Row]) -> RenderableType:
    """A line a cell: the peak, the parts that sum to it, and the peak of the tensors; in MiB."""
    known = [row for row in in_order(rows) if _mib(row, PEAK) is not None or _mib(row, TENSORS) is not None]
    if not known:
        return Text("No cell of these runs knows its memory.")
    shown = [name for name in (PEAK, *MEMORY_PARTS, TENSORS) if any(_mib(row, name) for row in known)]
    conditions = varying(known)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    table.add_column("px", justify="right", no_wrap=True)
    if conditions:
        table.add_column("measured", overflow="fold")
    for name in shown:
        heading = _heading(name)
        table.add_column(_BROKEN.get(heading, heading), justify="right", no_wrap=True)
    for row in known:
        told = (in_words(name, BY_NAME[name].value(row)) for name in conditions)
        measured = [", ".join(word for word in told if word)] if conditions else []
        values = [_text(_mib(row, name)) for name in shown]
        table.add_row(Text(row.cell.model), str(row.cell.resolution), *map(Text, measured), *values)
    return Group(table, Text(), *(Text(line) for line in _legend(shown)))


def _heading(name: str) -> str:
    return {PEAK: "peak", TENSORS: "tensors"}.get(name) or name.removesuffix("_memory_bytes")


def _mib(row: Row, name: str) -> float | None:
    value = BY_NAME[name].value(row)
    assert value is None or isinstance(value, int | float)
    return None if value is None else value / _MIB


def _text(mib: float | None) -> str:
    return units.UNKNOWN if mib is None else f"{mib:.1f}"


def _legend(shown: Sequence[str]) -> list[str]:
    meanings = [
        f"{_heading(name)}: {BY_NAME[name].meaning.removeprefix('Part of the peak: ')}" for name in shown
    ]
    nothing = [_heading(name) for name in MEMORY_PARTS if name not in shown]
    lines = ["In MiB. The columns between peak and tensors sum to the peak."]
    return lines + meanings + ([f"Nothing in any cell: {', '.join(nothing)}."] if nothing else [])
