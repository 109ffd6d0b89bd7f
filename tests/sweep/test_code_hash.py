"""A cell's key changes with every source that can change its row, and with no other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from longvis_bench.files import PACKAGE
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.sweep.code_hash import code_hash

HASHED = {
    "devices.py", "records.py", "resolution.py", "row_warnings.py", "stats",
    "data", "isolation", "measure", "ops", "registry", "sizes", "weights",
}  # fmt: skip
"""Modules and packages whose every file counts for all models."""
BACKBONES = {"backbones/building.py", "backbones/longvit.py"}
"""What counts for LongViT alone."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(PACKAGE, tmp_path / "longvis_bench", ignore=shutil.ignore_patterns("__pycache__"))
    )


def _variant(copy: Path) -> Variant:
    """LongViT, whose file is that of the copy."""
    return replace(Registry().find("longvit-n"), factory="longvit.py:build", folder=copy / "backbones")


def _change_one_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content + b"#" if not content else content[:-1] + b" ")


def test_one_byte_of_any_measuring_source_gives_a_new_key_and_of_any_other_none(copy: Path) -> None:
    variant = _variant(copy)
    before, changing = code_hash(variant, copy), set()
    for path in sorted(copy.rglob("*.py")):
        content = path.read_bytes()
        _change_one_byte(path)
        if code_hash(variant, copy) != before:
            changing.add(path.relative_to(copy).as_posix())
        path.write_bytes(content)
    measuring = {
        path.relative_to(copy).as_posix()
        for path in copy.rglob("*.py")
        if path.relative_to(copy).parts[0] in HASHED
    }
    assert changing == measuring | BACKBONES
    assert "measure/batch_search.py" in changing
    assert {name.partition("/")[0] for name in changing} == HASHED | {"backbones"}


def test_a_new_measuring_source_gives_a_new_key(copy: Path) -> None:
    before = code_hash(_variant(copy), copy)
    (copy / "report" / "new.py").write_text("")
    (copy / "cli" / "new.py").write_text("")
    assert code_hash(_variant(copy), copy) == before
    (copy / "measure" / "new.py").write_text("")
    assert code_hash(_variant(copy), copy) != before
