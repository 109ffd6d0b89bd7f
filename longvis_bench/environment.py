"""The measuring machine: processor, GPU, system and versions; nothing that identifies a person or a host."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from longvis_bench.devices import gpu_details
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
GIB = 1 << 30


def read_environment(machine: str | None = None, device: str = "cpu") -> Environment:
    """The environment of this process.

    Arguments:
        machine: name of the machine; by default GPU or processor model and core count.
        device: where it runs, in torch's words; GPUs of one kind make one environment, whatever their index.
    """
    processor, cores = _processor(), usable_cores()
    details = gpu_details(device)
    gpu, driver = details.get("name"), details.get("driver")
    described = {name: value for name, value in details.items() if name != "driver"}
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
        flags=read_flags(os.environ),
        cpu=cpu_details(),
        gpus=(described,) if described else (),
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
