"""What compiles kernels is found where Triton looks for it."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from longvis_bench.ops import c_toolchain


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with gcc and Python.h; the header's path."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path / scheme)})
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    header = tmp_path / "posix_prefix" / "Python.h"
    header.parent.mkdir()
    header.touch()
    return header


def test_nothing_is_missing(complete: Path) -> None:
    assert c_toolchain.c_compiler() == "/usr/bin/gcc"
    assert c_toolchain.missing() is None


def test_what_is_missing_is_named(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete.unlink()
    assert c_toolchain.missing() == "Python.h is missing"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert c_toolchain.missing() == "there is no C compiler"
