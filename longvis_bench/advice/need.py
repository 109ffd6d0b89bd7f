"""How much memory a cell needs on a device that need not be there, from the trace of its storages.

The peak of the tensors is not what the process takes.  On CUDA the allocator rounds and keeps pieces, cuBLAS
keeps a workspace, and the context lies outside of both; on a CPU MKL keeps what it packs matrices into.  What
is modelled has its constants here.  What is not (convolutions' workspace, of which cuDNN takes less where
there is no room; other libraries) is covered by a margin: the need is a range, and what lies between its ends
is `tight`.
"""

from __future__ import annotations

from dataclasses import dataclass

from longvis_bench.measure.memory.cuda_allocator import reserved_peak, rounded
from longvis_bench.measure.memory.trace import Trace
from longvis_bench.ops.planned_gpu import Capability

MIB = 1 << 20
CONTEXT_MIB = (300, 700)
"""What the driver, the CUDA context and torch's loaded kernels take of a GPU, at least and at most."""
BLAS_MIB, BLAS_HOPPER_MIB = 8.125, 32.0
"""cuBLAS's workspace of one thread: torch asks for 2 x 4096 KiB + 8 x 16 KiB, on compute capability 9.x and
later for 32 MiB (aten/src/ATen/cuda/CublasHandlePool.cpp).  The backward runs in a thread of its own."""
MARGIN = 0.03
"""Share of the reserve by which it may be exceeded on CUDA."""
PROCESS_MIB = (300, 600)
"""What Python with torch and timm holds on a CPU before it builds a model, at least and at most."""
CPU_ERROR, CPU_ERROR_MIB = 0.10, 32
"""By how much the prediction may be wrong on a CPU; docs/choosing.md holds it against measurements."""
CPU_LIBRARY_MIB = {False: 1.8, True: 2.6}
"""What MKL keeps of what it packs matrices into, without and with a backward, on two threads: the middle of
what docs/predicted-memory.md is made of."""
CPU_REST_MIB = {False: 1.2, True: 5.0}
"""Small blocks, threads' stacks and compiled kernels on a CPU, likewise."""


@dataclass(frozen=True)
class Device:
    """Where a model is to run."""

    kind: str
    """"cuda" or "cpu"."""
    memory_bytes: int
    capability: Capability | None = None
    """Of an NVIDIA GPU; None for a CPU."""


@dataclass(frozen=True)
class Need:
    """Bytes that a cell takes."""

    peak_bytes: int
    """What `peak_memory_bytes` of a row would be, above a process that has started its libraries."""
    low_bytes: int
    """What the device needs at least."""
    high_bytes: int
    """What it needs at most."""
    parts_bytes: dict[str, int]
    """What `high_bytes` is made of; they sum to it."""

    def fits(self, memory: int) -> str:
        """`yes` where the most fits, `no` where the least does not, else `tight`."""
        if self.high_bytes <= memory:
            return "yes"
        return "no" if self.low_bytes > memory else "tight"


def need_of(trace: Trace, device: Device, *, train: bool) -> Need:
    """The need of a cell.

    Arguments:
        trace: of one iteration.
        device: where it is to run.
        train: whether there is a backward.
    """
    return _on_cuda(trace, device, train) if device.kind == "cuda" else _on_cpu(trace, train)


def _on_cuda(trace: Trace, device: Device, train: bool) -> Need:
    per_thread = BLAS_HOPPER_MIB if (device.capability or (0, 0)) >= (9, 0) else BLAS_MIB
    library = int((2 if train else 1) * per_thread * MIB)
    parts = trace.parts_at_peak(rounded)
    peak = sum(parts.values())
    reserved = reserved_peak(trace)
    kept = reserved - peak + int(MARGIN * reserved)
    parts |= {"library": library, "allocator": kept, "context": CONTEXT_MIB[1] * MIB}
    low = peak + library + CONTEXT_MIB[0] * MIB
    return Need(peak, low, sum(parts.values()), parts)  # rows start cuBLAS before they watch memory


def _on_cpu(trace: Trace, train: bool) -> Need:
    parts = trace.parts_at_peak()
    tensors = sum(parts.values())
    parts["library"] = int(CPU_LIBRARY_MIB[train] * MIB)
    parts["rest"] = int(CPU_REST_MIB[train] * MIB)
    peak = sum(parts.values())
    error = max(int(CPU_ERROR * peak), CPU_ERROR_MIB * MIB)
    parts |= {"margin": error, "context": PROCESS_MIB[1] * MIB}
    low = max(tensors, peak - error) + PROCESS_MIB[0] * MIB
    return Need(peak, low, sum(parts.values()), parts)
