"""The key of a cell, which includes a hash of the source files that can change a measurement."""

from __future__ import annotations

import hashlib
from pathlib import Path

from longvis_bench.files import PACKAGE
from longvis_bench.hashing import digest
from longvis_bench.records import Cell
from longvis_bench.registry.registry import Variant

_MEASURING = (
    "devices.py",
    "records.py",
    "row_warnings.py",
    "stats",
    "sizes",
    "data",
    "ops",
    "weights",
    "registry",
    "measure",
    "isolation",
    "backbones/building.py",
)
"""Modules and subpackages that can change the content of a row of any model."""


def code_hash(variant: Variant, package: Path = PACKAGE) -> str:
    """Hash of the sources that can change a row of this variant; commands, tables and plots are left out.

    Arguments:
        variant: its factory's file is hashed in addition to the modules of all models.
        package: the folder of this package.

    Returns:
        Sixteen hexadecimal characters.

    Raises:
        CardError: the factory's module cannot be found.
    """
    files = [path for name in _MEASURING for path in _sources(package / name)]
    source = variant.source_file()
    if source is not None:
        files.append(source)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return digest(hashes)[:16]


def cell_key(cell: Cell, code: str, environment: str) -> str:
    """The key that identifies a measurement: the cell, the measuring code and the environment.

    Arguments:
        cell: the condition, including the hash of the weights.
        code: `code_hash` of the sources that can change a row of this model.
        environment: `Environment.hash`.

    Returns:
        Sixteen hexadecimal characters.
    """
    content = {"cell": cell.model_dump(mode="json"), "code": code, "environment": environment}
    return digest(content)[:16]


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]
