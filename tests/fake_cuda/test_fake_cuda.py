"""The CUDA paths with torch's real CUDA build and a driver without a device: `pytest -m fake_cuda`.

README.md of this folder says what such a run can tell and what it cannot.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fake_cuda
BUILD = Path(__file__).with_name("build.py")
ROOT = Path(__file__).parents[2]
NANO = "atlas-n,convnext-n,fastervit-n,longvit-n,mambavision-n,swin-n,vit-n"
SOME = "mambavision-n,swin-n,vit-n"
"""A scan, attention of products and flash attention; `make fake-cuda` has all families."""
models = pytest.mark.parametrize("models", [SOME, pytest.param(NANO, marks=pytest.mark.slow)])


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the driver, built once per session."""
    folder = tmp_path_factory.mktemp("driver")
    built = subprocess.run([sys.executable, BUILD, folder], capture_output=True, text=True)
    if built.returncode == 3:
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stderr[-2000:]
    return folder


def under(driver: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Python under the driver, on GPUs of this process alone, so that it waits for no other test."""
    command = [sys.executable, str(BUILD), str(driver), sys.executable, *arguments]
    own = {"FAKE_UUID": str(os.getpid())}
    return subprocess.run(
        command, env={**os.environ, **own, **settings}, capture_output=True, text=True, timeout=400
    )


def run(driver: Path, code: str, **settings: str) -> Any:
    """The last line that a program prints, read as JSON."""
    done = under(driver, "-c", code, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def bench(driver: Path, out: Path, *arguments: str, **settings: str) -> list[dict[str, Any]]:
    """The rows of `longvis bench` on the driver's device."""
    device = () if "--device" in arguments else ("--device", "cuda")
    done = under(
        driver, "-m", "longvis_bench", "bench", "--quick", "--out", str(out), *arguments, *device, **settings
    )
    assert (out / "cells.jsonl").exists(), done.stderr[-2000:]
    return [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]


def statuses(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {f"{row['cell']['model']} {row['cell']['mode']}": row["status"] for row in rows}


def model_file(folder: Path, forward: str) -> str:
    """A model whose forward runs a line of code; the name to ask for it."""
    (folder / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, classes):\n        super().__init__()\n"
        "        self.head = nn.Linear(3, classes)\n\n"
        f"    def forward(self, x):\n        {forward}\n        return self.head(x.mean((2, 3)))\n\n\n"
        "def build(*, resolution, num_classes, in_chans=3):\n    return Net(num_classes)\n"
    )
    return f"{folder / 'net.py'}:build"


def test_each_gpu_is_timed_on_its_own_clock(driver: Path) -> None:
    """Ten kernels of 20 ms take 200 ms on either GPU, whichever is the current one."""
    code = (
        "import json, torch\n"
        "from longvis_bench.measure.latency.clock import clock_for\n"
        "seconds = []\n"
        "for name in ('cuda:0', 'cuda:1'):\n"
        "    a = torch.ones(1000, 1000, device=name)\n"
        "    seconds.append(clock_for(torch.device(name)).time(lambda: [a.add_(1) for _ in range(10)]))\n"
        "print(json.dumps(seconds))"
    )
    assert run(driver, code, FAKE_DEVICES="2", FAKE_KERNEL_US="20000") == pytest.approx([0.2, 0.2], rel=0.1)


def test_the_second_of_two_kinds_of_gpu_is_the_one_that_is_used(driver: Path, tmp_path: Path) -> None:
    code = "assert torch.cuda.current_device() == 1, torch.cuda.current_device()"
    names = "NVIDIA H100 80GB HBM3;NVIDIA A100-SXM4-80GB"
    (row,) = bench(
        driver,
        tmp_path / "run",
        *("--models", model_file(tmp_path, code), "--res", "64", "--device", "cuda:1", "--budget", "0.1"),
        *("--metrics", "time,memory"),
        FAKE_DEVICES="2",
        FAKE_NAME=names,
    )
    assert "AssertionError" not in (row["reason"] or "")
    assert row["timing"], row["reason"]
    assert row["backends"]["device"] == "NVIDIA A100-SXM4-80GB"


def test_a_cell_without_enough_memory_is_oom_and_the_next_runs(driver: Path, tmp_path: Path) -> None:
    rows = bench(
        driver,
        tmp_path / "run",
        *("--models", "convnext-n,convnext-l", "--res", "512", "--mode", "train", "--budget", "0.1"),
        *("--metrics", "time,memory"),
        FAKE_MEMORY=str(2 << 30),
    )
    assert statuses(rows) == {"convnext-n train": "ok", "convnext-l train": "oom"}


def test_a_hung_kernel_is_ended_by_the_watchdog(driver: Path, tmp_path: Path) -> None:
    name = model_file(tmp_path, "x.is_cuda and torch.cuda._sleep(10**12)")
    (row,) = bench(
        driver,
        tmp_path / "run",
        *("--models", name, "--res", "64", "--timeout", "25", "--metrics", "time"),
    )
    assert row["status"] == "timeout"


KERNELS = """
import json, torch
import torch.nn.functional as F
from longvis_bench.ops.kernel_trace import KERNELS, observe
found = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    q = torch.zeros(1, 12, 1024, 64, device="cuda", dtype=dtype)
    with torch.no_grad(), observe() as seen:
        F.scaled_dot_product_attention(q, q, q)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.inference_mode(), torch.profiler.profile(activities=cpu) as profile:
        F.scaled_dot_product_attention(q, q, q)
    names = {event.key.removeprefix("aten::") for event in profile.key_averages()}
    shown = [kernel for name, kernel in KERNELS.items() if name in names] or ["math"]
    found[str(dtype).removeprefix("torch.")] = [sorted(seen["attention"]), shown]
print(json.dumps(found))
"""


@pytest.mark.parametrize(("capability", "half"), [("75", "efficient"), ("80", "flash"), ("90", "flash")])
def test_the_attention_kernel_is_the_profilers_on_every_generation(
    driver: Path, capability: str, half: str
) -> None:
    found = run(driver, KERNELS, FAKE_CAPABILITY=capability, PYTHONWARNINGS="ignore")
    assert found["float16"] == [[half], [half]]
    assert found["float32"] == [["efficient"], ["efficient"]]
    assert all([seen] == [shown] for seen, shown in found.values())


def test_dilated_attention_takes_head_sizes_that_flash_does_not(driver: Path) -> None:
    code = (
        "import json, torch\n"
        "from longvis_bench.ops.dilated_attention import dilated_attention\n"
        "sizes = []\n"
        "for channels in (16, 20, 12):\n"
        "    q = torch.zeros(1, 64, 4, channels, device='cuda', dtype=torch.bfloat16, requires_grad=True)\n"
        "    y = dilated_attention(q, q, q, [16, 64], [1, 2])\n"
        "    y.sum().backward()\n"
        "    sizes.append(list(y.shape))\n"
        "print(json.dumps(sizes))"
    )
    assert run(driver, code) == [[1, 64, 4, channels] for channels in (16, 20, 12)]


@models
def test_every_family_runs_and_trains_at_1024_px(driver: Path, tmp_path: Path, models: str) -> None:
    rows = bench(
        driver,
        tmp_path / "run",
        *("--models", models, "--res", "1024", "--mode", "infer,train", "--dtype", "bf16"),
        *("--budget", "0.1", "--metrics", "time"),
    )
    assert len(rows) == 2 * len(models.split(","))
    assert {row["cell"]["model"]: row["reason"] for row in rows if row["timing"] is None} == {}
    attention = {row["cell"]["family"]: row["attention"] for row in rows if row["cell"]["mode"] == "infer"}
    every = {
        **dict.fromkeys(["atlas", "longvit", "mambavision", "vit"], "flash"),
        "fastervit": "efficient",  # it has biases
        "swin": "unfused",
        "convnext": None,
    }
    assert attention == {family: every[family] for family in attention}
    assert {row["backends"]["scan"] for row in rows if row["cell"]["family"] == "mambavision"} == {"triton"}


@models
def test_every_family_is_valid_where_the_cpu_computes(driver: Path, tmp_path: Path, models: str) -> None:
    """The CPU computes what the device would, through every step that torch takes for a GPU."""
    rows = bench(
        driver,
        tmp_path / "run",
        *("--models", models, "--res", "256", "--dtype", "bf16", "--budget", "0.1", "--images", "16"),
        *("--memory-limit", "6GiB"),
        FAKE_COMPUTE="10000000",
    )
    assert {row["cell"]["model"]: row["reason"] for row in rows if row["status"] != "ok"} == {}
    count = len(models.split(","))
    assert [row["validity"]["verdict"] for row in rows] == ["ok"] * count
    assert [row["accuracy"]["images"] for row in rows] == [16] * count


@pytest.mark.parametrize("capability", ["75", "90"])
def test_fp32_is_strict_and_tf32_needs_its_tensor_cores(
    driver: Path, tmp_path: Path, capability: str
) -> None:
    rows = bench(
        driver,
        tmp_path / "run",
        *("--models", "convnext-n", "--res", "64", "--dtype", "fp32,tf32", "--mode", "train"),
        *("--budget", "0.1", "--metrics", "time"),
        FAKE_CAPABILITY=capability,
    )
    allowed = {row["cell"]["dtype"]: row["numerics"].get("cudnn_allow_tf32") for row in rows}
    statuses = {row["cell"]["dtype"]: row["status"] for row in rows}
    assert statuses == {"fp32": "ok", "tf32": "ok" if capability == "90" else "unsupported"}
    assert allowed == {"fp32": "false", "tf32": "true" if capability == "90" else None}
    assert rows[0]["timing"]["host_s"], "the host's time stands beside the device's"


@pytest.mark.parametrize(("capability", "warned"), [("75", ["emulated"]), ("80", [])])
def test_bf16_before_ampere_is_marked_as_emulated(
    driver: Path, tmp_path: Path, capability: str, warned: list[str]
) -> None:
    (row,) = bench(
        driver,
        tmp_path / "run",
        *("--models", "vit-n", "--res", "64", "--dtype", "bf16", "--mode", "train"),
        *("--budget", "0.1", "--metrics", "time"),
        FAKE_CAPABILITY=capability,
    )
    assert row["status"] == "ok", row["reason"]
    assert [note["code"] for note in row["notes"] if note["code"] == "emulated"] == warned


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_runs(driver: Path, tmp_path: Path) -> None:
    (row,) = bench(
        driver,
        tmp_path / "run",
        *("--models", "vit-n", "--res", "64", "--compile", "--mode", "train", "--budget", "0.1"),
        *("--metrics", "time", "--timeout", "300"),
        FAKE_COMPUTE="0",
    )
    assert row["status"] == "ok", row["reason"]
    assert row["attention"] == "flash"
    assert list((driver / "inductor").rglob("*.py")), "Inductor wrote no code: nothing was compiled"


def test_acceptance_run_as_far_as_it_can_tell(driver: Path, tmp_path: Path) -> None:
    """`make gpu`: checks that need no speed pass; a second run repeats only what is not ok."""
    report, script = tmp_path / "report.json", str(ROOT / "scripts" / "gpu_check.py")
    names = ["fork_after_imports", "attention_names", "strict_fp32", "out_of_memory"]
    first = under(driver, script, str(report), "--only", ",".join(names), FAKE_COMPUTE="10000000")
    checks = json.loads(report.read_text())["checks"]
    assert {name: checks[name]["verdict"] for name in checks} == dict.fromkeys(names, "ok"), first.stderr[
        -2000:
    ]
    assert all(check["criterion"] and check["seconds"] >= 0 for check in checks.values())
    under(driver, script, str(report), "--only", "packages")
    again = json.loads(report.read_text())["checks"]
    assert {name: again[name] for name in names} == checks
    assert "packages" in again


def test_the_reference_runs_are_accepted(driver: Path, tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "gpu_reference.py")
    done = under(driver, script, "--dry-run", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("capability", "dtype"), [("75", "fp16"), ("80", "bf16")])
def test_the_default_dtype_is_the_gpus_own_and_the_machine_is_named_by_it(
    driver: Path, tmp_path: Path, capability: str, dtype: str
) -> None:
    """The driver has no NVML, so that the process that plans has asked CUDA itself and cannot fork."""
    (row,) = bench(
        driver,
        tmp_path / "run",
        *("--models", "vit-n", "--res", "64", "--metrics", "time", "--budget", "0.1", "--repeats", "1"),
        FAKE_CAPABILITY=capability,
        FAKE_NAME="Tesla T4",
    )
    assert row["cell"]["dtype"] == dtype
    assert row["machine"].startswith("tesla-t4")
    assert (row["cell"]["device"], row["gpu_index"]) == ("cuda", 0)
    assert row["gpu_uuid"]
