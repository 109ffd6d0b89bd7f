"""A training step on several devices together: two gloo processes on the CPU."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import longvis_bench.sweep.plan as plan_module
from longvis_bench.environment import usable_cores
from longvis_bench.errors import DeviceError, LongvisError
from longvis_bench.isolation.runner import can_fork
from longvis_bench.measure.cell import measure_cell
from longvis_bench.measure.world import Failure, world_devices
from longvis_bench.records import Cell, Request, Row, WorldRecord
from longvis_bench.report.columns import BY_NAME, null_reason
from longvis_bench.report.grouping import Grouped
from longvis_bench.sweep.session import start

FAMILIES = Path(__file__).parents[1] / "families"
OPTIONS: dict[str, Any] = {
    "models": ("vit-n",),
    "resolutions": (32,),
    "modes": ("train",),
    "metrics": ("count", "time", "memory"),
    "device": "cpu",
    "threads": 1,
    "world": 2,
    "budget_s": 0.5,
    "repeats": 1,
}
two_cores = pytest.mark.skipif(usable_cores() < 2 or not can_fork(), reason="needs Linux and two cores")


@two_cores
def test_two_processes_train_together() -> None:
    outcome = start(OPTIONS, out=Path("run")).run()
    (row,) = outcome.rows
    assert row.status == "ok", (row.reason, row.log_tail)
    assert row.world is not None
    assert row.timing is not None
    assert row.memory is not None
    assert row.world.backend == "gloo"
    assert len(row.world.rank_peak_bytes) == 2
    assert row.memory.peak_bytes == max(row.world.rank_peak_bytes)
    assert min(row.world.rank_peak_bytes) > 0
    assert len(row.timing.samples_s) >= 6
    values = {name: BY_NAME[name].value(row) for name in ("throughput_img_s", "latency_median_s")}
    assert values["throughput_img_s"] == pytest.approx(2 / values["latency_median_s"])  # type: ignore[operator]
    efficiency = BY_NAME["scaling_efficiency"].value(row)
    assert isinstance(efficiency, float)
    assert efficiency > 0
    assert "--world" in (null_reason(BY_NAME["top1"], row) or "")


@pytest.mark.parametrize("fault", ["failure", "nothing"])
def test_a_failure_of_torchrun_is_a_row(fault: str, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **options: object) -> object:
        folder = Path(command[-1]).parent
        if fault == "failure":
            text = Failure(status="oom", reason="rank 1: no memory").model_dump_json()
            (folder / "failure-1.json").write_text(text)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fails)
    wanted = cell.model_copy(update={"world": 2, "mode": "train", "metrics": ("time",)})
    row = measure_cell(Request(cell=wanted, models_dirs=(FAMILIES,)))
    found = {"failure": ("oom", "rank 1: no memory"), "nothing": ("crashed", "a rank ended without a result")}
    status, words = found[fault]
    assert row.status == status
    assert words in (row.reason or "")
    assert row.world is None


@pytest.mark.slow
@two_cores
def test_a_rank_that_fails_gives_its_reason() -> None:
    Path("net.py").write_text(
        "import os, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(3, n)\n"
        "    def forward(self, x):\n"
        "        if os.environ.get('RANK') == '1':\n"
        "            raise ValueError('not here')\n"
        "        return self.head(x.mean((2, 3)))\n"
        "def build(*, resolution, num_classes, in_chans=3):\n"
        "    return Net(num_classes)\n"
    )
    outcome = start({**OPTIONS, "models": ("net.py:build",), "metrics": ("time",)}, out=Path("run")).run()
    (row,) = outcome.rows
    assert row.status == "error"
    assert "rank 1: ValueError: not here" in (row.reason or "")
    assert row.timing is None


def test_efficiency_is_that_of_the_images_per_second(row: Row) -> None:
    from longvis_bench.records import TimingRecord

    timing = TimingRecord(samples_s=(0.5,) * 8, warmup_s=(), verdict="stable")
    cell = row.cell.model_copy(update={"world": 4, "batch_size": 2, "mode": "train"})
    world = WorldRecord(backend="nccl", one_device_s=(0.4,) * 8, rank_peak_bytes=(5, 7, 6, 5))
    found = row.model_copy(update={"cell": cell, "timing": timing, "world": world})
    assert BY_NAME["throughput_img_s"].value(found) == pytest.approx(4 * 2 / 0.5)
    assert BY_NAME["scaling_efficiency"].value(found) == pytest.approx((4 * 2 / 0.5) / (4 * 2 / 0.4))
    assert BY_NAME["rank_peak_memory_bytes"].value(found) == "[5, 7, 6, 5]"
    alone = found.model_copy(update={"cell": cell.model_copy(update={"world": 1}), "key": "1" * 16})
    assert len(Grouped([found, alone]).series) == 2
    assert sorted(Grouped([found, alone]).series) == ["moody-fine", "moody-fine, 4 devices together"]


def test_the_devices_of_the_ranks() -> None:
    assert world_devices("cpu", 2) == ("cpu", "cpu")
    assert world_devices("cuda", 3) == ("cuda:0", "cuda:1", "cuda:2")
    assert world_devices("cuda:2", 2) == ("cuda:2", "cuda:3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modes": ("infer",)}, "give --mode train"),
        ({"modes": ("infer", "train")}, "give --mode train"),
        ({"batch_sizes": ("auto",)}, "leave --batch auto out"),
        ({"devices": "cpu:2x1"}, "leave --devices out"),
        ({"world": 9}, r"--world 9 needs 9 cores \(1 per process\), and this process may use 8"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import longvis_bench.sweep.devices as devices_module

    for module in (plan_module, devices_module):
        monkeypatch.setattr(module, "usable_cores", lambda: 8)
    with pytest.raises((LongvisError, DeviceError), match=words):
        start({**OPTIONS, **options})


def test_runs_of_one_device_keep_their_names() -> None:
    one = start({**OPTIONS, "world": 1, "models": ("vit-n",)}).plan.config
    assert "world" not in one.name
    assert one.name != start(OPTIONS).plan.config.name
