"""The key of a cell, which includes a hash of the source files that can change a measurement."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path

from longvis_bench.files import PACKAGE
from longvis_bench.hashing import digest
from longvis_bench.records import Cell
from longvis_bench.registry.registry import Variant

_MEASURING = (
    "devices.py",
    "records.py",
    "resolution.py",
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
_BACKBONES = "backbones"


def code_hash(variant: Variant, package: Path = PACKAGE) -> str:
    """Hash of the sources that can change a row of this variant; commands, tables and plots are left out.

    Arguments:
        variant: its factory's file, and the backbones that this imports, are hashed in addition to the
            modules of all models.
        package: the folder of this package.

    Returns:
        Sixteen hexadecimal characters.

    Raises:
        CardError: the factory's module cannot be found.
    """
    files = [path for name in _MEASURING for path in _sources(package / name)]
    files += _with_imports(variant.source_files(), package / _BACKBONES)
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
    content = {"cell": cell.conditions(), "code": code, "environment": environment}
    return digest(content)[:16]


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _with_imports(files: Sequence[Path], backbones: Path) -> list[Path]:
    """The files, then the modules of `backbones` that they import, directly or by one another."""
    found = list(dict.fromkeys(files))
    for file in found:  # grows while it is read
        found += [path for path in _imported(file, backbones) if path not in found]
    return found


def _imported(file: Path, backbones: Path) -> list[Path]:
    """The modules of `backbones` that a file's `from ... import` names; none where it cannot be parsed."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = sorted({name for name in modules if name.startswith(f"{PACKAGE.name}.{_BACKBONES}.")})
    return [path for name in names if (path := backbones / f"{name.rpartition('.')[2]}.py").is_file()]
