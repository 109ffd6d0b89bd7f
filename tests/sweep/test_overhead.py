"""What a sweep of short cells takes beyond building and measuring.  On an idle machine:

    pytest -m slow -s tests/test_overhead.py

The whole command counts, from starting Python to the plots, less what the rows book as building and measuring
(counting and compiling included).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from longvis_bench.phases import BUILD, HARNESS, measuring, spent
from longvis_bench.runs.directory import read_rows
from longvis_bench.stats import median

MODELS = "vit-n,convnext-n,swin-n,atlas-n,mambavision-n,fastervit-n"
SIZES = "64,128,192,256,512"
LIMIT_S = 0.5


@pytest.mark.alone
@pytest.mark.slow
def test_a_short_cell_costs_half_a_second_at_most(tmp_path: Path) -> None:
    options = f"--models {MODELS} --res {SIZES} --metrics count,time,memory --budget 1 --device cpu"
    command = [sys.executable, "-m", "longvis_bench", "bench", *options.split(), "--out", str(tmp_path)]
    start = monotonic()
    subprocess.run(command, capture_output=True, check=True)
    seconds = monotonic() - start
    rows = [row.overhead_s for row in read_rows(tmp_path) if row.overhead_s]
    own = [(spent(row, BUILD) or 0.0) + (measuring(row) or 0.0) for row in rows]
    each = (seconds - sum(own)) / len(rows)
    parts = {phase: f"{median([row[phase] for row in rows if phase in row]):.3f}" for phase in HARNESS}
    print(f"\n{len(rows)} cells in {seconds:.1f} s: {each:.3f} s each go to the harness; medians: {parts}")
    assert len(rows) == 30
    assert each <= LIMIT_S
