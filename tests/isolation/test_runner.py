"""Every way a cell can end gives one row with the right status, and the next cell is fine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from longvis_bench.isolation.runner import Runner
from longvis_bench.records import Cell, Request, Settings
from longvis_bench.text import without_paths

pytestmark = pytest.mark.real_server
FAMILIES = Path(__file__).parents[1] / "families"
QUICK = Settings(budget_s=0.2, timeout_s=60)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


def request(mood: str, settings: Settings = QUICK) -> Request:
    cell = Cell(
        model=f"moody-{mood}",
        family="moody",
        variant=f"moody-{mood}",
        implementation="user",
        resolution=64,
        threads=1,
    )
    return Request(cell=cell, settings=settings, key="k", models_dirs=(FAMILIES,))


def test_nothing_of_a_cell_outlives_it(runner: Runner) -> None:
    runner.run(request("leaves-child"))
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert not [command for command in commands if "os.setsid(); time.sleep(300)" in command]


@pytest.mark.alone
def test_starting_a_cell_is_cheap(runner: Runner) -> None:
    runner.run(request("fine"))
    rows = [runner.run(request("fine")) for _ in range(5)]
    assert sorted(row.overhead_s["start"] + row.overhead_s["teardown"] for row in rows)[2] < 1.0
    assert {"start", "import", "build", "time", "other", "teardown"} <= set(rows[0].overhead_s)


def test_every_cell_has_a_fresh_process(runner: Runner) -> None:
    first, second = runner.run(request("fine")), runner.run(request("fine"))
    assert first.memory is not None
    assert second.memory is not None
    assert second.memory.baseline_bytes == pytest.approx(first.memory.baseline_bytes, rel=0.1)


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_nothing_is_alive_a_second_after_the_parent_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_runner as t\n"
        "from longvis_bench.isolation.runner import Runner\n"
        "with Runner() as r:\n"
        "    r.run(t.request('leaves-child')); print('ready', flush=True); r.run(t.request('hangs'))\n"
    )
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", code, here], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    time.sleep(0.5)
    family += psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(set(family), timeout=1)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no server elsewhere")
def test_a_server_whose_parent_died_before_it_could_ask_to_be_told_ends_at_once() -> None:
    command = [
        sys.executable,
        "-c",
        "import longvis_bench.isolation.fork_server as s, sys; s.main(); print(*sys.modules)",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ours, theirs = os.pipe()
    os.close(theirs)
    try:
        done = subprocess.run(
            command, stdin=ours, capture_output=True, text=True, env=environment, check=True
        )
    finally:
        os.close(ours)
    assert "timm" not in done.stdout.split()


def test_an_interrupt_ends_the_cell(runner: Runner) -> None:
    ticks = []

    def interrupt() -> None:
        ticks.append(1)
        if len(ticks) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(request("hangs"), interrupt)
    assert runner.run(request("fine")).status == "ok"


def test_without_fork_a_cell_is_a_new_interpreter() -> None:
    with Runner(fork=False) as runner:
        assert not runner.forks
        assert runner.run(request("fine")).status == "ok"
        assert "exit code 3 and no result" in (runner.run(request("leaves")).reason or "")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("no file /home/me/data/x.pt there", "no file x.pt there"),
        ("C:\\Users\\me\\x.pt", "x.pt"),
        ("1/2 of the images", "1/2 of the images"),
        ("https://github.com/a/b", "https://github.com/a/b"),
        ("error:/opt/data/x.pt", "error:x.pt"),
        (f"in {Path.home()}", "in ~"),
        (f"in {Path.home()}/lib/x.py", "in x.py"),
        ("models/own/net.py", "models/own/net.py"),
    ],
)
def test_rows_name_no_folders(text: str, clean: str) -> None:
    assert without_paths(text) == clean
