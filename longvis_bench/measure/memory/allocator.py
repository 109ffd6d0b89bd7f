"""The C library's heap and MKL's buffers, so that memory which nobody uses is not measured as a model's.

glibc keeps freed blocks of up to 32 MiB, and serves later requests from such holes.  A process that has
worked for a while then holds more than its tensors take, by an amount that depends on its history.  While
memory is measured, every large block is therefore mapped by itself (`tight_heap`).

MKL, which multiplies matrices on x86, keeps the buffers it packs them into from the first call on.  They are
part of what a process holds, and how much they are is found by having them freed (`free_library_buffers`).
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
_IS_MAPPED = 2  # the bit of a block's size word, which lies before the block, that glibc sets for a mapping
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def give_back_freed_memory() -> None:
    """Return the pages of all holes to the system, or the model would use them for free."""
    if hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@contextmanager
def tight_heap() -> Iterator[None]:
    """Have glibc map every block of 128 KiB and more by itself, so that freeing it gives it back.

    Afterwards blocks up to 32 MiB are kept again, which is where glibc's own adjustment ends.
    """
    set_thresholds(LARGE_BLOCK, LARGE_BLOCK)
    give_back_freed_memory()
    plugs = _plug_holes()
    try:
        yield
    finally:
        for plug in plugs:
            _libc().free(plug)
        set_thresholds(32 << 20, 64 << 20)


@contextmanager
def keep_freed_memory(wanted: bool = True) -> Iterator[bool]:
    """Have glibc keep what is freed, so that iterations after the first fault in no pages.

    Yields:
        Whether it does; False where there is another C library, or `wanted` is False.
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
    """Free what MKL keeps for its next call.

    Returns:
        Whether this torch multiplies matrices by MKL, and it was asked.
    """
    free = _mkl_free_buffers()
    if free is None:
        return False
    free()
    return True


def set_thresholds(map_from: int, trim_from: int) -> None:
    """Tell glibc from how many bytes on it maps a block, and gives back the free end of the heap."""
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(_M_MMAP_THRESHOLD, map_from)
        _libc().mallopt(_M_TRIM_THRESHOLD, trim_from)


def _plug_holes() -> list[int]:
    """Take every hole of the heap that could hold a large block; plugs are never touched and take no memory.

    glibc prefers a hole to a mapping whatever the threshold, and what is freed into a hole stays resident.  A
    block that is not a mapping of its own came from a hole; once one is, no hole is that large.  (Addresses
    do not tell: where the heap cannot grow in place, glibc goes on with pieces among the mappings.)
    """
    libc = _libc()
    if not hasattr(libc, "mallopt"):
        return []
    plugs, size = [], _LARGEST_HOLE
    while size >= LARGE_BLOCK:
        block = libc.malloc(size)
        if block is not None and not _is_mapped(block):
            plugs.append(block)
        else:
            libc.free(block)
            size = size * 7 // 8
    return plugs


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
    """MKL's function of that name, under which it is linked into torch or comes with it."""
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
