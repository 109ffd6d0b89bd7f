"""`longvis doctor`: one line per check, one per absent package, and the command that adds it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sysconfig
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longvis_bench.cli import doctor
from longvis_bench.cli.app import app

Lack = Callable[..., None]


@pytest.fixture
def lack(monkeypatch: pytest.MonkeyPatch) -> Lack:
    """Make modules look as if they were not installed."""
    find = importlib.util.find_spec

    def hide(*modules: str) -> None:
        def found(name: str, package: str | None = None) -> ModuleSpec | None:
            return None if name in modules else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", found)

    return hide


def lines() -> list[str]:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_every_check_is_a_line_and_they_are_counted() -> None:
    found = lines()
    assert found[-1].startswith(f"{len(found) - 1} checks, 0 failed")
    assert all(line.startswith(("ok ", "absent ")) for line in found[:-1])
    text = "\n".join(found)
    for words in ("Python 3.", "torch ", "device cpu", "/dev/shm", "C compiler", "Python.h", "fvcore"):
        assert words in text


def test_a_package_that_several_models_need_is_one_line(lack: Lack) -> None:
    lack("mambavision")
    (line,) = (line for line in lines() if "mambavision" in line)
    assert line.startswith("absent  mambavision (for mambavision-b@upstream, ")
    assert line.endswith("and 5 more); add it with: python -m pip install mambavision")


def test_what_a_gpu_needs_is_named(lack: Lack, monkeypatch: pytest.MonkeyPatch) -> None:
    lack("pynvml")
    monkeypatch.setattr(doctor, "available_devices", lambda: ["cuda", "cuda:0", "cpu"])
    assert any("nvidia-ml-py" in line and line.startswith("absent") for line in lines())


def test_without_a_compiler_and_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda **_: {"include": "nowhere"})
    text = "\n".join(lines())
    assert "absent  a C compiler (for --compile, and Triton on CUDA); install gcc or clang" in text
    assert "absent  Python.h" in text


@pytest.mark.parametrize(("free", "words"), [(1 << 26, "has only 64.0 MiB free"), (1 << 33, "8.00 GiB free")])
def test_little_shared_memory(free: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path.cwd())._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (line,) = (line for line in lines() if "/dev/shm" in line)
    assert words in line
    assert ("--shm-size" in line) == (free < 1 << 30)


def test_a_needed_package_that_is_absent_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "numba":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "failed  numba is not installed; install it with: python -m pip install numba" in done.stdout
    assert " checks, 1 failed" in done.stdout
