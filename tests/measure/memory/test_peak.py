"""Peak memory against models whose peak can be written down, each cell in a process of its own.

Everything is in float32: a matrix product of b rows by n columns takes 4 b n bytes for its output.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from longvis_bench.isolation.runner import Runner
from longvis_bench.measure.memory.peak import with_parts
from longvis_bench.records import Cell, MemoryRecord, Request, Row, Settings

MIB = 1 << 20
FAMILIES = Path(__file__).parents[2] / "families"
PARTS = {"weights", "buffers", "gradients", "optimizer", "input", "activations", "workspace", "rest"}
BY_MKL = "library"
"""A part that there is where torch multiplies by MKL."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel tells a process its peak on Linux only"
)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


def measure(runner: Runner, variant: str, *, family: str = "chains", **condition: object) -> Row:
    cell = Cell(
        model=variant,
        family=family,
        variant=variant,
        implementation="user",
        resolution=16,
        threads=2,
        memory_format="contiguous",
        metrics=("memory",),
    ).model_copy(update=condition)
    row = runner.run(Request(cell=cell, settings=Settings(budget_s=0.1), models_dirs=(FAMILIES,)))
    assert row.status == "ok", row.reason
    assert row.memory is not None
    assert row.memory.peak_bytes == sum(row.memory.parts_bytes.values())
    return row


def floats(rows: int, width: int) -> int:
    return 4 * rows * width


PIXELS, CLASSES = 3 * 16 * 16, 10


def weights(width: int, depth: int) -> int:
    return floats(PIXELS, width) + (depth - 1) * floats(width, width) + floats(width, CLASSES)


WITNESSES = {
    # weights, input, what a layer reads and what it writes
    "a chain in inference": (
        "chains-heavy",
        "infer",
        2048,
        weights(2048, 4) + floats(2048, PIXELS) + 2 * floats(2048, 2048),
    ),
    # weights and twice as much state; input, all activations and the gradient of the last one; the gradients
    # of the head and of the logits, and the labels, which are whole numbers of 8 bytes
    "a chain in training": (
        "chains-n",
        "train",
        512,
        3 * weights(256, 128)
        + floats(512, PIXELS)
        + 129 * floats(512, 256)
        + floats(256, CLASSES)
        + floats(512, CLASSES)
        + 8 * 512,
    ),
    "one huge activation": (
        "chains-wide",
        "infer",
        16384,
        weights(2048, 1) + floats(16384, PIXELS) + floats(16384, 2048) + floats(16384, CLASSES),
    ),
}


@pytest.mark.parametrize("witness", WITNESSES)
def test_known_peaks(runner: Runner, witness: str) -> None:
    variant, mode, batch, expected = WITNESSES[witness]
    row = measure(runner, variant, mode=mode, batch_size=batch)
    assert row.memory is not None
    assert row.tensors is not None
    print(witness, expected / MIB, row.memory.peak_bytes / MIB, row.tensors.peak_bytes / MIB)
    assert row.tensors.peak_bytes == pytest.approx(expected, abs=MIB)
    assert row.memory.peak_bytes == pytest.approx(expected, rel=0.02, abs=8 * MIB)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_parts_sum_to_the_peak(runner: Runner, mode: str) -> None:
    row = measure(runner, "moody-fine", family="moody", mode=mode, resolution=512)
    assert row.memory is not None
    assert row.tensors is not None
    parts = row.memory.parts_bytes
    assert parts.keys() - {BY_MKL} == PARTS
    assert parts["input"] == 3 * 512 * 512 * 4
    assert parts["activations"] > 0
    assert row.tensors.peak_bytes == sum(row.tensors.parts_bytes.values())
    if mode == "train":
        assert parts["optimizer"] >= 2 * parts["weights"]


def test_a_convolution_that_makes_a_matrix_of_its_image_has_a_workspace() -> None:
    import torch
    from torch import nn

    from longvis_bench.measure.memory.allocator import tight_allocator
    from longvis_bench.measure.memory.peak import PeakMemory
    from longvis_bench.measure.memory.tensor_peak import TensorPeak
    from longvis_bench.measure.memory.workspace import convolution_workspace

    images = torch.zeros(1, 32, 128, 128, dtype=torch.float64)  # oneDNN leaves float64 to im2col
    convolution = nn.Conv2d(32, 4, 5, padding=2, dtype=torch.float64)
    memory = PeakMemory(images)
    nothing = TensorPeak(0, {}, {}, 0)
    with torch.no_grad(), tight_allocator():
        found = convolution_workspace(nothing, lambda: convolution(images), memory.meter)
    assert found == pytest.approx(8 * 32 * 5 * 5 * 128 * 128, rel=0.05)
    held = TensorPeak(found, {}, {}, 0)
    with torch.no_grad(), tight_allocator():
        assert convolution_workspace(held, lambda: convolution(images), memory.meter) < 0.05 * found


def resident() -> int:
    """Bytes, without files."""
    from longvis_bench.measure.memory.peak import status_bytes

    status = status_bytes()
    return status["VmRSS"] - status["RssFile"]


@contextmanager
def heap_that_cannot_grow() -> Iterator[None]:
    """A page lies right behind the heap, as a library's may; the heap goes on in pieces elsewhere."""
    libc = ctypes.CDLL(None)
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    page, end = mmap.PAGESIZE, -(-libc.sbrk(0) // mmap.PAGESIZE) * mmap.PAGESIZE
    private_anonymous_noreplace = 0x100022
    assert libc.mmap(end, page, 0, private_anonymous_noreplace, -1, 0) == end
    try:
        yield
    finally:
        assert libc.munmap(ctypes.c_void_p(end), ctypes.c_size_t(page)) == 0


@pytest.mark.parametrize("heap", [nullcontext, heap_that_cannot_grow])
def test_what_is_freed_is_given_back_whatever_the_heap_was_used_for(
    heap: Callable[[], AbstractContextManager[None]],
) -> None:
    """Blocks kept from earlier work are holes that glibc would rather fill than map anew, and then keep."""
    import torch

    from longvis_bench.measure.memory.allocator import set_thresholds, tight_allocator

    set_thresholds(32 << 20, 64 << 20)
    with heap():
        blocks = [torch.ones(3 * MIB // 4) for _ in range(40)]
        del blocks[::2]  # holes of 3 MiB
        with tight_allocator():
            before = resident()
            work = [torch.ones(MIB // 2) for _ in range(20)]
            held = resident() - before
            del work
            assert 39 * MIB < held < 45 * MIB
            assert resident() - before < MIB
        assert len(blocks) == 20


def test_what_mkl_keeps_is_found_by_taking_it() -> None:
    import torch

    from longvis_bench.measure.memory.allocator import free_library_buffers
    from longvis_bench.measure.memory.peak import PeakMemory

    memory = PeakMemory(torch.zeros(1))
    left, right = torch.ones(4096, 512), torch.ones(512, 2048)
    _ = left @ right
    kept = memory.kept_by_libraries()
    if not free_library_buffers():
        assert kept is None
        return
    assert kept is not None
    assert kept > MIB
    again = memory.kept_by_libraries()
    assert again is not None
    assert again < MIB // 4


def test_a_scan_s_compiler_is_not_the_model_s_memory(runner: Runner) -> None:
    """Also where nothing is counted, as in later tries of `--batch auto`; numba takes 40 MiB and more."""
    cell = Cell(
        model="mambavision-n",
        family="mambavision",
        variant="mambavision-n",
        implementation="native",
        resolution=256,
        metrics=("memory",),
    )
    row = runner.run(Request(cell=cell, settings=Settings(budget_s=0.1)))
    assert row.memory is not None
    assert row.memory.parts_bytes["rest"] < 8 * MIB


def test_parts_are_cut_where_less_was_held_than_the_tensors_say() -> None:
    record = MemoryRecord(peak_bytes=100, baseline_bytes=0, source="test")
    tensors = {"weights": 60, "activations": 70, "input": 10}
    parts = with_parts(record, tensors, workspace=5).parts_bytes
    assert parts == {"weights": 60, "input": 10, "activations": 30, "workspace": 0, "rest": 0}
    assert with_parts(record, tensors, library=10).parts_bytes["activations"] == 20
    assert with_parts(record, {"weights": 60}).parts_bytes == {"weights": 60, "rest": 40}


def test_a_model_that_reads_values_has_no_tensor_peak_and_says_why(branchy: Path, runner: Runner) -> None:
    cell = Cell(
        model=f"{branchy.name}:build",
        family="branchy",
        variant="branchy",
        implementation="user",
        resolution=64,
        metrics=("memory",),
    )
    row = runner.run(Request(cell=cell, settings=Settings(budget_s=0.1), working_dir=branchy.parent))
    assert row.memory is not None
    assert row.tensors is None
    assert "does not run without data" in row.null_reasons["tensor_peak_bytes"]
    assert "activations_memory_bytes" in row.null_reasons
    assert row.memory.peak_bytes == sum(row.memory.parts_bytes.values())


def test_a_cell_that_does_not_fit_keeps_its_tensor_peak(runner: Runner) -> None:
    cell = Cell(
        model="moody-out-of-memory",
        family="moody",
        variant="moody-out-of-memory",
        implementation="user",
        resolution=64,
    )
    row = runner.run(Request(cell=cell, settings=Settings(budget_s=0.1), models_dirs=(FAMILIES,)))
    assert row.status == "host_oom"
    assert row.memory is None
    assert row.tensors is not None
