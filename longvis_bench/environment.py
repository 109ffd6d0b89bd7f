"""The measuring machine: processor, GPU, system and versions; nothing that identifies a person or a host."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from longvis_bench.errors import DeviceError
from longvis_bench.records import Environment
from longvis_bench.registry.discovery import required_packages

PACKAGES = ("torch", "timm", "numba", "triton", "numpy", "mamba-ssm")
"""Packages whose version can change a number, in addition to those that the built-in cards require."""
_CUDA_LIBRARIES = ("nvidia-cublas", "nvidia-cudnn", "nvidia-cuda-runtime")
FLAGS = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "GOMP_CPU_AFFINITY",
    "LD_PRELOAD",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TIMM_FUSED_ATTN",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Environment variables that can change a number."""
FLAG_PREFIXES = ("KMP_", "MALLOC_", "TORCHINDUCTOR_", "TORCH_CUDNN_", "TRITON_")
"""Prefixes of further ones; those with a suffix of `_PATH_SUFFIXES` hold only a path and are left out."""
_PATH_SUFFIXES = ("_CACHE_DIR", "_DIR", "_PATH", "_HOME")
_GPU_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "power_limit": "power.limit",
    "ecc": "ecc.mode.current",
    "mig": "mig.mode.current",
}
"""Key in `Environment.gpus` -> field that nvidia-smi is queried for."""


GIB = 1 << 30


def read_environment(machine: str | None = None) -> Environment:
    """The environment of this process.

    Arguments:
        machine: name of the machine; by default GPU or processor model and core count.
    """
    processor, cores = _processor(), usable_cores()
    gpus = nvidia_gpus()
    gpu = " and ".join(dict.fromkeys(found["name"] for found in gpus if "name" in found)) or None
    return Environment(
        machine=machine or machine_name(gpu or processor, cores),
        processor=processor,
        cores=cores,
        memory_bytes=_memory_bytes(),
        gpu=gpu,
        driver=gpus[0].get("driver") if gpus else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
        flags=read_flags(os.environ),
        cpu=cpu_details(),
        gpus=tuple({name: value for name, value in found.items() if name != "driver"} for found in gpus),
    )


def machine_name(model: str, cores: int) -> str:
    """A name that is legal for a folder: `Intel(R) Xeon(R) @ 2.60GHz` and 2 -> `intel-xeon-2.60ghz-2c`."""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@", " ", model.lower())
    return f"{re.sub(r'[^a-z0-9.]+', '-', plain).strip('-')}-{cores}c"


def usable_cores() -> int:
    """Number of cores this process may use: its CPU affinity, limited by the CPU quota of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def default_threads() -> int:
    """Default number of CPU threads: OMP_NUM_THREADS if it is set, else all usable cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if re.fullmatch(r"[1-9]\d{0,3}", asked, re.ASCII) else usable_cores()


def resolve_device(asked: str) -> str:
    """The device to run on: `auto` picks CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: the device is unknown, or this machine does not have it.
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
    """Devices that torch finds, fastest first; the check queries the driver and does not initialise CUDA."""
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
    """Whether this machine may have an accelerator, so that torch has to be imported (seconds) to check."""
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
    """Total memory, rounded to whole GiB, because a restart of the same machine changes it by a few pages."""
    import psutil

    return round(psutil.virtual_memory().total / GIB) * GIB


def read_flags(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change a number; paths are reduced to file names, which identify no person."""
    names = (name for name in sorted(variables) if name in FLAGS or name.startswith(FLAG_PREFIXES))
    kept = (name for name in names if not name.endswith(_PATH_SUFFIXES))
    return {name: re.sub(r"[^\s:,;=]*/", "", variables[name]) for name in kept}


def cpu_details(file: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Details that distinguish processors of one marketing name, and the nominal clock if it is known."""
    try:
        first = file.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    listed = {name.strip(): value.strip() for name, _, value in pairs}
    fields = {"vendor": "vendor_id", "family": "cpu family", "model": "model", "stepping": "stepping"}
    found = {key: listed[field] for key, field in fields.items() if field in listed}
    clock = _nominal_clock(listed.get("model name", ""))
    return found | ({"nominal_clock": clock} if clock else {})


def _nominal_clock(name: str) -> str | None:
    """The base clock: from the cpufreq driver, else from the processor's name (`@ 2.60GHz`)."""
    try:
        khz = int(Path("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency").read_text())
        return f"{khz / 1e6:.2f} GHz"
    except (OSError, ValueError):
        found = re.search(r"@\s*([\d.]+)\s*GHz", name)
        return f"{float(found[1]):.2f} GHz" if found else None


@cache
def nvidia_gpus() -> tuple[dict[str, str], ...]:
    """Properties of each NVIDIA GPU (keys of `_GPU_FIELDS`), as far as nvidia-smi reports them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, f"--query-gpu={','.join(_GPU_FIELDS.values())}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (dict(zip(_GPU_FIELDS, line.split(","), strict=False)) for line in done.stdout.splitlines())
    return tuple({name: text for name, value in row.items() if (text := _reported(value))} for row in rows)


def _reported(value: str) -> str:
    """A value of nvidia-smi; empty if the GPU or the driver reports none (`[N/A]`, `[Not Supported]`)."""
    text = value.strip()
    return "" if text.startswith("[") else text


def _versions() -> dict[str, str]:
    """Package -> version: of torch with its build (`2.11.0+cu130`), and of its CUDA libraries."""
    versions = {}
    libraries = sorted(name for name in _installed() if name.startswith(_CUDA_LIBRARIES))
    for name in (*PACKAGES, *required_packages(), *libraries):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions | _torch_build()


def _installed() -> set[str]:
    names = (distribution.metadata["Name"] for distribution in importlib.metadata.distributions())
    return {name.lower() for name in names if name}


def _torch_build() -> dict[str, str]:
    """Full versions of torch and its CUDA, read from torch's `version.py`: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    try:
        text = Path(str(spec and spec.origin)).with_name("version.py").read_text()
    except OSError:
        return {}
    patterns = {"torch": r"^__version__ = '([^']+)'", "cuda": r"^cuda\b[^=]*= '([^']+)'"}
    found = {name: re.search(pattern, text, re.MULTILINE) for name, pattern in patterns.items()}
    return {name: match[1] for name, match in found.items() if match}
