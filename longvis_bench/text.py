"""Texts of others on a terminal, in a table or a figure: one line of characters that only mean themselves."""

from __future__ import annotations

import unicodedata

_FORMULA = tuple("=+-@＝＋－＠")


def clean(text: str) -> str:
    """One line without control, format or unassigned characters: no escape sequence survives."""
    line = "".join(char for char in " ".join(text.split()) if not unicodedata.category(char).startswith("C"))
    return line.strip()


def has_controls(text: str) -> bool:
    """Whether a text holds characters that a terminal obeys rather than shows; not line ends, tabs."""
    if text.isprintable():  # nearly every text is, and this asks all its characters at once
        return False
    return any(unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\n\r\t" for char in text)


def spreadsheet_safe(text: str) -> str:
    """A cleaned text that no spreadsheet takes for a formula."""
    text = clean(text)
    return f"'{text}" if text.startswith(_FORMULA) else text
