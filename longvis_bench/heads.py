"""How many classes a weight file knows, by its header alone: before torch is imported or a model built."""

from __future__ import annotations

import json
import re
from pathlib import Path

from longvis_bench.errors import CheckpointError

HEAD = re.compile(r"(^|\.)(head|fc|classifier)(\.fc)?\.(weight|bias)$")
"""Names of a classifier's tensors."""
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format."""


def head_classes(path: Path) -> int | None:
    """Classes of the classifier in a safetensors file; None where its header does not tell."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
        found = {entry["shape"][0] for name, entry in header.items() if HEAD.search(name)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    known = found.pop() if len(found) == 1 else None
    return known if isinstance(known, int) else None


def refuse_other_classes(path: Path, known: int | None, wanted: int, data: str) -> None:
    """Raise where a file's classes are not those of the data: the classifier would be random.

    Arguments:
        path: the weight file.
        known: its classes; None where unknown, which is no reason to refuse.
        wanted: the data set's classes.
        data: its name.

    Raises:
        CheckpointError: they differ.
    """
    if known is not None and known != wanted:
        raise CheckpointError(
            f"{path.name} knows {known} classes and {data} has {wanted}: "
            "choose weights of this data, or classes with --classes."
        )
