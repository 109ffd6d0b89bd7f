"""Rows -> a frame, CSV, Markdown and a terminal table, all by the declared columns.

Failures are rows of every table.  Below a table stand, numbered and each only once, the reasons of statuses
that are not ok, the reasons of values that are not there, and the rows' warnings.  Texts from rows are
hostile until cleaned and escaped: they hold whatever a model or a driver said.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longvis_bench import units
from longvis_bench.records import ACCEPTED, Row
from longvis_bench.report.columns import BY_NAME, COLUMNS, Column, Value, null_reason
from longvis_bench.report.footnotes import Footnotes
from longvis_bench.report.grouping import growth, in_order, series, shared_conditions, varying
from longvis_bench.report.repeats import once, with_rounds
from longvis_bench.row_warnings import KINDS
from longvis_bench.text import clean, spreadsheet_safe

_DTYPES = {"text": "string", "int": "Int64", "float": "Float64"}
_GAP = 2


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line a row in the order given, every declared column always, <NA> for what is not known."""
    rows = with_rounds(rows)
    values = {column.name: [column.value(row) for row in rows] for column in COLUMNS}
    return pd.DataFrame(values, dtype="object").astype({c.name: _DTYPES[c.kind] for c in COLUMNS})


def summary_csv(rows: Sequence[Row]) -> str:
    """All columns at full precision; empty for what is not known; safe to open in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in COLUMNS])
    for row in in_order(with_rounds(rows)):
        writer.writerow([_csv_cell(column.value(row)) for column in COLUMNS])
    return text.getvalue()


def _csv_cell(value: Value) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    return spreadsheet_safe(value)


# What both readable tables are made of ------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A column of a readable table."""

    column: str
    heading: str
    interval: tuple[str, str] | None = None
    """Columns of the low and the high end."""
    replaces: str | None = None
    """Heading of the narrower form that this one takes the place of, where there is room."""

    @property
    def declared(self) -> Column:
        """The column it shows."""
        return BY_NAME[self.column]


MODEL = Shown("model", "model")
SIZE = Shown("resolution", "size")
STATUS = Shown("status", "status")
NUMBERS = (
    Shown("throughput_img_s", "img/s"),
    Shown("peak_memory_bytes", "memory"),
    Shown("macs", "MACs"),
    Shown("top1", "top-1"),
    Shown("latency_median_s", "latency"),
    Shown("params", "params"),
    Shown("top1", "top-1 [95 %]", ("top1_low", "top1_high"), "top-1"),
    Shown("latency_median_s", "latency [95 %]", ("latency_low_s", "latency_high_s"), "latency"),
    Shown("round_spread", "between rounds"),
    Shown("train_hours", "training"),
    Shown("verdict", "verdict"),
    Shown("samples", "samples"),
    Shown("scan_flops", "scan FLOPs"),
    Shown("mfu", "MFU"),
    Shown("top5", "top-5"),
    Shown("latency_p90_s", "p90"),
    Shown("padding_ratio", "padding"),
    Shown("flops_coverage", "FLOP coverage"),
    Shown("validity", "validity"),
)
"""Most wanted first: a narrow terminal shows as many as fit."""
ACCURACY = (
    Shown("top1", "top-1"),
    Shown("images", "images"),
    Shown("top1", "top-1 [95 %]", ("top1_low", "top1_high"), "top-1"),
    Shown("top5", "top-5"),
    Shown("top5", "top-5 [95 %]", ("top5_low", "top5_high"), "top-5"),
    Shown("trained_resolution", "trained at"),
    Shown("weights", "weights"),
)
"""The same for evaluations."""
ORDER = (
    "top-1",
    "top-1 [95 %]",
    "top-5",
    "top-5 [95 %]",
    "images",
    "trained at",
    "weights",
    "img/s",
    "latency",
    "latency [95 %]",
    "between rounds",
    "p90",
    "training",
    "verdict",
    "samples",
    "memory",
    "MACs",
    "scan FLOPs",
    "params",
    "MFU",
    "padding",
    "FLOP coverage",
    "validity",
)
"""From left to right."""
SUMMARY = (
    "top-1 [95 %]",
    "img/s",
    "latency [95 %]",
    "between rounds",
    "training",
    "verdict",
    "memory",
    "MACs",
    "scan FLOPs",
    "params",
    "MFU",
)
OPTIONAL = {
    *("training", "between rounds", "scan FLOPs", "MFU", "p90", "padding", "FLOP coverage"),
    *("top-5", "top-5 [95 %]", "images", "trained at", "weights"),
}
"""Shown only where some row has a value that says something."""


@dataclass(frozen=True)
class Entry:
    """One cell of a readable table."""

    text: str
    marks: tuple[int, ...] = ()


def _entries(shown: Shown, rows: Sequence[Row], columns: Sequence[Shown], notes: Footnotes) -> list[Entry]:
    texts = _texts(shown, rows)
    return [Entry(text, _marks(shown, row, columns, notes)) for text, row in zip(texts, rows, strict=True)]


def _scale(shown: Shown, rows: Sequence[Row]) -> units.Scale | None:
    """The unit that the whole column can share, if any."""
    values = [shown.declared.value(row) for row in rows]
    known = [float(value) for value in values if isinstance(value, int | float)]
    return units.shared_scale(known, shown.declared.scales) if shown.declared.scales else None


def _texts(shown: Shown, rows: Sequence[Row]) -> list[str]:
    """The column's cells: numbers in its shared unit, else each with its own."""
    scale = _scale(shown, rows)
    return [_text(shown, row, scale) for row in rows]


def _text(shown: Shown, row: Row, scale: units.Scale | None) -> str:
    value = _in_scale(shown.declared, row, scale)
    if shown.interval is None or value == units.UNKNOWN:
        return value
    low, high = (_in_scale(BY_NAME[name], row, scale) for name in shown.interval)
    return value if units.UNKNOWN in (low, high) else f"{value} [{low}, {high}]"


def _in_scale(column: Column, row: Row, scale: units.Scale | None) -> str:
    value = column.value(row)
    if value is None or scale is None or isinstance(value, str):
        return clean(column.format(value))
    if column.scales == units.SHARES:
        return units.percent(value).removesuffix(" %")
    return units.significant(value / scale.factor)


def _marks(shown: Shown, row: Row, columns: Sequence[Shown], notes: Footnotes) -> tuple[int, ...]:
    """Numbers of the footnotes that belong to one cell."""
    marks = []
    if shown.column == "status" and row.status != "ok" and row.reason:
        marks.append(notes.mark(row.status, row.reason, row))
    if _needs_reason(shown, row):
        marks.append(
            notes.mark(f"no {shown.heading.partition(' [')[0]}", null_reason(shown.declared, row) or "", row)
        )
    there = {other.column for other in columns}
    for note in row.notes:
        kind = KINDS.get(note.code)
        place = kind.column if kind and kind.column in there else "model"
        if place == shown.column:
            marks.append(notes.mark(note.code.replace("_", " "), note.message, row, note.advice, key=""))
    return tuple(dict.fromkeys(marks))


def _needs_reason(shown: Shown, row: Row) -> bool:
    """A column asked for without a value, unless the status says why already or the column was a bonus."""
    column = shown.declared
    if column.metric not in row.cell.metrics or shown.heading in OPTIONAL or column.value(row) is not None:
        return False
    return row.status == "ok" or column.name in row.null_reasons or column.metric in row.null_reasons


def _unit(shown: Shown, rows: Sequence[Row]) -> str:
    if shown.column == "resolution":
        return "px"
    scale = _scale(shown, rows)
    return scale.unit if scale else ""


def _says_something(shown: Shown, rows: Sequence[Row]) -> bool:
    if shown.heading not in OPTIONAL:
        return True
    dull = {"scan_flops": 0, "flops_coverage": 1.0, "padding_ratio": 0.0}.get(shown.column)
    return any(shown.declared.value(row) not in (None, dull) for row in rows)


def _condition_columns(rows: Sequence[Row]) -> list[Shown]:
    return [Shown(name, name.removesuffix("_size").replace("_", " ")) for name in varying(rows)]


def _legend(columns: Sequence[Shown], rows: Sequence[Row]) -> str:
    """Whose intervals they are and how they were had; which round is shown, where there are several."""
    methods = {
        "latency_median_s": "of the median by order statistics",
        "top1": "of top-1 by Wilson's score",
        "top5": "of top-5 by the same",
    }
    there = [methods[shown.column] for shown in columns if shown.interval]
    lines = [f"[95 %]: interval {' and '.join(there)}."] if there else []
    if any(row.rounds_s for row in rows):
        lines.append(
            "A cell of several rounds is shown once, by the round of middle latency; "
            "between rounds: (largest - smallest) / median of their latencies."
        )
    return " ".join(lines)


def _tally(rows: Sequence[Row]) -> str:
    """How many cells there are and how they ended: 21 cells: 19 ok, 1 oom, 1 timeout."""
    counts = Counter(row.status for row in rows)
    parts = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    return f"{units.several(len(rows), 'cell')}: {parts}"


# The terminal -------------------------------------------------------------------------------------------


def terminal_table(rows: Sequence[Row], width: int, numbers: Sequence[Shown] = NUMBERS) -> RenderableType:
    """A table for `width` columns: the most wanted columns that fit, never cut off, with its footnotes."""
    if not rows:
        return Text("No rows yet.")
    rows = in_order(once(with_rounds(rows)))
    columns = _that_fit(rows, width, numbers)
    notes = Footnotes()
    entries = [_entries(shown, rows, columns, notes) for shown in columns]
    room = [_marks_width(column) for column in entries]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for shown in columns:
        _add_column(table, shown, rows, width)
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1].cell.resolution != row.cell.resolution
        cells = [
            _rich(shown, column[index], row, space)
            for shown, column, space in zip(columns, entries, room, strict=True)
        ]
        table.add_row(*cells, end_section=last)
    heading = Text(f"{_tally(rows)}  ({clean(shared_conditions(rows))})")
    legend = [Text(), Text(_legend(columns, rows))] if _legend(columns, rows) else []
    return Group(heading, Text(), table, *_rich_lines(notes), *legend)


def _that_fit(rows: Sequence[Row], width: int, wanted: Sequence[Shown]) -> list[Shown]:
    """Model, conditions, size and status always; then numbers, most wanted first, while they fit."""
    chosen = [MODEL, *_condition_columns(rows), SIZE, STATUS]
    fixed = len(chosen)
    for shown in wanted:
        if not _says_something(shown, rows):
            continue
        tried = [other for other in chosen if other.heading != shown.replaces] + [shown]
        if _width(tried, rows, width) <= width:
            chosen = tried
    numbers = sorted(chosen[fixed:], key=lambda shown: ORDER.index(shown.heading))
    return [*chosen[:fixed], *numbers]


def _width(columns: Sequence[Shown], rows: Sequence[Row], width: int) -> int:
    """What the columns take, footnote marks and gaps included."""
    notes, total = Footnotes(), 0
    for shown in columns:
        entries = _entries(shown, rows, columns, notes)
        widest = max(
            max(cell_len(entry.text) for entry in entries) + _marks_width(entries),
            _heading_width(shown, rows),
        )
        total += min(widest, _model_width(width)) if shown is MODEL else widest
    return total + _GAP * (len(columns) - 1)


def _heading_width(shown: Shown, rows: Sequence[Row]) -> int:
    return max(map(cell_len, _heading(shown, rows)))


def _marks_width(entries: Sequence[Entry]) -> int:
    """Room for the marks of a column, kept free in cells without, so that numbers stay below each other."""
    return max(len(_superscript(entry.marks)) for entry in entries)


def _model_width(width: int) -> int:
    """Long model names are folded at about a third of the terminal."""
    return max(14, width // 3)


def _heading(shown: Shown, rows: Sequence[Row]) -> list[str]:
    unit = _unit(shown, rows)
    return [shown.heading, unit] if unit else [shown.heading]


def _add_column(table: Table, shown: Shown, rows: Sequence[Row], width: int) -> None:
    heading = Text("\n".join(_heading(shown, rows)))
    if shown is MODEL:
        table.add_column(heading, overflow="fold", max_width=_model_width(width))
    else:
        table.add_column(heading, justify="left" if shown.declared.kind == "text" else "right", no_wrap=True)


def _rich(shown: Shown, entry: Entry, row: Row, room: int) -> Text:
    style = ""
    if shown is STATUS and row.status != "ok":
        style = "yellow" if row.status in ACCEPTED else "bold red"
    marks = _superscript(entry.marks)
    return Text(entry.text, style=style).append(
        marks if shown.declared.kind == "text" else marks.ljust(room), "cyan"
    )


def _rich_lines(notes: Footnotes) -> list[RenderableType]:
    if not notes.lines:
        return []
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right", no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    for number, line in enumerate(notes.lines, 1):
        grid.add_row(_superscript((number,)), Text(line))
    return [Text(), grid]


def _superscript(marks: Sequence[int]) -> str:
    digits = str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹·")
    return ",".join(map(str, marks)).translate(digits)


# Markdown -----------------------------------------------------------------------------------------------


def summary_markdown(rows: Sequence[Row], compared: Sequence[str] = ()) -> str:
    """The main columns, a table for each resolution, growth with the resolution, and the footnotes.

    Arguments:
        rows: of one or several runs.
        compared: what `comparing.sentences` says of their accuracies.
    """
    if not rows:
        return "# Summary\n\nNo rows yet.\n"
    every, rows = rows, in_order(once(with_rounds(rows)))
    lines = ["# Summary", "", f"{_tally(rows)}.", f"All: {escape(shared_conditions(rows))}.", ""]
    wanted = [shown for name in SUMMARY for shown in NUMBERS if shown.heading == name]
    columns = [MODEL, *_condition_columns(rows), STATUS, *(s for s in wanted if _says_something(s, rows))]
    lines += [legend, ""] if (legend := _legend(columns, rows)) else []
    notes = Footnotes()
    for size in sorted({row.cell.resolution for row in rows}):
        lines += [f"## {size} px", "", *_markdown_table(columns, rows, size, notes), ""]
    lines += _growth_table(every)
    if compared:
        lines += ["## Accuracies compared", ""]
        lines += ["McNemar's exact test on the same images, two-sided, each pair on its own.", ""]
        lines += [*(f"- {escape(line)}" for line in compared), ""]
    if notes.lines:
        lines += ["## Notes", ""]
        lines += [f"{number}. {escape(line)}" for number, line in enumerate(notes.lines, 1)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_table(columns: Sequence[Shown], rows: Sequence[Row], size: int, notes: Footnotes) -> list[str]:
    """The rows of one size, in units shared with all other sizes."""
    headings = [" ".join([s.heading, *(f"({u})" for u in [_unit(s, rows)] if u)]) for s in columns]
    texts = [_texts(shown, rows) for shown in columns]
    lines = [_bar(headings), _bar(["---" if s.declared.kind == "text" else "---:" for s in columns])]
    for index, row in enumerate(rows):
        if row.cell.resolution == size:
            marks = [_marks(shown, row, columns, notes) for shown in columns]
            lines.append(_bar([escape(t[index]) + _sup(m) for t, m in zip(texts, marks, strict=True)]))
    return lines


def _growth_table(rows: Sequence[Row]) -> list[str]:
    """Exponents of latency, memory and MACs over the resolution, for models with two sizes and more."""
    names = {"latency": "latency_median_s", "memory": "peak_memory_bytes", "MACs": "macs"}
    found = {label: [growth(one, name) for name in names.values()] for label, one in series(rows).items()}
    lines = [
        _bar([escape(clean(label)), *(f"{g.exponent:.2f}" if g else units.UNKNOWN for g in growths)])
        for label, growths in found.items()
        if any(growths)
    ]
    if not lines:
        return []
    intro = "Exponent n of value = a x size^n, by least squares over the sizes that ran."
    header = [_bar(["model", *names]), _bar(["---", *("---:" for _ in names)])]
    return ["## Growth with the resolution", "", intro, "", *header, *lines, ""]


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _sup(marks: Sequence[int]) -> str:
    return f" <sup>{','.join(map(str, marks))}</sup>" if marks else ""


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~$#])", r"\\\1", text)
    text = re.sub(r"\](?=[(\[:])", r"\]", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
