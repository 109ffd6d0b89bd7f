"""Checks of the machine: packages, compiler, forks, clocks and rates."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from shutil import which
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from gpu_checks.check import Context, Figures, Skip, check
from longvis_bench.environment import read_environment
from longvis_bench.measure.latency.clock import clock_for
from longvis_bench.report.peak_flops import peak_flops

ROOT = Path(__file__).parents[2]
PROBLEM = 8192
"""Rows and columns of the product that clocks are compared with."""


@check(5)
def packages(context: Context) -> tuple[bool, Figures]:
    """Every package that longvis needs is installed; `missing` names the wheels to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], "triton"]
    versions = {name: _version(name) for name in (re.split(r"[<>=\[ ]", line)[0] for line in wanted)}
    missing = [name for name, version in versions.items() if version is None]
    return missing == [], {"missing": missing, "installed": versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@check(20)
def machine(context: Context) -> tuple[bool, Figures]:
    """Compute capability 7.5 or newer, a C compiler and Python.h for Triton."""
    found = torch.cuda.get_device_properties(context.device)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = which("gcc") or which("clang")
    figures = {
        "name": found.name,
        "capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "compiler": compiler,
        "python_h": header.exists(),
        "environment": read_environment().model_dump(mode="json"),
    }
    return (found.major, found.minor) >= (7, 5) and bool(compiler) and header.exists(), figures


@check(30)
def fork_after_imports(context: Context) -> tuple[bool, Figures]:
    """What the fork server imports does not start CUDA, and a fork of it can use the GPU."""
    code = (
        "import os, torch, timm, longvis_bench.measure.cell\n"
        "started = torch.cuda.is_initialized()\n"
        "child = os.fork()\n"
        f"if child == 0:\n    os._exit(0 if torch.zeros(1, device={context.device!r}).item() == 0 else 9)\n"
        "print(started, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment
    )
    return done.stdout.split() == ["False", "0"], {"said": done.stdout, "stderr": done.stderr[-500:]}


@check(20)
def clock(context: Context) -> tuple[bool, Figures]:
    """Events and the host's clock agree within 5 %; twice the cycles of sleep take 1.9-2.1 times the time."""
    timer, product = clock_for(torch.device(context.device)), _product(context.device)
    events, host = _median_time(timer.time, product), _median_time(_on_host(context.device), product)
    sleeps = [
        min(timer.time(lambda n=cycles: torch.cuda._sleep(n)) for _ in range(5))  # type: ignore[misc,no-untyped-call]
        for cycles in (20_000_000, 40_000_000)
    ]
    figures = {"events_s": events, "host_s": host, "sleeps_s": sleeps}
    return abs(host / events - 1) < 0.05 and 1.9 < sleeps[1] / sleeps[0] < 2.1, figures


@check(20)
def rate(context: Context) -> tuple[bool, Figures]:
    """A large bf16 product reaches 50-100 % of the peak that is recorded for the GPU."""
    name = torch.cuda.get_device_name(context.device)
    peak = peak_flops(name, "bf16")
    if peak is None:
        raise Skip(f"no peak is recorded for {name}")
    seconds = _median_time(clock_for(torch.device(context.device)).time, _product(context.device))
    share = 2 * PROBLEM**3 / seconds / peak
    return 0.5 < share <= 1.0, {"seconds": seconds, "share_of_peak": share}


@check(20)
def second_gpu(context: Context) -> tuple[bool, Figures]:
    """The same product takes the same time on two GPUs of one kind, within 25 %."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if len(names) < 2 or names[0] != names[1]:
        raise Skip("no two GPUs of one kind: " + ", ".join(names))
    seconds = [_median_time(clock_for(torch.device(d)).time, _product(d)) for d in ("cuda:0", "cuda:1")]
    return 0.8 < seconds[1] / seconds[0] < 1.25, {"seconds": seconds}


def _product(device: str) -> Callable[[], Tensor]:
    matrix = torch.randn(PROBLEM, PROBLEM, device=device, dtype=torch.bfloat16)
    return lambda: matrix @ matrix


def _on_host(device: str) -> Callable[[Callable[[], object]], float]:
    def time(work: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        start = perf_counter()
        work()
        torch.cuda.synchronize(device)
        return perf_counter() - start

    return time


def _median_time(time: Callable[[Callable[[], object]], float], work: Callable[[], object]) -> float:
    return median([time(work) for _ in range(15)][5:])
