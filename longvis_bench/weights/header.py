"""The header of a safetensors file: names, shapes and metadata; needs neither tensors nor torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longvis_bench.weights.files import split_key


@dataclass(frozen=True)
class Header:
    """Header of a safetensors file; empty for any other file."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each tensor, by name."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Metadata that `save_weights` wrote; empty for files of other programs."""


def read_header(path: str | Path) -> Header:
    """Names, shapes and longvis's metadata of a safetensors file; an empty header for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(split_key(path)[0], framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get("longvis", "{}")
    except (SafetensorError, OSError, ValueError):
        return Header()
    return Header(shapes, _metadata(text))


def _metadata(text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
