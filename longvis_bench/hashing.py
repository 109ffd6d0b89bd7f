"""SHA-256 of plain values and of files, which identifies keys, run names and weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from longvis_bench.errors import CheckpointError


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of a value made of plain types."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error
