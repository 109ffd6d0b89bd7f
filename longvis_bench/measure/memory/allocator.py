"""Control of the C library's heap and MKL's buffers, so that a model's memory excludes what is merely kept.

glibc keeps freed blocks of up to 32 MiB and serves later requests from them.  After some work a process
therefore holds more memory than its tensors, by an amount that depends on its history.  While memory is
measured, glibc maps every large block by itself (`tight_allocator`).

MKL, which multiplies matrices on x86, keeps its packing buffers from the first call on.  They belong to the
memory of the process; their size is measured by freeing them (`free_library_buffers`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

LARGE_BLOCK = 128 << 10
_LARGEST_HOLE = 1 << 30
_IS_MAPPED = 2  # glibc's flag for a mapping, in the size word before the block
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def give_back_freed_memory() -> None:
    """Return the pages of freed blocks to the system, so that the model's use of them is counted."""
    if hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@contextmanager
def tight_allocator() -> Iterator[None]:
    """Have glibc map every block of 128 KiB or more by itself, so that freeing it returns it to the system.

    Afterwards glibc keeps freed blocks of up to 32 MiB again, the largest threshold that it sets on its own.
    """
    set_thresholds(LARGE_BLOCK, LARGE_BLOCK)
    give_back_freed_memory()
    fillers = _fill_holes()
    try:
        yield
    finally:
        for filler in fillers:
            _libc().free(filler)
        set_thresholds(32 << 20, 64 << 20)


@contextmanager
def keep_freed_memory(wanted: bool = True) -> Iterator[bool]:
    """Have glibc keep freed memory, so that iterations after the first cause no page faults.

    Yields:
        Whether memory is kept; False with another C library, or if `wanted` is False.
    """
    libc = _libc()
    if not wanted or not hasattr(libc, "mallopt"):
        yield False
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_M_TOP_PAD, 64 << 20)
    try:
        yield True
    finally:
        libc.mallopt(_M_MMAP_MAX, 1 << 16)
        libc.mallopt(_M_TOP_PAD, 128 << 10)
        set_thresholds(32 << 20, 64 << 20)
        give_back_freed_memory()


def free_library_buffers() -> bool:
    """Free the buffers that MKL keeps for its next call.

    Returns:
        Whether this torch uses MKL, and so the buffers were freed.
    """
    free = _mkl_free_buffers()
    if free is None:
        return False
    free()
    return True


def set_thresholds(map_from: int, trim_from: int) -> None:
    """Set the sizes, in bytes, from which glibc maps a block by itself and trims the end of the heap."""
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(_M_MMAP_THRESHOLD, map_from)
        _libc().mallopt(_M_TRIM_THRESHOLD, trim_from)


def _fill_holes() -> list[int]:
    """Allocate every free block of the heap that could hold a large tensor; return the allocations.

    glibc prefers a free block of the heap to a new mapping, whatever the threshold, and memory freed there
    stays resident.  An allocation that is not a mapping came from such a block; one that is a mapping shows
    that no free block of that size is left.  (Addresses cannot tell the two apart: where the heap cannot grow
    in place, glibc extends it between the mappings.)  The allocations are never written to, so they take no
    memory.
    """
    libc = _libc()
    if not hasattr(libc, "mallopt"):
        return []
    fillers, size = [], _LARGEST_HOLE
    while size >= LARGE_BLOCK:
        block = libc.malloc(size)
        if block is not None and not _is_mapped(block):
            fillers.append(block)
        else:
            libc.free(block)
            size = size * 7 // 8
    return fillers


def _is_mapped(block: int) -> bool:
    return bool(ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value & _IS_MAPPED)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


@cache
def _mkl_free_buffers() -> Callable[[], object] | None:
    """MKL's function that frees its buffers, from the library that torch links; None without MKL."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        torch_cpu = ctypes.CDLL(str(library))
    except OSError:
        return None
    names = ("mkl_serv_free_buffers", "MKL_Free_Buffers")
    found: Callable[[], object] | None = next(
        (getattr(torch_cpu, name) for name in names if hasattr(torch_cpu, name)), None
    )
    return found
