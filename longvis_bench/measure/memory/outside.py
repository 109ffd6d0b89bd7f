"""Memory of a process on the GPU beyond torch's allocator: CUDA's context, kernels' code, libraries.

Whether a cell fits depends on it, too: what the allocator reserves and this together have to fit.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import torch

from longvis_bench.devices import nvml_handle, start_nvml, whole_gpu
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import MemoryRecord


def used_by_gpu() -> dict[str, int]:
    """Bytes that all processes hold on each whole GPU, by its UUID without `GPU-`; empty without NVML."""
    nvml = start_nvml()
    found = {}
    with suppress(Exception):  # no driver, no package, or one that does not answer
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(gpu)
            uuid = uuid.decode() if isinstance(uuid, bytes) else uuid
            found[uuid.removeprefix("GPU-")] = int(nvml.nvmlDeviceGetMemoryInfo(gpu).used)
    return found


def with_outside(record: MemoryRecord, builder: RowBuilder) -> MemoryRecord:
    """The record with what this process holds beyond the allocator; if that is unknown, the row says why."""
    if builder.gpu_uuid is None:
        return record
    device = torch.device("cuda", builder.gpu_index or 0)
    found = outside_bytes(device, builder.gpu_used_bytes.get(builder.gpu_uuid))
    if found is None:
        builder.null_reasons["outside_memory_bytes"] = "NVML does not tell what this process holds on the GPU"
    return record.model_copy(update={"outside_bytes": found})


def _used_bytes(uuid: str) -> int | None:
    """Bytes that all processes hold on a GPU or a slice of one; None where NVML does not tell."""
    nvml = start_nvml()
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml_handle(nvml, uuid)).used)
    except Exception:  # no driver, no package, no such GPU, or one that does not answer
        return None


def outside_bytes(device: torch.device, used_before: int | None) -> int | None:
    """Bytes that this process holds on a CUDA device now and that torch's allocator has not reserved.

    NVML is asked for this process; in a container, where NVML knows it under another number, it is what the
    device holds more than before the process used it, other processes' changes included.

    Arguments:
        device: the CUDA device.
        used_before: of the device, before this process started CUDA; see `used_by_gpu`.

    Returns:
        None where NVML does not tell.
    """
    torch.cuda.synchronize(device)
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    held, now = _held_by(os.getpid(), uuid), _used_bytes(uuid)
    if held is None and now is not None and used_before is not None:
        held = now - used_before
    return None if held is None else max(0, held - torch.cuda.memory_reserved(device))


def _held_by(pid: int, uuid: str) -> int | None:
    """Bytes that a process holds on a GPU."""
    nvml: Any = start_nvml()
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(whole_gpu(nvml, nvml_handle(nvml, uuid)))
        found = [process.usedGpuMemory for process in processes if process.pid == pid]
    except Exception:
        return None
    return sum(found) if found and None not in found else None
