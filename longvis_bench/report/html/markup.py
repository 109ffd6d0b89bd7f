"""Writes HTML.  A text becomes part of a page here only: cleaned, without local paths, and escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from longvis_bench.text import clean, without_paths

VOID = {"col", "img", "input", "link", "meta"}
"""Elements without an end tag."""


class Markup(str):
    """Text that is HTML already, so that `element` does not escape it again."""

    __slots__ = ()


NOTHING = Markup("")


def shown(text: str) -> str:
    """A text of a row as the page shows it: one line, without escape sequences or local paths."""
    return clean(without_paths(text))


def escaped(text: str) -> Markup:
    """A text as HTML; what is `Markup` stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(shown(text)))


def element(tag: str, *content: str, **attributes: str | int | None) -> Markup:
    """An element.

    Arguments:
        tag: its name.
        content: texts, which are escaped, and `Markup`.
        attributes: `_` stands for `-`, and an underscore at the end is dropped (`class_`); those that are
            None are left out.
    """
    opened = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value if isinstance(value, str) else str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Markup(f"<{tag}{opened}>")
    return Markup(f"<{tag}{opened}>{''.join(map(escaped, content))}</{tag}>")


def joined(parts: Iterable[Markup], between: str = "\n") -> Markup:
    """Several elements in a row."""
    return Markup(between.join(parts))


def items(texts: Iterable[str]) -> Markup:
    """A list; nothing if it has no items."""
    lines = [element("li", text) for text in texts]
    return element("ul", *lines) if lines else NOTHING


def lines(texts: Iterable[str]) -> Markup:
    """Preformatted lines: a command or a file."""
    return element("pre", Markup("\n".join(map(escaped, texts))), tabindex=0)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], label: str, numbers: int = 0) -> Markup:
    """A table that scrolls sideways where it is too wide.

    Arguments:
        headings: of its columns.
        rows: the cells of each row; the first one names the row.
        label: what the table is, for readers who hear it.
        numbers: of columns at its right end that are aligned as numbers.
    """
    first = len(headings) - numbers
    kinds = [None if index < first else "number" for index in range(len(headings))]
    head = [element("th", text, scope="col", class_=kind) for text, kind in zip(headings, kinds, strict=True)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    whole = element("table", element("thead", element("tr", *head)), element("tbody", joined(body)))
    return scrolling(whole, label)


def scrolling(content: Markup, label: str) -> Markup:
    """A region that scrolls sideways by pointer and by keyboard."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: it has none of the signs that could end one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
