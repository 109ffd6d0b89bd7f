"""Race against timm's own benchmark, whole process against whole process: not a test, run it by hand.

    python tests/race_timm.py PATH/TO/pytorch-image-models/benchmark.py

Both measure inference alone, fp32 on the CPU, batch 1, all usable cores; everything else stays at timm's
defaults (10 + 40 iterations) and at ours (stop at 2 %, at most 30 s).  Run it on an idle machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

CELLS = [("vit-s", "vit_small_patch16_224", 224), ("convnext-t", "convnext_tiny", 1024)]
"""Ours, timm's name of the same model, pixels per side."""


def seconds(command: list[str], says: str) -> tuple[float, str]:
    """How long a process takes, and what it says of the latency."""
    start = monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(says, done.stdout + done.stderr)
    return monotonic() - start, found[1] if found else "?"


def main() -> None:
    for ours, theirs, size in CELLS:
        with TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "longvis_bench", "bench", "--models", ours, "--res", str(size)]
            command += ["--device", "cpu", "--metrics", "time", "--out", folder]
            mine, median = seconds(command, rf"{ours} {size} px  ok  (.*)")
        command = [sys.executable, sys.argv[1], "--model", theirs, "--img-size", str(size), "-b", "1"]
        other, mean = seconds([*command, "--bench", "inference", "--device", "cpu"], r"([\d.]+ ms/step)")
        print(
            f"{ours} at {size} px: longvis {mine:.1f} s (median {median}), timm {other:.1f} s (mean {mean})"
        )
        print(f"  ratio {mine / other:.2f}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit(__doc__)
    main()
