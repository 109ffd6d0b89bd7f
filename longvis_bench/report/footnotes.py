"""The numbered lines below a table, each only once: reasons, and warnings with their advice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.text import clean

_LONGEST = 300
"""Characters of a reason or message in a footnote; the CSV has all of them."""


@dataclass
class Footnote:
    """One line below a table, gathered from all rows it applies to."""

    kind: str
    """What it is about: a status, a column, or the code of a warning."""
    advice: str = ""
    texts: list[str] = field(default_factory=list)
    templates: set[str] = field(default_factory=set)
    """The texts with the row's model and size replaced by MODEL and RES."""
    where: str = ""

    def add(self, text: str, row: Row) -> None:
        """One more row."""
        self.texts.append(text)
        self.templates.add(template(text, row))
        self.where = self.where or f"{row.cell.model} at {row.cell.resolution} px"

    @property
    def text(self) -> str:
        """The whole line."""
        said = clean(self._said())
        said = said if len(said) <= _LONGEST else said[: _LONGEST - 3] + "..."
        more = len(self.texts) - 1
        alike = len(set(self.texts)) > 1 and len(self.templates) > 1
        also = f" ({clean(self.where)}, and the like in {units.several(more, 'more row')})" if alike else ""
        line = f"{self.kind}: {said}{also}".removesuffix(".") + "."
        return clean(f"{line} {self.advice}")

    def _said(self) -> str:
        same = len(set(self.texts)) > 1 and len(self.templates) == 1
        return next(iter(self.templates)) if same else self.texts[0]


@dataclass
class Footnotes:
    """The numbered lines below one table."""

    notes: dict[tuple[str, str], Footnote] = field(default_factory=dict)

    def mark(self, kind: str, text: str, row: Row, advice: str = "", *, key: str | None = None) -> int:
        """The number of the line that says this, new or there already."""
        like = key if key is not None else re.sub(r"\d+(\.\d+)?", "#", template(text, row))
        note = self.notes.setdefault((kind, like), Footnote(kind, advice))
        note.add(text, row)
        return list(self.notes).index((kind, like)) + 1

    @property
    def lines(self) -> list[str]:
        """In the order of their numbers."""
        return [note.text for note in self.notes.values()]


def template(text: str, row: Row) -> str:
    """The text of any row with this fault: model and size replaced."""
    text = re.sub(rf"(?<![\w.-]){re.escape(row.cell.model)}(?![\w-])", "MODEL", text)
    return re.sub(rf"(?<![\w.]){row.cell.resolution}(?![\w.]*\w)", "RES", text)
