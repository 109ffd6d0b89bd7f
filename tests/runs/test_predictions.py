"""Predictions stand on the disk before the row that speaks of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from longvis_bench.records import Row
from longvis_bench.runs.directory import RunDirectory
from longvis_bench.runs.merge import merge_runs
from longvis_bench.runs.predictions import Predictions, read_predictions

LINUX = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are looked up in /proc")


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files and folders in the order in which they reach the disk."""
    seen: list[str] = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def _predictions() -> Predictions:
    labels = np.arange(10)
    return Predictions(labels=labels, predictions=labels[::-1].copy(), indices=labels)


@LINUX
def test_predictions_come_back_from_the_disk(tmp_path: Path, row: Row, flushed: list[str]) -> None:
    _predictions().save(tmp_path / "predictions" / f"{row.key}.npz")
    assert flushed[-2:] == [f".{row.key}.npz.{os.getpid()}", "predictions"]
    found = read_predictions(row, [tmp_path])
    assert found is not None
    assert found.same_images(_predictions())
    assert found.predictions.tolist() == list(range(9, -1, -1))


@LINUX
def test_no_row_of_a_sweep_stands_without_its_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushed: list[str]
) -> None:
    from longvis_bench.sweep.session import start

    monkeypatch.chdir(tmp_path)
    options = {
        "models": ("vit-n",), "resolutions": (256,), "metrics": ("accuracy",), "images": 4, "device": "cpu",
    }  # fmt: skip
    session = start(options, out=tmp_path / "run")
    (row,) = session.run().rows
    assert row.accuracy is not None
    written = flushed.index(f".{row.key}.npz.{os.getpid()}")
    assert written < flushed.index("predictions", written) < flushed.index("cells.jsonl")
    assert read_predictions(row, [tmp_path / "run"]) is not None


@LINUX
def test_no_row_of_a_merged_run_stands_without_its_predictions(
    tmp_path: Path, row: Row, flushed: list[str]
) -> None:
    from longvis_bench.environment import read_environment

    with RunDirectory(tmp_path / "run") as directory:
        environment = read_environment().model_dump(mode="json")
        directory.write_run({"environment": environment, "invocations": []})
        directory.append(row)
    _predictions().save(tmp_path / "run" / "predictions" / f"{row.key}.npz")
    flushed.clear()
    merge_runs([tmp_path / "run"], tmp_path / "merged")
    written = flushed.index(f".{row.key}.npz.{os.getpid()}")
    assert written < flushed.index("predictions", written) < flushed.index("cells.jsonl")
    assert read_predictions(row, [tmp_path / "merged"]) is not None
