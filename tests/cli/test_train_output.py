"""What `longvis train` prints where there is no terminal."""

from __future__ import annotations

from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from longvis_bench.cli import train as command
from longvis_bench.cli.app import app
from longvis_bench.devices import Gpu
from longvis_bench.sweep import gpu_turns
from longvis_bench.training import loop

NET = """
from torch import nn

def net(*, resolution, num_classes, in_chans=3):
    tokens = (resolution // 8) ** 2
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(4 * tokens, num_classes))
"""
OPTIONS = (
    "train",
    "--models",
    "net.py:net",
    "--res",
    "16",
    "--epochs",
    "1",
    "--batch",
    "200",
    "--store",
    "store",
)


def _train(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str, every_s: float = 1e9) -> list[str]:
    (folder / "net.py").write_text(NET)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(command, "LINE_EVERY_S", every_s)
    done = CliRunner().invoke(app, [*OPTIONS, *more])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_a_line_now_and_then_and_one_per_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _train(tmp_path, monkeypatch, every_s=0.0)
    steps = [line for line in lines if " step " in line]
    assert len(steps) == 7
    assert steps[2].startswith("net.py:net  step 3/7  loss ")
    assert "left" in steps[2]
    assert sum("epoch 1/1" in line for line in lines) == 1


def test_no_line_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in _train(tmp_path, monkeypatch) if " step " in line]


def test_quiet_prints_weights_and_table_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _train(tmp_path, monkeypatch, "--quiet", every_s=0.0)
    assert lines[0].startswith("weights: store/")
    assert not [line for line in lines if "step" in line or "epoch 1" in line or "recipe" in line]
    assert any("top-1 (95 % interval)" in line for line in lines)


def test_a_training_waits_for_its_gpu_and_keeps_others_off_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, folder, held_during = Gpu(0, "NVIDIA H100 80GB HBM3", "12-34", (9, 0)), tmp_path / "locks", []
    monkeypatch.setattr(gpu_turns, "FOLDER", folder)
    monkeypatch.setattr(gpu_turns, "gpu_of", lambda device: gpu)
    train = loop.train

    def watched(*arguments: Any) -> Any:
        with pytest.raises(TimeoutError):
            FileLock(folder / "gpu-12-34.lock").acquire(timeout=0)
        held_during.append(True)
        return train(*arguments)

    monkeypatch.setattr(loop, "train", watched)
    folder.mkdir()
    other = FileLock(folder / "gpu-12-34.lock", thread_local=False)
    other.acquire()
    Timer(1.0, other.release).start()
    lines = _train(tmp_path, monkeypatch, "--quiet")
    assert held_during == [True]
    assert lines[0] == (
        "note: Another longvis process measures or trains on NVIDIA H100 80GB HBM3; "
        "this one waits for its turn."
    )
    FileLock(folder / "gpu-12-34.lock").acquire(timeout=0)  # free again
