"""Peak memory: bytes at the highest point of building and running a model, above what was held before.

On CUDA it is the allocator's peak.  On a CPU it is the peak resident set without file-backed pages
(VmHWM - RssFile of /proc/self/status), minus the same before building: file-backed pages are code, and in a
process forked from a warm one they fault in again and would be counted as the model's.  The kernel resets the
peak through /proc/self/clear_refs.  Systems without /proc give no number, and the row says why.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from longvis_bench.errors import Unsupported
from longvis_bench.records import MemoryRecord

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """Starts counting when made; `read` gives the peak since then.

    Arguments:
        images: the batch the model will run on; made before, so that the making is not counted, and added to
            the peak as a part of its own.

    Raises:
        Unsupported: this system does not tell a process its peak memory.
    """

    def __init__(self, images: torch.Tensor) -> None:
        self._device = device = images.device
        self._input = _bytes([images])
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._baseline = torch.cuda.memory_allocated(device)
        elif device.type == "cpu":
            self._baseline = _reset_host_peak()
        else:
            raise Unsupported(f"peak memory is not measured on {device.type}.")

    def read(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> MemoryRecord:
        """The peak so far, and the parts of it that are known exactly.

        Arguments:
            model: its parameters, gradients and buffers are parts.
            optimizer: its state is a part, in train mode.
        """
        parts = _parts(model, optimizer)
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            source = "torch.cuda.max_memory_allocated"
            reserved = torch.cuda.max_memory_reserved(self._device)
        else:
            status = _status_bytes()
            peak = status["VmHWM"] - status["RssFile"]
            source, reserved = "VmHWM - RssFile", None
        parts["input"] = self._input
        above = max(0, peak - self._baseline) + self._input
        return MemoryRecord(
            peak_bytes=above,
            baseline_bytes=self._baseline,
            source=source,
            reserved_bytes=reserved,
            parts_bytes={**parts, "rest": max(0, above - sum(parts.values()))},
        )


def _reset_host_peak() -> int:
    """Reset the kernel's peak of this process; return the resident bytes without files."""
    try:
        _give_back_freed_memory()
        _CLEAR_REFS.write_text(_RESET_PEAK)
        status = _status_bytes()
    except (OSError, KeyError, TypeError) as error:
        raise Unsupported("this system does not tell a process its peak memory (no /proc).") from error
    return status["VmRSS"] - status["RssFile"]


def _give_back_freed_memory() -> None:
    """Return what the allocator keeps of earlier work to the system, or the model would use it for free."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _status_bytes() -> dict[str, int]:
    """The kB lines of /proc/self/status, in bytes."""
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


def _parts(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, int]:
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    states = optimizer.state.values() if optimizer is not None else ()
    state = [value for values in states for value in values.values() if torch.is_tensor(value)]
    return {
        "weights": _bytes(parameters),
        "buffers": _bytes(list(model.buffers())),
        "gradients": _bytes(gradients),
        "optimizer": _bytes(state),
    }


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
