"""Rows -> a frame, CSV, Markdown and a terminal table, all by the declared columns.

Failures are rows of every table.  Below a table stand, numbered and each only once, the reasons of statuses
that are not ok, the reasons of values that are not there, and the rows' warnings.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from longvis_bench import units
from longvis_bench.records import ACCEPTED, Row
from longvis_bench.report.best import best_lines
from longvis_bench.report.columns import BY_NAME, COLUMNS, SHORT, Value
from longvis_bench.report.footnotes import Footnotes
from longvis_bench.report.grouping import RANKED_BY, Grouped, grouped, number
from longvis_bench.report.plain_table import plain_table
from longvis_bench.report.repeats import with_repeats
from longvis_bench.report.shown import (
    ACCURACY as ACCURACY,
)
from longvis_bench.report.shown import (
    MODEL,
    NUMBERS,
    ORDER,
    SIZE,
    STATUS,
    SUMMARY,
    Body,
    Marks,
    Shown,
    legend,
    tally,
)
from longvis_bench.resolution import Resolution
from longvis_bench.text import clean, in_ascii, spreadsheet_safe

MOST_ROWS = 1000
"""Largest number of rows of a table in a terminal; of more rows the fastest of each size are shown."""
_DTYPES = {"text": "string", "int": "Int64", "float": "Float64"}
_GAP = 2


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row in the order given, every declared column always, <NA> for what is not known."""
    rows = with_repeats(rows)
    values = {column.name: [column.value(row) for row in rows] for column in COLUMNS}
    return pd.DataFrame(values, dtype="object").astype({c.name: _DTYPES[c.kind] for c in COLUMNS})


def summary_csv(rows: Sequence[Row] | Grouped, names: Sequence[str] = tuple(BY_NAME)) -> str:
    """Columns at full precision; empty for what is not known; safe to open in a spreadsheet.

    Arguments:
        rows: rows of one or several runs; every repeat of a cell is a line.
        names: of the columns, by default all.
    """
    every, text = grouped(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    columns = [[_csv_cell(value) for value in every.values(name)] for name in names]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


_safe = lru_cache(maxsize=1 << 12)(spreadsheet_safe)


def _csv_cell(value: Value) -> str:
    if value is None:
        return ""
    return _safe(value) if isinstance(value, str) else repr(value)


def short_csv(rows: Sequence[Row] | Grouped) -> str:
    """The columns that the readable tables show, with units and precision as in `summary_csv`."""
    return summary_csv(rows, SHORT)


# The terminal -------------------------------------------------------------------------------------------


class _Terminal:
    """A table that adapts to the console's width and to consoles that show ASCII only."""

    def __init__(self, rows: Grouped, width: int, numbers: Sequence[Shown]) -> None:
        self._rows, self._width, self._numbers = rows, width, numbers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        writing, body = _Writing(options.ascii_only), Body(_fastest(self._rows))
        columns = _that_fit(body, self._width, self._numbers, writing)
        marks, notes = body.marks(columns)
        every = self._rows.rows
        yield writing.text(f"{tally(every)}  ({clean(self._rows.shared_conditions)})")
        yield Text()
        yield _table(columns, body, marks, self._width, writing)
        yield from _numbered(notes, writing)
        left_out = len(every) - len(body.rows)
        hidden = (
            f"{units.several(left_out, 'row is', 'rows are')} not shown; summary.csv and summary.md hold all."
        )
        below = [hidden] if left_out else []
        below += [*notes.others, *best_lines(self._rows), legend(columns, body.rows)]
        if any(below):
            yield Text()
            yield from (writing.text(line) for line in below if line)


def terminal_table(
    rows: Sequence[Row] | Grouped, width: int, numbers: Sequence[Shown] = NUMBERS
) -> RenderableType:
    """A table for `width` characters: the most important columns that fit, untruncated, and the footnotes."""
    shown = grouped(rows).shown
    return _Terminal(shown, width, numbers) if shown.rows else Text("No rows yet.")


def _fastest(rows: Grouped) -> Grouped:
    """All rows, or the fastest of each size if there are more than `MOST_ROWS`.

    With more sizes than that, the fastest row of each of the smallest sizes.
    """
    if len(rows.rows) <= MOST_ROWS:
        return rows
    by_size: dict[Resolution, list[Row]] = {}
    for row in rows.rows:
        by_size.setdefault(row.cell.resolution, []).append(row)
    ranked = {
        size: sorted(found, key=lambda row: -(number(row, RANKED_BY) or 0.0))
        for size, found in by_size.items()
    }
    each = max(1, MOST_ROWS // len(ranked))
    return Grouped([row for found in ranked.values() for row in found[:each]][:MOST_ROWS])


def _table(columns: Sequence[Shown], body: Body, marks: Marks, width: int, writing: _Writing) -> Table:
    room = {shown: writing.room(marks.get(shown, {})) for shown in columns}
    table = plain_table()
    for shown in columns:
        _add_column(table, shown, body, width, writing)
    sizes = [row.cell.resolution for row in body.rows]
    for index in range(len(body.rows)):
        cells = (writing.cell(shown, body, index, marks, room[shown]) for shown in columns)
        table.add_row(*cells, end_section=sizes[index : index + 1] != sizes[index + 1 : index + 2])
    return table


class _Writing:
    """Form of texts and marks on a console: superscripts, or `[1]` if it shows ASCII only."""

    def __init__(self, ascii_only: bool) -> None:
        self._ascii = ascii_only

    def plain(self, text: str) -> str:
        """A text that the console can show."""
        return in_ascii(text) if self._ascii else text

    def text(self, text: str) -> Text:
        """The same as a rich `Text`, without markup."""
        return Text(self.plain(text))

    def marks(self, numbers: Sequence[int]) -> str:
        """Numbers of footnotes."""
        joined = ",".join(map(str, numbers))
        if self._ascii:
            return f"[{joined}]" if joined else ""
        return joined.translate(str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹·"))

    def room(self, of_column: dict[int, tuple[int, ...]]) -> int:
        """Width of a column's marks, kept free in cells without, so that numbers stay below each other."""
        return max((len(self.marks(numbers)) for numbers in of_column.values()), default=0)

    def cell(self, shown: Shown, body: Body, index: int, marks: Marks, room: int) -> Text:
        """One cell with its marks."""
        row, style = body.rows[index], ""
        if shown is STATUS and row.status != "ok":
            style = "yellow" if row.status in ACCEPTED else "bold red"
        after = self.marks(marks.get(shown, {}).get(index, ()))
        text = Text(self.plain(body.texts(shown)[index]), style=style)
        return text.append(after if shown.declared.kind == "text" else after.ljust(room), "cyan")


def _that_fit(body: Body, width: int, wanted: Sequence[Shown], writing: _Writing) -> list[Shown]:
    """Model, conditions, size and status, then as many numbers as fit, the most important first."""
    chosen = [MODEL, *body.conditions, SIZE, STATUS]
    fixed = len(chosen)
    for shown in wanted:
        if not body.says_something(shown):
            continue
        tried = [other for other in chosen if other.heading != shown.replaces] + [shown]
        if _width(tried, body, width, writing) <= width:
            chosen = tried
    numbers = sorted(chosen[fixed:], key=lambda shown: ORDER.index(shown.heading))
    return [*chosen[:fixed], *numbers]


def _width(columns: Sequence[Shown], body: Body, width: int, writing: _Writing) -> int:
    """Width of the columns, including footnote marks and gaps."""
    marks, _ = body.marks(columns)
    total = 0
    for shown in columns:
        widest = max(
            body.width(shown) + writing.room(marks.get(shown, {})), *map(cell_len, body.heading(shown))
        )
        total += min(widest, _model_width(width)) if shown is MODEL else widest
    return total + _GAP * (len(columns) - 1)


def _model_width(width: int) -> int:
    """Long model names are folded at about a third of the terminal."""
    return max(14, width // 3)


def _add_column(table: Table, shown: Shown, body: Body, width: int, writing: _Writing) -> None:
    heading = writing.text("\n".join(body.heading(shown)))
    if shown is MODEL:
        table.add_column(heading, overflow="fold", max_width=_model_width(width))
    else:
        table.add_column(heading, justify="left" if shown.declared.kind == "text" else "right", no_wrap=True)


def _numbered(notes: Footnotes, writing: _Writing) -> list[RenderableType]:
    if not notes.lines:
        return []
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right", no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    for mark, line in enumerate(notes.lines, 1):
        grid.add_row(Text(writing.marks((mark,))), writing.text(line))
    return [Text(), grid]


# Markdown -----------------------------------------------------------------------------------------------


def summary_markdown(rows: Sequence[Row] | Grouped, compared: Sequence[str] = ()) -> str:
    """The main columns, a table for each resolution, growth with the resolution, and the footnotes.

    Arguments:
        rows: of one or several runs.
        compared: what `significance.sentences` says of their accuracies.
    """
    every = grouped(rows)
    if not every.rows:
        return "# Summary\n\nNo rows yet.\n"
    body = Body(every)
    shared = escape(body.shown.shared_conditions)
    lines = ["# Summary", "", f"{tally(body.rows)}.", f"All: {shared}.", ""]
    wanted = [shown for name in SUMMARY for shown in NUMBERS if shown.heading == name]
    columns = [MODEL, *body.conditions, STATUS, *(s for s in wanted if body.says_something(s))]
    lines += [said, ""] if (said := legend(columns, body.rows)) else []
    marks, notes = body.marks(columns, by_row=True)
    for size, table in _markdown_tables(columns, body, marks).items():
        lines += [f"## {size} px", "", *table, ""]
    lines += _listed("## The best at each size", best_lines(body.shown))
    lines += _growth_table(every)
    if compared:
        intro = "McNemar's exact test on the same images, two-sided, each pair on its own."
        lines += ["## Accuracies compared", "", intro, "", *(f"- {escape(line)}" for line in compared), ""]
    if notes.lines or notes.others:
        lines += ["## Notes", ""]
        lines += [f"{number}. {escape(line)}" for number, line in enumerate(notes.lines, 1)]
        lines += ["", *(f"- {escape(line)}" for line in notes.others)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _listed(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, "", *(f"- {escape(line)}" for line in lines), ""] if lines else []


def _markdown_tables(columns: Sequence[Shown], body: Body, marks: Marks) -> dict[Resolution, list[str]]:
    """Size -> the lines of its table, in units shared with all other sizes."""
    headings = [" (".join(body.heading(shown)) + ")" * (len(body.heading(shown)) - 1) for shown in columns]
    header = [_bar(headings), _bar(["---" if s.declared.kind == "text" else "---:" for s in columns])]
    tables: dict[Resolution, list[str]] = {size: list(header) for size in body.shown.sizes}
    texts = [(body.texts(shown), marks.get(shown, {})) for shown in columns]
    for index, row in enumerate(body.rows):
        cells = [escape(column[index]) + _sup(found.get(index, ())) for column, found in texts]
        tables[row.cell.resolution].append(_bar(cells))
    return tables


def _growth_table(rows: Grouped) -> list[str]:
    """Exponents of latency, memory and MACs over the resolution, for models with two sizes and more."""
    names = {"latency": "latency_median_s", "memory": "peak_memory_bytes", "MACs": "macs"}
    found = {label: [rows.growth(label, name) for name in names.values()] for label in rows.series}
    lines = [
        _bar([escape(clean(label)), *(f"{g.exponent:.2f}" if g else units.UNKNOWN for g in growths)])
        for label, growths in found.items()
        if any(growths)
    ]
    if not lines:
        return []
    square = all(isinstance(size, int) for size in rows.sizes)
    size = "" if square else " The size of a rectangle is the square root of its pixels."
    intro = f"Exponent n of value = a x size^n, by least squares over the sizes that ran.{size}"
    header = [_bar(["model", *names]), _bar(["---", *("---:" for _ in names)])]
    return ["## Growth with the resolution", "", intro, "", *header, *lines, ""]


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _sup(marks: Sequence[int]) -> str:
    return f" <sup>{','.join(map(str, marks))}</sup>" if marks else ""


@lru_cache(maxsize=1 << 14)
def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~$#])", r"\\\1", text)
    text = re.sub(r"\](?=[(\[:])", r"\]", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
