"""The whole table of a page: every row in its place, with what a script needs to sort and to filter them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from longvis_bench import units
from longvis_bench.records import ACCEPTED, Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.footnotes import Footnotes
from longvis_bench.report.html.markup import NOTHING, Markup, element, joined, scrolling, shown
from longvis_bench.report.shown import MODEL, NUMBERS, ORDER, SIZE, STATUS, Body, Marks, Shown

ALWAYS = ("mode", "dtype", "batch_size")
"""Conditions that can be switched wherever they vary; their controls come first."""
LABEL = "Every row of the table, failures included"


@dataclass(frozen=True)
class WholeTable:
    """The rows of a page as one table."""

    body: Body

    @cached_property
    def columns(self) -> list[Shown]:
        """Model, conditions, size and status, then every number that says something."""
        wide = {one.replaces for one in NUMBERS if one.replaces and self.body.says_something(one)}
        numbers = [one for one in NUMBERS if self.body.says_something(one) and one.heading not in wide]
        ordered = sorted(numbers, key=lambda one: ORDER.index(one.heading))
        return [MODEL, SIZE, *self.body.conditions, STATUS, *ordered]

    @cached_property
    def _noted(self) -> tuple[Marks, Footnotes]:
        return self.body.marks(self.columns, by_row=True)

    @property
    def notes(self) -> Footnotes:
        """Reasons and warnings below the table."""
        return self._noted[1]

    @cached_property
    def filters(self) -> list[Shown]:
        """Columns of few different words: size, status, and each condition that varies."""
        conditions = {one.column: one for one in self.body.conditions}
        first = [conditions.pop(name) for name in ALWAYS if name in conditions]
        found = [SIZE, *first, *conditions.values(), STATUS]
        return [one for one in found if len(set(self.body.texts(one))) > 1]

    def markup(self) -> Markup:
        """The table."""
        head = element("thead", element("tr", *map(self._heading, self.columns)))
        body = element("tbody", joined(map(self._line, range(len(self.body.rows)))))
        return scrolling(element("table", head, body, id="rows"), LABEL)

    def controls(self) -> Markup:
        """A field for words, and a choice for each filter; a script shows them."""
        words = element("input", type="search", id="words", autocomplete="off", spellcheck="false")
        label = element("label", element("span", "Filter by words"), words)
        choices = [self._choice(number, one) for number, one in enumerate(self.filters)]
        reset = element("button", "Show all", type="button", id="all-rows")
        said = element("p", "", id="count", role="status")
        return element("div", label, *choices, reset, said, id="controls", hidden="")

    def _choice(self, number: int, of: Shown) -> Markup:
        values = dict.fromkeys(self.body.texts(of))
        if of.declared.kind == "int":
            values = dict.fromkeys(sorted(values, key=lambda text: (not text.isdigit(), text.zfill(12))))
        options = [element("option", text, value=shown(text)) for text in values]
        every = element("option", "all", value="")
        choice = element("select", every, *options, data_filter=number)
        return element("label", element("span", of.heading), choice)

    def keys(self, index: int) -> list[float | None]:
        """By what the columns sort a row; None for texts, which sort by themselves, and for no value."""
        return [_key(one, self.body.rows[index]) for one in self.columns]

    def chosen_by(self, index: int) -> list[str]:
        """The row's words in the columns of the filters."""
        return [shown(self.body.texts(one)[index]) for one in self.filters]

    def described(self, index: int) -> list[str]:
        """Lines of a tooltip: the row, then its numbers."""
        row = self.body.rows[index]
        title = f"{row.cell.model}, {row.cell.resolution} px"
        conditions = [self.body.texts(one)[index] for one in self.body.conditions]
        texts = ((one, self.body.texts(one)[index]) for one in self.columns if one.declared.kind != "text")
        said = [self._said(one, text) for one, text in texts if text != units.UNKNOWN and one is not SIZE]
        failed = [] if row.status == "ok" else [f"{row.status}: {row.reason or ''}"]
        return [shown(line) for line in (", ".join([title, *conditions]), *failed, *said)]

    def columns_for_script(self) -> list[dict[str, Any]]:
        """Heading of each column with its unit, the factor of that unit, and whether it sorts by number."""
        return [
            {
                "title": _title(self.body.heading(one)),
                "number": one.declared.kind != "text",
                "factor": scale.factor if (scale := self.body.scale(one)) else 1,
            }
            for one in self.columns
        ]

    def ends(self, index: int) -> list[list[float] | None]:
        """The ends of each column's interval; None where it has none."""
        return [_ends(one, self.body.rows[index]) for one in self.columns]

    def _said(self, column: Shown, text: str) -> str:
        heading, *unit = self.body.heading(column)
        return " ".join([heading.partition(" [")[0], text, *unit])

    def _heading(self, column: Shown) -> Markup:
        heading, *unit = self.body.heading(column)
        name, _, interval = heading.partition(" [")
        parts = [Markup(element("span", name))]
        parts += [element("small", f"[{interval}")] if interval else []
        parts += [element("small", text) for text in unit]
        kind = None if column.declared.kind == "text" else "number"
        return element("th", *parts, scope="col", class_=kind)

    def _line(self, index: int) -> Markup:
        marks = self._noted[0]
        cells = [self._cell(one, index, marks.get(one, {}).get(index, ())) for one in self.columns]
        failed = None if self.body.rows[index].status == "ok" else "failed"
        return element("tr", *cells, data_row=index, class_=failed)

    def _cell(self, column: Shown, index: int, marks: Sequence[int]) -> Markup:
        text, row = self.body.texts(column)[index], self.body.rows[index]
        value, _, interval = text.partition(" [") if column.interval else (text, "", "")
        parts: list[str] = [value, *([Markup(" "), element("small", f"[{interval}")] if interval else [])]
        if column is STATUS and row.status != "ok":
            bad = "accepted" if row.status in ACCEPTED else "bad"
            parts = [element("b", value, class_=bad), Markup(" "), element("small", row.reason or "")]
        kind = None if column.declared.kind == "text" else "number"
        if column is MODEL:
            return element("th", *parts, _noted(marks), scope="row")
        return element("td", *parts, _noted(marks), class_="status" if column is STATUS else kind)


def _title(heading: Sequence[str]) -> str:
    name, *unit = heading
    return " ".join([name.partition(" [")[0], *(f"({one})" for one in unit)])


def _noted(marks: Sequence[int]) -> Markup:
    """Links to the notes below the table."""
    links = [element("a", str(number), href=f"#note-{number}") for number in marks]
    return element("sup", joined(links, ",")) if links else NOTHING


def _key(column: Shown, row: Row) -> float | None:
    value = column.declared.value(row)
    return None if isinstance(value, str) or value is None else float(value)


def _ends(column: Shown, row: Row) -> list[float] | None:
    found = [BY_NAME[name].value(row) for name in column.interval or ()]
    known = [float(value) for value in found if isinstance(value, int | float)]
    return known if len(known) == 2 else None
