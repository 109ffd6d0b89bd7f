"""The scripts for the first day on a GPU: what they list, and that `longvis bench` takes every piece."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


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
