"""Race against timm's own benchmark, whole process against whole process: not a test, run it by hand.

    python scripts/race_timm.py PATH/TO/pytorch-image-models/benchmark.py [MODEL BATCH ...]

    python scripts/race_timm.py benchmark.py vit-s 32 convnext-t 1

Both run the same model at the same size and batch: inference, fp32, contiguous, on the CPU with the same
threads.  Both tell latency and multiply-adds (timm's through fvcore, where that is installed).  timm does its
default 10 + 40 iterations and gives no interval; ours stops at its default precision of 2 %, with a budget
that does not end it before.  For both, glibc keeps freed memory: else every iteration at 1024 px asks the
system for its pages anew, which takes a fifth of the time and varies far more than the model.  Run it on an
idle machine; how long ours takes follows from how quiet it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from longvis_bench import stats
from longvis_bench.runs.directory import read_rows

CELLS = {"vit-s": ("vit_small_patch16_224", 224), "convnext-t": ("convnext_tiny", 1024)}
"""Our name of a model -> timm's, and pixels per side."""
RACES = [("vit-s", 256), ("convnext-t", 4)]
"""Batches: timm's default, and one that fits where that does not."""
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
BUDGET_S = 900
THREADS = len(os.sched_getaffinity(0))


def run(command: list[str]) -> tuple[float, str]:
    """How long a process takes, and what it prints."""
    environment = {**os.environ, **KEPT, "OMP_NUM_THREADS": str(THREADS)}
    start = monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return monotonic() - start, done.stdout + done.stderr


def ours(model: str, size: int, batch: int) -> tuple[float, str]:
    """Seconds of `longvis bench`, and what its row says."""
    options = f"--models {model} --res {size} --batch {batch} --device cpu --dtype fp32 --threads {THREADS}"
    options += f" --memory-format contiguous --metrics count,time --budget {BUDGET_S} --timeout 3600"
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "longvis_bench", "bench", *options.split(), "--out", folder]
        seconds, _ = run(command)
        (row,) = read_rows(Path(folder))
    assert row.timing is not None, row.reason
    samples, warmup = row.timing.samples_s, row.timing.warmup_s
    median, half = stats.median(samples), stats.relative_half_width(samples)
    assert median is not None
    assert half is not None
    phases = ", ".join(f"{name} {value:.1f}" for name, value in row.overhead_s.items())
    return seconds, (
        f"{median * 1e3:.1f} ms +-{half:.1%}, {row.timing.verdict}, "
        f"{len(warmup)} + {len(samples)} iterations; seconds by phase: {phases}"
    )


def theirs(script: str, model: str, size: int, batch: int) -> tuple[float, str]:
    """Seconds of timm's script, and the latency it says."""
    options = f"--model {model} --img-size {size} -b {batch} --bench inference --device cpu --no-retry"
    seconds, output = run([sys.executable, script, *options.split()])
    found = re.search(r"done\..*?([\d.]+ ms/step)", output)
    assert found is not None, output[-2000:]
    return seconds, found[1]


def main() -> None:
    rest = sys.argv[2:]
    races = [(name, int(batch)) for name, batch in zip(rest[::2], rest[1::2], strict=True)] or RACES
    for name, batch in races:
        model, size = CELLS[name]
        mine, own = ours(name, size, batch)
        other, its = theirs(sys.argv[1], model, size, batch)
        print(f"{name} at {size} px, batch {batch}: {mine:.1f} s against {other:.1f} s, {mine / other:.2f}")
        print(f"  longvis: {own}\n  timm: {its}, 10 + 40 iterations", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file() or len(sys.argv) % 2:
        sys.exit(__doc__)
    main()
