"""Texts without folders: what is stored and shared names no path, and so no user, of this machine."""

from __future__ import annotations

import re
from pathlib import Path

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
