"""Where a measurement runs: processor, GPU, system and versions; nothing that names a person or a host."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from longvis_bench.errors import DeviceError
from longvis_bench.records import Environment
from longvis_bench.registry.discovery import required_packages

PACKAGES = ("torch", "timm", "numba", "triton", "numpy", "mamba-ssm")
"""Packages whose version can change a number, beside those that the built-in cards require."""
FLAGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "PYTORCH_CUDA_ALLOC_CONF",
    "NUMBA_NUM_THREADS",
)
"""Environment variables that can change a number."""


GIB = 1 << 30


def read_environment(machine: str | None = None) -> Environment:
    """The environment of this process.

    Arguments:
        machine: a name to use instead of the processor or GPU model and core count.
    """
    processor, cores = _processor(), usable_cores()
    gpu, driver = _gpu()
    return Environment(
        machine=machine or machine_name(gpu or processor, cores),
        processor=processor,
        cores=cores,
        memory_bytes=_memory_bytes(),
        gpu=gpu,
        driver=driver,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
        flags={name: os.environ[name] for name in FLAGS if name in os.environ},
    )


def machine_name(model: str, cores: int) -> str:
    """A name that fits a folder: `Intel(R) Xeon(R) @ 2.60GHz` and 2 -> `intel-xeon-2.60ghz-2c`."""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@", " ", model.lower())
    return f"{re.sub(r'[^a-z0-9.]+', '-', plain).strip('-')}-{cores}c"


def usable_cores() -> int:
    """Cores this process may run on: its affinity, and in a container its share of processor time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def default_threads() -> int:
    """CPU threads where none are asked for: OMP_NUM_THREADS where it is set, else all usable cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if re.fullmatch(r"[1-9]\d{0,3}", asked, re.ASCII) else usable_cores()


def resolve_device(asked: str) -> str:
    """The device to run on: `auto` picks CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: the device asked for is unknown or not there.
    """
    if asked == "cpu" or (asked == "auto" and not _may_have_accelerator()):
        return "cpu"
    kind = asked.partition(":")[0]
    if kind not in ("auto", "cuda", "mps", "xpu"):
        raise DeviceError(f"unknown device {asked!r}: known are auto, cpu, cuda, cuda:N, mps and xpu.")
    there = available_devices()
    if asked == "auto":
        return there[0]
    if asked not in there:
        raise DeviceError(f"this machine has no {asked} device for torch; it has {', '.join(there)}.")
    return asked


def available_devices() -> list[str]:
    """Devices that torch sees, best first; asks the driver without initialising CUDA."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    found = []
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    return [*found, "cpu"]


def _may_have_accelerator() -> bool:
    """Whether it is worth the seconds of importing torch to look for one."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    nvidia = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    return nvidia or Path("/dev/dri").exists()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_bytes() -> int:
    """To whole GiB: a few pages more or less, after a restart, are no other machine."""
    import psutil

    return round(psutil.virtual_memory().total / GIB) * GIB


@cache
def _gpu() -> tuple[str | None, str | None]:
    """Name of the first NVIDIA GPU and its driver, as its own tool tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, None
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()
        name, _, driver = lines[0].partition(",")
    except (OSError, subprocess.SubprocessError, IndexError):
        return None, None
    return name.strip(), driver.strip() or None


def _versions() -> dict[str, str]:
    versions = {}
    for name in (*PACKAGES, *required_packages()):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
