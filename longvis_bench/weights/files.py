"""Resolve a name of weights to files: `FILE#KEY`, an index of shards, or a folder of `save_pretrained`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from longvis_bench.errors import CheckpointError
from longvis_bench.hashing import sha256_file

IN_A_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""File names of weights in folders of `save_pretrained`, in order of preference."""


def split_key(path: str | Path) -> tuple[Path, str]:
    """Split `model.pth#ema` into file and key of a set of weights; no key if a file has this name."""
    path = Path(path)
    name, mark, key = path.name.rpartition("#")
    if not mark or not name or path.exists():
        return path, ""
    return path.with_name(name), key


def find_file(path: Path) -> Path:
    """The weight file in a folder of `save_pretrained`; other paths are returned unchanged."""
    file, key = split_key(path)
    found = next((file / name for name in IN_A_FOLDER if (file / name).is_file()), file)
    return found.with_name(f"{found.name}#{key}") if key else found


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files that an index (`model.safetensors.index.json`) lists, in its folder.

    Raises:
        CheckpointError: the index is damaged, or lists a file that does not exist in its folder.
    """
    if path.suffix != ".json":
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8-sig"))["weight_map"].values()))
        files = [path.with_name(name) for name in names]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no index of weight files.") from error
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{path.name} names {file.name}, which is not in its folder.")
    return files


def sha256_weights(path: Path) -> str:
    """SHA-256 of a weight file; of an index, over the index and all its files."""
    file, _ = split_key(path)
    files = files_of(file)
    if files == [file]:
        return sha256_file(file)
    return hashlib.sha256("".join(map(sha256_file, [file, *files])).encode()).hexdigest()
