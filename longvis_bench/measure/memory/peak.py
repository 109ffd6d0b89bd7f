"""Peak memory: the most that is held while an iteration runs, above what was held before the model was built.

On CUDA it is what the allocator has handed out at most.  On a CPU it is the peak resident set without
file-backed pages (VmHWM - RssFile of /proc/self/status), minus the same before building: file-backed pages
are code, and in a process forked from a warm one they fault in again and would be counted as the model's.
The kernel resets the peak through /proc/self/clear_refs.  Systems without /proc give no number, and the row
says why.

The iteration is one of the steady state, after those that were timed.  On a CPU it runs with the C library
told to give freed memory back at once: left alone, glibc keeps freed blocks of up to 32 MiB, and the resident
set then depends more on the history of its heap than on the model.  For the same reason MKL's buffers, which
only ever grow, are freed first, garbage is collected, and one more iteration runs before the peak is reset:
what it leaves is what every later iteration finds.  What was held at most without that, and while building,
is `reserved_bytes`, as CUDA's allocator has its reserve.

The cell compiles a selective scan's kernels before the baseline is read: numba's compiler takes about 40 MiB,
which are not the model's.

The peak is explained by its parts, which sum to it: the tensors alive at the peak of the same iteration
executed by shape (`shapes.py`: weights, buffers, gradients, optimizer, input, activations), what convolutions
take besides (`workspace.py`), the buffers that MKL keeps from its first matrix product on, and the rest:
compiled kernels, small blocks of the heap, workspace of other kernels, threads' stacks; on CUDA what cuBLAS
keeps, too.  Where tensors were never touched, and so take no memory, the measured peak can be below that of
the tensors: activations are then what is left for them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from longvis_bench.errors import Unsupported
from longvis_bench.measure.memory.allocator import free_library_buffers, give_back_freed_memory, tight_heap
from longvis_bench.ops.model_tensors import storages
from longvis_bench.records import MemoryRecord

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
HELD = ("weights", "buffers", "input", "optimizer", "gradients")
"""Parts in the order in which they are taken from the peak; library, activations and workspace follow."""


class PeakMemory:
    """Knows what was held when it was made, before the model; `read` gives the peak above that.

    Arguments:
        images: the batch the model will run on; made before, so that the making is not counted, and added to
            the peak as a part of its own.

    Raises:
        Unsupported: this system does not tell a process its peak memory.
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
        """The peak of one more iteration; its parts are added by `with_parts`."""
        held = self._above(self._peak)
        on_cpu = self._device.type == "cpu"
        if on_cpu:
            _free_leftovers()  # before `tight_heap` closes the holes that this leaves
        with tight_heap():
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
        """Watch something that runs after the peak was read, within `tight_heap`."""
        before = self._reset(self._device)
        return lambda: max(0, self._peak(self._device) - before)

    def kept_by_libraries(self) -> int | None:
        """Bytes that MKL holds for its next call, found by freeing them; None where there is no MKL."""
        if self._device.type != "cpu":
            return None
        before = self._reset(self._device)
        if not free_library_buffers():
            return None
        return max(0, before - self._reset(self._device))


def _free_leftovers() -> None:
    """Free what earlier work left in this process: cycles of Python objects, and the buffers of MKL."""
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
        record: as read.
        tensors: bytes by part, as far as they are known.
        library: what libraries keep, where it is known.
        workspace: what convolutions add to the tensors' peak, where it was watched.
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


def held_bytes(
    model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, int]:
    """What is known without executing shapes: weights, buffers, input and the optimizer's state."""
    states = optimizer.state.values() if optimizer is not None else ()
    return {
        "weights": _bytes(model.parameters()),
        "buffers": _bytes(model.buffers()),
        "input": _bytes([images]),
        "optimizer": _bytes(t for state in states for t in state.values() if torch.is_tensor(t)),
    }


def _reset_host(device: torch.device) -> int:
    """Reset the kernel's peak of this process; return the resident bytes without files."""
    try:
        give_back_freed_memory()
        _CLEAR_REFS.write_text(_RESET_PEAK)
        status = status_bytes()
        return status["VmRSS"] - status["RssFile"]
    except (OSError, KeyError, TypeError) as error:
        raise Unsupported("this system does not tell a process its peak memory (no /proc).") from error


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
"""How a device's peak is reset (giving what is held now), read, and named."""


def status_bytes() -> dict[str, int]:
    """The kB lines of /proc/self/status, in bytes."""
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


def _bytes(tensors: Iterable[Tensor]) -> int:
    sizes = {storage.data_ptr(): storage.nbytes() for t in tensors for storage in storages(t)}
    return sum(sizes.values())
