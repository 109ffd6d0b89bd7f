"""The scripts for the first day on a GPU: what they list, and that `longvis bench` takes every piece."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Done(NamedTuple):
    """A script that has ended."""

    returncode: object
    stdout: str
    stderr: str


def script(name: str, *arguments: object) -> Done:
    """Run a script in this process, which has torch imported."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        patch.object(sys, "argv", [name, *map(str, arguments)]),
        patch.object(sys, "path", [str(SCRIPTS), *sys.path]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return Done(code or 0, out.getvalue(), err.getvalue())


def test_pieces_are_listed() -> None:
    done = script("gpu_reference.py", "--list")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [int(line[:2]) for line in lines] == list(range(1, len(lines) + 1))
    names = {line.split()[1] for line in lines}
    for size in ("train-512-b16", "train-1024-b32", "convnext-contiguous-b16", "convnext-contiguous-b32"):
        assert {size, f"{size}-again"} <= names, "for the spread between runs"


def test_every_piece_is_accepted(tmp_path: Path) -> None:
    """Planned for the CPU: names, sizes, options and directories are right, and nothing is measured."""
    done = script("gpu_reference.py", "--dry-run", "--device", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fastervit-4" in done.stdout
    assert not list(tmp_path.glob("**/cells.jsonl"))


def test_a_piece_that_is_not_there_is_refused() -> None:
    assert script("gpu_reference.py", "--piece", 99).returncode == 2


def test_checks_state_their_criteria() -> None:
    done = script("gpu_check.py", "--list")
    assert done.returncode == 0, done.stderr
    assert all(": " in line and line.endswith(".") for line in done.stdout.splitlines())


def test_an_unknown_check_is_refused(tmp_path: Path) -> None:
    done = script("gpu_check.py", tmp_path / "report.json", "--only", "clok")
    assert done.returncode == 2
    assert "no such check: clok" in done.stderr


def test_without_a_gpu_nothing_is_checked(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = script("gpu_check.py", tmp_path / "report.json")
    assert done.returncode == 3
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "report.json").exists()
