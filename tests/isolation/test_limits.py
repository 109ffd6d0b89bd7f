"""Limits and losses around a running cell, with real processes: memory, the server, the disk, the lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from longvis_bench.errors import HarnessFault, RunDirectoryError
from longvis_bench.isolation.exit_status import Ended
from longvis_bench.isolation.runner import CellFiles, Runner, can_fork, unfinished_row
from longvis_bench.records import Cell, Request, Settings
from longvis_bench.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
FAMILIES = ROOT / "tests" / "families"
MODELS = """
import os, subprocess, sys, time
import torch

class Net(torch.nn.Module):
    def __init__(self, in_chans, num_classes, act):
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(in_chans, 8, 16, 16), torch.nn.Linear(8, num_classes)
        self.act = act

    def forward(self, x):
        y = self.head(self.stem(x).mean((2, 3)))
        if y.device.type == "cpu" and isinstance(y.untyped_storage().data_ptr(), int):
            self.act()
        return y

def family(act):
    return lambda *, resolution, num_classes, in_chans=3: Net(in_chans, num_classes, act)

def grow():
    kept = []
    while True:
        kept.append(torch.ones(1 << 20))

def children():
    code = "x = bytearray(200 << 20); x[::4096] = b'1' * len(x[::4096]); import time; time.sleep(60)"
    for _ in range(3):
        subprocess.Popen([sys.executable, "-c", code])
    time.sleep(60)

def huge():
    torch.empty(1 << 33)

def parent():
    code = "import os, time; os.setsid(); time.sleep(300)  # left by parent()"
    subprocess.Popen([sys.executable, "-c", code])
    time.sleep(0.3)
    os.kill(os.getppid(), 9)
    time.sleep(60)

def score():
    raise ValueError(open("/proc/self/oom_score_adj").read())

grows, has_children, is_huge, kills_parent, tells_score = map(family, (grow, children, huge, parent, score))
"""
LIMITED = Settings(budget_s=0.1, timeout_s=50, memory_limit_bytes=1 << 30)

pytestmark = [
    pytest.mark.real_server,
    pytest.mark.skipif(not can_fork(), reason="cells are forked on Linux only"),
]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


def request(name: str, settings: Settings = LIMITED) -> Request:
    Path("net.py").write_text(MODELS)
    cell = Cell(
        model=f"net.py:{name}",
        family="net",
        variant=name,
        implementation="user",
        resolution=64,
        metrics=("time",),
    )
    return Request(
        cell=cell, settings=settings, key="k", working_dir=Path.cwd(), model=f"{Path.cwd()}/net.py:{name}"
    )


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("grows", "host_oom", "more than the memory limit of 1.00 GiB; raise --memory-limit"),
        ("has_children", "host_oom", "more than the memory limit"),
        ("is_huge", "host_oom", "The memory limit is 1.00 GiB; --memory-limit also counts"),
        ("tells_score", "error", "ValueError: 1000 (net.py:"),
    ],
)
def test_a_memory_limit_bounds_a_cell_and_its_children(
    runner: Runner, name: str, status: str, words: str
) -> None:
    row = runner.run(request(name))
    assert row.status == status, row.reason
    assert words in (row.reason or "")


def test_a_cell_that_kills_the_server_loses_only_itself(runner: Runner) -> None:
    row = runner.run(request("kills_parent"))
    assert row.status == "crashed"
    assert "the fork server ended (SIGKILL)" in (row.reason or "")
    left = [p.pid for p in psutil.process_iter() if "# left by parent()" in " ".join(_command(p))]
    assert not left
    assert runner.run(request("tells_score")).status == "error"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return []


def test_a_fault_of_the_harness_in_the_worker_is_raised(runner: Runner) -> None:
    wanted = request("tells_score")
    broken = wanted.model_copy(update={"cell": wanted.cell.model_copy(update={"threads": 0})})
    with pytest.raises(HarnessFault, match="ValidationError: 1 validation error") as caught:
        runner.run(broken)
    assert "Traceback" in caught.value.trace


def test_without_fork_a_memory_limit_holds_too() -> None:
    with Runner(fork=False) as runner:
        assert runner.run(request("grows")).status == "host_oom"


def test_where_there_is_no_fork_the_runner_spawns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not Runner().forks
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delattr(os, "pidfd_open")
    assert not Runner().forks


def test_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(RunDirectoryError, match="set TMPDIR"):
        Runner().run(request("grows"))


def test_a_worker_that_could_not_write_its_result_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RunDirectoryError, match="free some space"):
        unfinished_row(request("grows"), CellFiles(tmp_path / "gone"), Ended(exit_code=1), None)


def test_predictions_that_do_not_fit_stop_the_sweep(tmp_path: Path) -> None:
    files = CellFiles(tmp_path)
    files.predictions_path.write_bytes(b"x")
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(RunDirectoryError, match="cannot write to"):
        files.deliver_predictions(tmp_path / "run" / "predictions" / "k.npz")


HOLDER = """
import os, sys, time
from pathlib import Path
from longvis_bench.runs.directory import RunDirectory
with RunDirectory(Path("run")):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


def test_the_lock_is_kept_by_its_holder_and_by_no_orphan_of_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunDirectoryError, match="another longvis run"), RunDirectory(Path("run")):
            pass
        holder.stdin.write(b"\n")
        holder.stdin.close()
        assert holder.wait(10) == 9
        with RunDirectory(Path("run")):  # while the orphan sleeps
            os.killpg(holder.pid, 0)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


@pytest.mark.alone
def test_a_second_interrupt_ends_everything_at_once() -> None:
    command = [sys.executable, "-m", "longvis_bench", "bench", "--models", "moody-hangs", "--res", "64"]
    command += ["--models-dir", str(FAMILIES), "--out", "run", "--device", "cpu"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(psutil.Process(process.pid).children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - start < 2
    assert "Ended at once" in output
    _, alive = psutil.wait_procs(family, timeout=1)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
