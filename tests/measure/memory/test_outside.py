"""What a process holds on a GPU beyond torch's allocator, as NVML tells it."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longvis_bench.measure.memory.outside import outside_bytes, used_by_gpu

MIB = 1 << 20
CUDA = torch.device("cuda")


class FakeNvml:
    """As much of pynvml as is asked for: a GPU with 900 MiB in use, and the processes that hold it."""

    processes: tuple[tuple[int, int | None], ...] = ()

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-12-34"
        return uuid

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return "GPU-12-34"

    def nvmlDeviceGetUUID(self, gpu: str) -> str:  # noqa: N802
        return gpu

    def nvmlDeviceGetMemoryInfo(self, gpu: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=900 * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: str) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 200 * MIB)
    return fake


def test_the_processs_own_memory_counts_whatever_others_hold(nvml: FakeNvml) -> None:
    nvml.processes = ((1, 400 * MIB), (os.getpid(), 500 * MIB))
    assert outside_bytes(CUDA, None) == outside_bytes(CUDA, 0) == 300 * MIB


@pytest.mark.parametrize("processes", [(), ((1, 400 * MIB),), ((os.getpid(), None),)])
def test_where_the_process_is_not_listed_it_is_what_came_since(
    processes: tuple[tuple[int, int | None], ...], nvml: FakeNvml
) -> None:
    """In a container the numbers of processes are others, and on Windows NVML knows no process's memory."""
    nvml.processes = processes
    assert used_by_gpu() == {"12-34": 900 * MIB}
    assert outside_bytes(CUDA, 300 * MIB) == 400 * MIB
    assert outside_bytes(CUDA, None) is None


def test_without_nvml_nothing_is_known(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert used_by_gpu() == {}
    assert outside_bytes(CUDA, 300 * MIB) is None
