"""Real cells on two CPU devices, and the time limit of cells that wait for others."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from longvis_bench.environment import usable_cores
from longvis_bench.isolation.runner import Runner, can_fork
from longvis_bench.measure.latency.turns import ROOM
from longvis_bench.records import Cell, Request, Settings
from longvis_bench.sweep.session import start

FAMILIES = Path(__file__).parents[1] / "families"

pytestmark = pytest.mark.skipif(not can_fork(), reason="needs Linux")


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_two_cpu_devices_end_with_the_keys_of_one() -> None:
    """They time one after the other, so neither can have disturbed the timing of the other."""
    options: dict[str, Any] = {
        "models": ("vit-n", "convnext-n"),
        "resolutions": (32,),
        "metrics": ("count", "time"),
        "budget_s": 0.3,
        "repeats": 1,
    }
    two = start({**options, "devices": "cpu:2x1"}, out=Path("two")).run()
    one = start({**options, "device": "cpu", "threads": 1}, out=Path("one")).run()
    assert [row.status for row in (*two.rows, *one.rows)] == ["ok"] * 4
    assert {row.key for row in two.rows} == {row.key for row in one.rows}
    assert all("wait" in row.overhead_s for row in two.rows)
    assert all("wait" not in row.overhead_s for row in one.rows)
    assert [row.neighbours for row in one.rows] == [0, 0]
    assert max(row.neighbours for row in two.rows) == 1


def test_the_time_limit_leaves_out_the_time_for_which_a_cell_waits(tmp_path: Path) -> None:
    import fcntl

    cell = Cell(
        model="moody-fine",
        family="moody",
        variant="moody-fine",
        implementation="user",
        resolution=64,
        threads=1,
        metrics=("time",),
    )
    settings = Settings(budget_s=0.1, timeout_s=6)
    request = Request(cell=cell, settings=settings, key="k", models_dirs=(FAMILIES,), turns=tmp_path)

    def holds() -> None:
        with (tmp_path / ROOM).open("wb") as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            time.sleep(9)

    with Runner() as runner:
        assert runner.run(request).status == "ok"  # the server has imported torch
        holder = Thread(target=holds)
        holder.start()
        time.sleep(0.3)
        row = runner.run(request)
        holder.join()
    assert row.status == "ok"
    assert row.overhead_s["wait"] > 6


def test_the_processes_of_a_device_have_its_variables_and_processors() -> None:
    Path("net.py").write_text(
        "import os, torch\n"
        "def build(*, resolution, num_classes, in_chans=3):\n"
        "    raise ValueError(f\"{os.environ['CUDA_VISIBLE_DEVICES']} {sorted(os.sched_getaffinity(0))}\")\n"
    )
    cell = Cell(
        model="net.py:build",
        family="net",
        variant="build",
        implementation="user",
        resolution=64,
        metrics=("time",),
    )
    name = f"{Path.cwd()}/net.py:build"
    request = Request(cell=cell, key="k", working_dir=Path.cwd(), model=name)
    for fork in (True, False):
        with Runner(fork, variables={"CUDA_VISIBLE_DEVICES": "GPU-1234"}, processors=(0,)) as runner:
            assert "GPU-1234 [0]" in (runner.run(request).reason or "")
