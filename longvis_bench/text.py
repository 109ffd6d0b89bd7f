"""Sanitise untrusted text for terminals, tables and figures, and remove local paths from stored text."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

_FORMULA = tuple("=+-@＝＋－＠")


def clean(text: str) -> str:
    """One line without control, format or unassigned characters, so without escape sequences."""
    if text.isprintable():  # the fast path: nearly every text is printable
        return " ".join(text.split())
    spaced = " ".join(text.split())  # line ends and tabs are control characters, too
    line = "".join(char for char in spaced if not unicodedata.category(char).startswith("C"))
    return " ".join(line.split())


def first_line(text: str) -> str:
    """The first line of a message, without a final full stop or semicolon; empty for an empty message."""
    return text.strip().splitlines()[0].rstrip(".;") if text.strip() else ""


def message_of(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its type if the message is empty."""
    return first_line(str(error)) or type(error).__name__


def has_controls(text: str) -> bool:
    """Whether a text has control or format characters other than line ends and tabs."""
    if text.isprintable():  # the fast path: nearly every text is printable
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
    """The text in ASCII: `±` as `+-`, `µs` as `us`, letters without accents, other characters as `?`."""
    if text.isascii():
        return text
    parts = unicodedata.normalize("NFKD", text.translate(_IN_ASCII))
    bare = "".join(char for char in parts if not unicodedata.combining(char))
    return bare.encode("ascii", "replace").decode()


def ascii_instead(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: replaces characters that the stream's encoding lacks by `in_ascii` of them.

    Raises:
        UnicodeError: the error occurred while decoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def spreadsheet_safe(text: str) -> str:
    """The cleaned text, with a leading apostrophe if a spreadsheet would evaluate it as a formula."""
    text = clean(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


_PART = r"[/\\](?![/\\])[^\s/\\:'\",;()]+"
_PATH = re.compile(rf"(?<![\w/.\\])(?:~(?:{_PART})+|(?:[A-Za-z]:)?(?:{_PART}){{2,}})")

_DATA = re.compile(r"(\bfolder:)(?=[/\\~]|\.\.[/\\]|[A-Za-z]:[/\\])\S*[/\\](?=[^\s/\\])")
"""A dataset outside the working directory, with a path of any length: `folder:/imagenet`."""


def without_paths(text: str) -> str:
    """The text with absolute paths reduced to their last part; URLs (`//`) are unchanged."""
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    text = _DATA.sub(r"\1", text)
    return _PATH.sub(lambda match: re.split(r"[/\\]", match.group())[-1], text)
