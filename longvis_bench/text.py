"""Sanitise untrusted text for terminals, tables and figures, and cut machine paths out of what is stored."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

_FORMULA = tuple("=+-@＝＋－＠")


def clean(text: str) -> str:
    """One line without control, format or unassigned characters: no escape sequence survives."""
    if text.isprintable():  # nearly every text is, and this asks all its characters at once
        return " ".join(text.split())
    line = "".join(char for char in " ".join(text.split()) if not unicodedata.category(char).startswith("C"))
    return line.strip()


def first_line(text: str) -> str:
    """The first line of a message, without the full stop or semicolon at its end; empty where it has none."""
    return text.strip().splitlines()[0].rstrip(".;") if text.strip() else ""


def message_of(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has no message."""
    return first_line(str(error)) or type(error).__name__


def has_controls(text: str) -> bool:
    """Whether a text holds characters that a terminal obeys rather than shows; not line ends, tabs."""
    if text.isprintable():  # nearly every text is, and this asks all its characters at once
        return False
    return any(unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\n\r\t" for char in text)


_IN_ASCII = str.maketrans(
    {raised: f"^{digit}" for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
    | {
        "±": "+-",
        "µ": "u",
        "×": "x",
        "·": ".",
        "…": "...",
        "°": "deg ",
        "≥": ">=",
        "≤": "<=",
        "–": "-",
        "’": "'",
    }
)


def in_ascii(text: str) -> str:
    """The text in ASCII: `±` as `+-`, `µs` as `us`, letters without accents, and `?` for what has no like."""
    if text.isascii():
        return text
    parts = unicodedata.normalize("NFKD", text.translate(_IN_ASCII))
    bare = "".join(char for char in parts if not unicodedata.combining(char))
    return bare.encode("ascii", "replace").decode()


def ascii_instead(error: UnicodeError) -> tuple[str, int]:
    """Error handler of a stream whose encoding lacks a character: `in_ascii` of it.

    Raises:
        UnicodeError: it happened while reading.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def spreadsheet_safe(text: str) -> str:
    """A cleaned text that no spreadsheet takes for a formula."""
    text = clean(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


_PART = r"[/\\](?![/\\])[^\s/\\:'\",;()]+"
_PATH = re.compile(rf"(?<![\w/.\\])(?:~(?:{_PART})+|(?:[A-Za-z]:)?(?:{_PART}){{2,}})")

_DATA = re.compile(r"(\bfolder:)(?=[/\\~]|\.\.[/\\]|[A-Za-z]:[/\\])\S*[/\\](?=[^\s/\\])")
"""A data set outside of the working directory, however short its path: `folder:/imagenet`."""


def without_paths(text: str) -> str:
    """The text with absolute paths cut to their last part; addresses with `//` are left alone."""
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    text = _DATA.sub(r"\1", text)
    return _PATH.sub(lambda match: re.split(r"[/\\]", match.group())[-1], text)
