"""The numbered lines below a table, each only once: reasons, and warnings with their advice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.text import clean

_LONGEST = 300
"""Characters of a reason or message in a footnote; the CSV has all of them."""


@dataclass(frozen=True)
class Remark:
    """A remark on one row for a footnote."""

    kind: str
    """Subject of the remark: a status, a column, or the code of a warning."""
    text: str
    row: Row
    advice: str = ""
    template: str = ""
    """The text with the row's model and size replaced by MODEL and RES."""
    line: tuple[str, str] = ("", "")
    """The same for all remarks that share a footnote."""


def remark(kind: str, text: str, row: Row, advice: str = "", *, key: str | None = None) -> Remark:
    """A remark with its template.

    Arguments:
        kind: what it is about.
        text: what it says, without a full stop.
        row: whose it is.
        advice: one sentence on what to do.
        key: remarks of one kind and key share a line; by default those whose texts differ in numbers only.
    """
    general = template(text, row)
    like = re.sub(r"\d+(\.\d+)?", "#", general) if key is None else key
    return Remark(kind, text, row, advice, general, (kind, like))


@dataclass
class Footnote:
    """One line below a table, gathered from all rows it applies to."""

    first: Remark
    scope: str = ""
    """Number of rows, if the line starts with it."""
    rows: int = 0
    texts: set[str] = field(default_factory=set)
    templates: set[str] = field(default_factory=set)

    def add(self, one: Remark) -> None:
        """Add a row."""
        self.rows += 1
        self.texts.add(one.text)
        self.templates.add(one.template)

    @property
    def text(self) -> str:
        """The whole line."""
        same = len(self.texts) > 1 and len(self.templates) == 1
        said = clean(self.first.template if same else self.first.text)
        said = said if len(said) <= _LONGEST else said[: _LONGEST - 3] + "..."
        alike = len(self.texts) > 1 and len(self.templates) > 1
        also = f" ({self.where}, and the like in {units.several(self.rows - 1, 'more row')})" if alike else ""
        line = f"{self.first.kind}: {self.scope}{said}{also}".removesuffix(".") + "."
        return clean(f"{line} {self.first.advice}")

    @property
    def where(self) -> str:
        """The first row."""
        return f"{clean(self.first.row.cell.model)} at {self.first.row.cell.resolution} px"


@dataclass
class Footnotes:
    """The lines below one table: numbered ones, then those about so many rows that none is marked."""

    notes: dict[tuple[str, str], Footnote] = field(default_factory=dict)
    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    _others: list[Footnote] = field(default_factory=list)

    def mark(self, one: Remark) -> int:
        """The number of the line with this remark, which is added if necessary."""
        if one.line not in self.notes:
            self.notes[one.line] = Footnote(one)
        self.notes[one.line].add(one)
        return self._numbers.setdefault(one.line, len(self.notes))

    def add(self, note: Footnote, *, numbered: bool) -> int:
        """Add a separate line; returns its number, or 0 if it has none."""
        if not numbered:
            self._others.append(note)
            return 0
        self.notes[note.first.line] = note
        return self._numbers.setdefault(note.first.line, len(self.notes))

    @property
    def lines(self) -> list[str]:
        """The numbered lines, in the order of their numbers."""
        return [note.text for note in self.notes.values()]

    @property
    def others(self) -> list[str]:
        """The lines without a number."""
        return [note.text for note in self._others]


def template(text: str, row: Row) -> str:
    """The text of any row with this fault: model and size replaced."""
    text = _replaced(text, row.cell.model, "MODEL", before=r"[\w.-]", after=r"[\w-]")
    return _replaced(text, str(row.cell.resolution), "RES", before=r"[\w.]", after=r"[\w.]*\w")


def _replaced(text: str, word: str, by: str, *, before: str, after: str) -> str:
    """The text with a word replaced where neither pattern touches it.

    Models differ from row to row: a pattern compiled for each would cost more than all else in a long table.
    """
    parts, start = [], 0
    while word and (found := text.find(word, start)) >= 0:
        end = found + len(word)
        free = not re.match(before, text[found - 1 : found]) and not re.match(after, text[end:])
        parts += [text[start:found], by if free else word]
        start = end
    return "".join([*parts, text[start:]])
