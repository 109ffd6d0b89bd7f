"""Peak memory on the CPU of eight cells against a meter that shares no code with the package's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longvis_bench.isolation.runner import Runner
from longvis_bench.records import Cell, Metric, Request, Settings

MIB = 1 << 20
METER = Path(__file__).with_name("independent_meter.py")
GLIBC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Every block of 128 KiB and more is mapped by itself, so that freeing it gives it back."""
CELLS = [
    # model, resolution, batch, mode, threads
    ("convnext-n", 512, 4, "infer", 2),
    ("convnext-n", 512, 4, "infer", 1),
    ("swin-n", 512, 2, "infer", 2),
    ("vit-n", 512, 2, "infer", 2),
    ("mambavision-n", 512, 1, "infer", 2),
    ("mambavision-n", 512, 2, "infer", 1),
    ("atlas-n", 512, 1, "infer", 2),
    ("convnext-n", 256, 2, "train", 2),
]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel tells a process its peak on Linux only"
)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


@pytest.mark.parametrize(
    ("name", "resolution", "batch", "mode", "threads"),
    [CELLS[0], *(pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS[1:])],
)
def test_the_peak_is_that_of_an_independent_meter(
    runner: Runner, name: str, resolution: int, batch: int, mode: str, threads: int
) -> None:
    arguments = [str(METER), name, str(resolution), str(batch), mode, str(threads)]
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **GLIBC}, capture_output=True, text=True, check=True
    )
    expected = int(done.stdout)
    family = name.removesuffix("-n")
    own = family in ("atlas", "mambavision")
    cell = Cell(
        model=name,
        family=family,
        variant=name,
        implementation="native" if own else "timm",
        resolution=resolution,
        batch_size=batch,
        threads=threads,
    ).model_copy(update={"mode": mode})
    wanted: tuple[tuple[Metric, ...], ...] = (("memory",), ("count", "time", "memory"))
    for metrics in wanted:
        asked = cell.model_copy(update={"metrics": metrics})
        row = runner.run(Request(cell=asked, settings=Settings(budget_s=0.3)))
        assert row.memory is not None, row.reason
        print(name, metrics, expected / MIB, row.memory.peak_bytes / MIB)
        assert row.memory.peak_bytes == pytest.approx(expected, rel=0.03, abs=2 * MIB)
