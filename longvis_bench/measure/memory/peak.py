"""Peak memory: the highest memory during one iteration, above the memory held before the model was built.

On CUDA it is the allocator's peak of allocated bytes.  On a CPU it is the peak resident set without
file-backed pages (VmHWM - RssFile of /proc/self/status), minus the same before building.  File-backed pages
are code; a process forked from a warm one faults them in again, so they would count as the model's.  The
kernel resets the peak through /proc/self/clear_refs.  On a system without /proc the peak is None, and the row
has the reason.

The iteration is one of the steady state, after the timed ones.  On a CPU it runs while the C library returns
freed memory at once: by default glibc keeps freed blocks of up to 32 MiB, and the resident set then depends
more on the history of its heap than on the model.  For the same reason MKL's buffers, which only grow, are
freed first, garbage is collected, and one more iteration runs before the peak is reset, so that the measured
iteration starts from the state that every later one finds.  `reserved_bytes` is the peak without these
measures, building included; on CUDA it is the allocator's reserve.

The cell compiles a selective scan's kernels before the baseline is read: numba's compiler takes about 40 MiB,
which do not belong to the model.

The parts of the peak sum to it: the tensors alive at the peak of the same iteration executed by shape
(`tensor_peak.py`: weights, buffers, gradients, optimizer, input, activations), the workspace of convolutions
(`workspace.py`), the buffers that MKL keeps from its first matrix product on, and the rest: compiled kernels,
small blocks of the heap, workspace of other kernels, threads' stacks, and on CUDA what cuBLAS keeps.  Tensors
whose pages were never touched take no memory, so the measured peak can be below that of the tensors; the part
of the activations is then the remainder.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from longvis_bench.errors import Unsupported
from longvis_bench.measure.memory.allocator import (
    free_library_buffers,
    give_back_freed_memory,
    tight_allocator,
)
from longvis_bench.ops.model_tensors import storages
from longvis_bench.records import MemoryRecord

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
HELD = ("weights", "buffers", "input", "optimizer", "gradients")
"""Parts in the order in which they are subtracted from the peak; library, activations, workspace follow."""


class PeakMemory:
    """Reads the baseline on construction, before the model is built; `read` gives the peak above it.

    Arguments:
        images: the batch the model will run on; it exists before, so that generating it is not counted, and
            its bytes are added to the peak as a part of their own.

    Raises:
        Unsupported: this system does not report the peak memory of a process.
    """

    def __init__(self, images: Tensor) -> None:
        self._device = images.device
        self._input = images.untyped_storage().nbytes()
        if self._device.type not in _DEVICES:
            raise Unsupported(f"peak memory is not measured on {self._device.type}.")
        self._reset, self._peak, self._source = _DEVICES[self._device.type]
        if self._device.type == "cpu":
            _free_leftovers()
        self._baseline = self._reset(self._device)

    def read(self, iteration: Callable[[], object]) -> MemoryRecord:
        """The peak of one more iteration; `with_parts` adds its parts."""
        held = self._above(self._peak)
        on_cpu = self._device.type == "cpu"
        if on_cpu:
            _free_leftovers()  # before `tight_allocator` allocates the free blocks that this leaves
        with tight_allocator():
            if on_cpu:
                iteration()
            self._reset(self._device)
            iteration()
            peak = self._above(self._peak)
        cuda = self._device.type == "cuda"
        return MemoryRecord(
            peak_bytes=peak,
            baseline_bytes=self._baseline,
            source=self._source,
            reserved_bytes=torch.cuda.max_memory_reserved(self._device) if cuda else held,
        )

    def _above(self, peak: _Read) -> int:
        return max(0, peak(self._device) - self._baseline) + self._input

    def meter(self) -> Callable[[], int]:
        """Start to measure the peak of one operator, after `read`; calling the result gives its bytes."""
        before = self._reset(self._device)
        return lambda: max(0, self._peak(self._device) - before)

    def kept_by_libraries(self) -> int | None:
        """Bytes that MKL keeps for its next call, measured by freeing them; None without MKL."""
        if self._device.type != "cpu":
            return None
        before = self._reset(self._device)
        if not free_library_buffers():
            return None
        return max(0, before - self._reset(self._device))


def _free_leftovers() -> None:
    """Free what earlier work left in this process: reference cycles and MKL's buffers."""
    gc.collect()
    free_library_buffers()


def with_parts(
    record: MemoryRecord,
    tensors: Mapping[str, int],
    *,
    library: int | None = None,
    workspace: int | None = None,
) -> MemoryRecord:
    """The record with its parts, which sum to the peak.

    Arguments:
        record: as `read` returned it.
        tensors: bytes by part, for the parts that are known.
        library: bytes that libraries keep; None if unknown.
        workspace: bytes that convolutions add to the tensors' peak; None if not measured.
    """
    wanted = {name: tensors.get(name) for name in HELD}
    wanted |= {"library": library, "activations": tensors.get("activations"), "workspace": workspace}
    parts, left = {}, record.peak_bytes
    for name, size in wanted.items():
        if size is None:
            continue
        parts[name] = min(size, left)
        left -= parts[name]
    return record.model_copy(update={"parts_bytes": {**parts, "rest": left}})


def known_parts_bytes(
    model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, int]:
    """Bytes by part that need no execution by shape: weights, buffers, input and optimizer state."""
    states = optimizer.state.values() if optimizer is not None else ()
    return {
        "weights": _bytes(model.parameters()),
        "buffers": _bytes(model.buffers()),
        "input": _bytes([images]),
        "optimizer": _bytes(t for state in states for t in state.values() if torch.is_tensor(t)),
    }


def _reset_host(device: torch.device) -> int:
    """Reset the kernel's peak of this process; return the resident bytes without file-backed pages."""
    try:
        give_back_freed_memory()
        _CLEAR_REFS.write_text(_RESET_PEAK)
        status = status_bytes()
        return status["VmRSS"] - status["RssFile"]
    except (OSError, KeyError, TypeError) as error:
        raise Unsupported("this system does not report the peak memory of a process (no /proc).") from error


def _host_peak(device: torch.device) -> int:
    status = status_bytes()
    return status["VmHWM"] - status["RssFile"]


def _reset_cuda(device: torch.device) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


_Read = Callable[[torch.device], int]
_DEVICES: dict[str, tuple[_Read, _Read, str]] = {
    "cpu": (_reset_host, _host_peak, "VmHWM - RssFile"),
    "cuda": (_reset_cuda, torch.cuda.max_memory_allocated, "torch.cuda.max_memory_allocated"),
}
"""Per device: a function that resets the peak and returns the bytes held now, one that reads it, its name."""


def status_bytes() -> dict[str, int]:
    """The kB lines of /proc/self/status, in bytes."""
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


def _bytes(tensors: Iterable[Tensor]) -> int:
    sizes = {storage.data_ptr(): storage.nbytes() for t in tensors for storage in storages(t)}
    return sum(sizes.values())
