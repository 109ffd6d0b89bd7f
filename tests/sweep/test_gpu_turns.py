"""No two processes measure or train on one GPU at once, and one that was killed does not keep it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import longvis_bench.sweep.execute as sweep_module
from longvis_bench.devices import Gpu
from longvis_bench.records import Request, Row
from longvis_bench.sweep import gpu_turns
from longvis_bench.sweep.gpu_turns import GpuTurns
from longvis_bench.sweep.reporter import Reporter
from longvis_bench.sweep.session import start

GPU = Gpu(0, "NVIDIA H100 80GB HBM3", "12-34", (9, 0))
PROGRAM = """
import sys, time
from pathlib import Path
from longvis_bench.devices import Gpu
from longvis_bench.sweep import gpu_turns
from longvis_bench.sweep.reporter import Reporter

folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
gpu_turns.FOLDER = folder / "locks"
gpu_turns.gpu_of = lambda device: Gpu(0, "H100", sys.argv[4], (9, 0))
turns = gpu_turns.GpuTurns("cuda")
for _ in range(2):
    with turns.turn(Reporter()), (folder / "log").open("a") as log:
        print(name, "begins", file=log, flush=True)
        time.sleep(seconds)
        print(name, "ends", file=log, flush=True)
"""


class Watcher(Reporter):
    """Keeps what it is told, and gives the GPU free when the sweep first waits."""

    def __init__(self, held: FileLock) -> None:
        self.told: list[str] = []
        self._held = held

    def note(self, sentence: str) -> None:
        self.told.append(sentence)

    def tick(self) -> None:
        if self.told:  # it was told that the GPU is waited for
            self._held.release()


def process(folder: Path, name: str, seconds: float, uuid: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), name, str(seconds), uuid])


def test_two_processes_take_turns_on_one_gpu(tmp_path: Path) -> None:
    both = [process(tmp_path, name, 0.3, "12-34") for name in ("one", "other")]
    assert [running.wait(60) for running in both] == [0, 0]
    words = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len(words) == 8
    for begin, end in zip(words[::2], words[1::2], strict=True):
        assert (begin[0], begin[1], end[1]) == (end[0], "begins", "ends")


def test_another_gpu_is_not_waited_for_and_a_killed_holder_lets_go(tmp_path: Path) -> None:
    holder = process(tmp_path, "holder", 60, "12-34")
    log = tmp_path / "log"
    while not (log.exists() and "holder begins" in log.read_text()):
        assert holder.poll() is None
    assert process(tmp_path, "elsewhere", 0.0, "56-78").wait(60) == 0
    holder.kill()
    holder.wait()
    assert process(tmp_path, "next", 0.0, "12-34").wait(60) == 0
    assert "next ends" in log.read_text()


def test_several_gpus_are_locked_together_and_one_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_turns, "FOLDER", tmp_path)
    gpus = {"cuda": GPU, "cuda:0": GPU, "cuda:1": Gpu(1, "NVIDIA H100 80GB HBM3", "00-11", (9, 0))}
    monkeypatch.setattr(gpu_turns, "gpu_of", gpus.get)
    with GpuTurns("cuda", "cuda:0", "cuda:1", "cpu").turn(Reporter()):
        for uuid in ("12-34", "00-11"):
            with pytest.raises(TimeoutError):
                FileLock(tmp_path / f"gpu-{uuid}.lock").acquire(timeout=0)
    for uuid in ("12-34", "00-11"):
        FileLock(tmp_path / f"gpu-{uuid}.lock").acquire(timeout=0)


class Runner:
    """Finds out whether the GPU is locked while a cell runs."""

    forks = True
    locked: bool | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, request: Request, on_tick: Any) -> Row:
        other = FileLock(gpu_turns.FOLDER / "gpu-12-34.lock")
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0)
        Runner.locked = True
        return Row.of(request, "ok")


def test_a_sweep_waits_says_so_and_holds_the_gpu_while_a_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "Runner", Runner)
    monkeypatch.setattr(gpu_turns, "FOLDER", tmp_path / "locks")
    monkeypatch.setattr(gpu_turns, "gpu_of", lambda device: GPU)
    (tmp_path / "locks").mkdir()
    held = FileLock(tmp_path / "locks" / "gpu-12-34.lock")
    held.acquire()
    watcher = Watcher(held)
    options = {"models": ("vit-n",), "resolutions": (64,), "device": "cpu", "metrics": ("count",)}
    start(options, out=tmp_path / "run").run(reporter=watcher)
    assert Runner.locked
    assert watcher.told == [
        "Another longvis process measures or trains on NVIDIA H100 80GB HBM3; this one waits for its turn."
    ]
    held.acquire(timeout=0)  # free again


def test_without_a_gpu_or_a_place_for_locks_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_turns, "FOLDER", tmp_path / "file" / "locks")
    (tmp_path / "file").write_text("")
    watcher = Watcher(FileLock(tmp_path / "unused"))
    with GpuTurns("cpu").turn(watcher):
        assert watcher.told == []
    monkeypatch.setattr(gpu_turns, "gpu_of", lambda device: GPU)
    with GpuTurns("cuda").turn(watcher):
        pass
    assert len(watcher.told) == 1
    assert watcher.told[0].startswith("Cannot lock NVIDIA H100")
