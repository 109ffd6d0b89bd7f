"""Devices that torch can run on, and the GPU behind each: asked without starting CUDA in this process.

Which GPU is `cuda:1` is torch's to say (CUDA_VISIBLE_DEVICES hides GPUs and orders them); what NVML tells of
it is found by its UUID.  Imports no torch before a question needs it.

Reference: NVIDIA, NVML API; CUDA C++ Programming Guide, table of features per compute capability.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from longvis_bench.errors import DeviceError

TF32_CAPABILITY = (8, 0)
"""Compute capability from which on NVIDIA GPUs have TF32 tensor cores (Ampere)."""
BF16_CAPABILITY = (8, 0)
"""The same for bf16; older GPUs emulate it, slowly."""
ASK_LIMIT_S = 60.0
"""Seconds after which a driver that does not answer counts as none."""
MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, or a slice of one, as torch sees it."""

    index: int
    """The N of `cuda:N`."""
    name: str
    uuid: str
    """Without the prefix `GPU-` or `MIG-`."""
    capability: tuple[int, int]


def resolve_device(asked: str) -> str:
    """The device to run on: `auto` picks CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: the device asked for is unknown or not there.
    """
    if asked == "cpu" or (asked == "auto" and not may_have_accelerator()):
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


def may_have_accelerator() -> bool:
    """Whether it is worth the seconds of importing torch to look for one."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    nvidia = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    return nvidia or Path("/dev/dri").exists()


def kind_of(device: str) -> str:
    """`cuda:1` -> `cuda`: what decides a number, where the index says on which of several equal ones."""
    return device.partition(":")[0]


def half_dtype(device: str) -> str:
    """The 16-bit dtype that a GPU computes natively: bf16, before Ampere fp16; bf16 where that is unknown."""
    gpu = gpu_of(device)
    return "fp16" if gpu is not None and gpu.capability < BF16_CAPABILITY else "bf16"


def gpu_of(device: str) -> Gpu | None:
    """The NVIDIA GPU that a device of torch is; None for another kind, and where torch does not tell."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    return next((gpu for gpu in torch_gpus() if gpu.index == int(index or 0)), None)


@cache
def torch_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that torch sees, in its order; empty where it has none or the driver fails.

    Another process asks, so that this one keeps no CUDA context, which takes memory on the GPU.
    """
    import torch

    ways = (_in_a_fork, _in_an_interpreter) if hasattr(os, "fork") else (_in_an_interpreter,)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        ways = (read_gpus,)
    for ask in ways:
        with suppress(Exception):  # no driver, or a broken one; forks of what has asked the driver cannot
            return ask()
    return ()


def read_gpus() -> tuple[Gpu, ...]:
    """See `torch_gpus`; starts CUDA in this process."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        seen: Any = torch.cuda.get_device_properties(index)
        found.append(Gpu(index, seen.name, str(seen.uuid), (seen.major, seen.minor)))
    return tuple(found)


def gpus_as_json() -> str:
    """What `read_gpus` gives, as a list of lists: the answer of another interpreter."""
    return json.dumps([astuple(gpu) for gpu in read_gpus()])


def _in_an_interpreter() -> tuple[Gpu, ...]:
    """What a new interpreter answers, after the seconds that importing torch takes."""
    program = "from longvis_bench.devices import gpus_as_json; print(gpus_as_json())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_LIMIT_S, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return tuple(Gpu(index, name, uuid, tuple(capability)) for index, name, uuid, capability in answer)


def _in_a_fork() -> tuple[Gpu, ...]:
    """What a forked process answers; empty where it does not answer in time.

    Raises:
        EOFError: it ended without an answer.
    """
    from multiprocessing import get_context

    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def answer() -> None:
        with suppress(Exception):
            theirs.send(read_gpus())

    process = context.Process(target=answer, daemon=True)
    process.start()
    theirs.close()  # so that the other end of a dead process is seen to be closed
    try:
        found: tuple[Gpu, ...] = ours.recv() if ours.poll(ASK_LIMIT_S) else ()
        return found
    finally:
        process.kill()
        process.join()


def gpu_details(device: str) -> dict[str, str]:
    """The GPU that a device of torch is, as NVML describes it, under the keys of `nvml_details`.

    Of a device that is none, the machine's GPU, if all of its GPUs are of one kind.  Empty where nothing is
    known.
    """
    gpu = gpu_of(device)
    if gpu is not None:
        return {"name": gpu.name, **nvml_details(gpu.uuid)}
    if kind_of(device) == "cuda":
        return {}
    found = machine_gpus()
    return found[0] if found and found.count(found[0]) == len(found) else {}


@cache
def machine_gpus() -> tuple[dict[str, str], ...]:
    """Every NVIDIA GPU of this machine, hidden ones too, under the keys of `nvml_details`."""
    nvml = start_nvml()
    if nvml is None:
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except Exception:
        return ()
    return tuple(_details(nvml, handle) for handle in handles)


def nvml_details(uuid: str) -> dict[str, str]:
    """What NVML tells of a GPU: `name`, `driver`, `memory`, `power_limit`, `ecc`, `mig`.

    Arguments:
        uuid: as torch gives it.

    Returns:
        Without what the GPU or the driver does not tell; empty without driver or package.
    """
    nvml = start_nvml()
    if nvml is None:
        return {}
    try:
        return _details(nvml, nvml_handle(nvml, uuid))
    except Exception:  # the driver knows no such GPU
        return {}


def start_nvml() -> Any:
    """The module `pynvml`, ready to be asked; None without the package nvidia-ml-py or without a driver."""
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return None
    return nvml


def nvml_handle(nvml: Any, uuid: str) -> Any:
    """NVML's handle of a GPU, or of a slice of one (MIG).

    Arguments:
        nvml: see `start_nvml`.
        uuid: as torch gives it, without a prefix.

    Raises:
        Exception: NVML knows no such GPU.
    """
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{bare}")
    except Exception:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{bare}")


def visible_name(uuid: str) -> str:
    """What CUDA_VISIBLE_DEVICES calls a GPU, or a slice of one (MIG).

    Arguments:
        uuid: as torch gives it, without a prefix.
    """
    bare, nvml = uuid.removeprefix("GPU-").removeprefix("MIG-"), start_nvml()
    with suppress(Exception):  # a whole GPU, or nobody to ask
        nvml.nvmlDeviceGetHandleByUUID(f"MIG-{bare}")
        return f"MIG-{bare}"
    return f"GPU-{bare}"


def whole_gpu(nvml: Any, handle: Any) -> Any:
    """The GPU that a slice is of, which has the sensors, limits and modes; a whole GPU is its own."""
    with suppress(Exception):
        if nvml.nvmlDeviceIsMigDeviceHandle(handle):
            return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return handle


def _details(nvml: Any, handle: Any) -> dict[str, str]:
    whole = whole_gpu(nvml, handle)
    questions: dict[str, Callable[[], str]] = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "memory": lambda: f"{nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB} MiB",
        "power_limit": lambda: f"{nvml.nvmlDeviceGetPowerManagementLimit(whole) / 1000:.2f} W",
        "ecc": lambda: _mode(nvml.nvmlDeviceGetEccMode(whole)),
        "mig": lambda: _mode(nvml.nvmlDeviceGetMigMode(whole)),
    }
    found = {}
    for name, ask in questions.items():
        with suppress(Exception):  # not every GPU and driver answers every question
            found[name] = ask()
    return found


def _text(answer: str | bytes) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer


def _mode(answer: Any) -> str:
    """The present one of a (present, after the next restart) pair."""
    return "Enabled" if answer[0] else "Disabled"
