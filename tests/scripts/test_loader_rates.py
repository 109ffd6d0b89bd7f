"""The script behind the loader's rates in docs/training.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "loader_rates.py"


def test_it_prints_a_rate_per_number_of_workers_and_the_decoders_times() -> None:
    few = ["--px", "64", "--res", "32", "--images", "6", "--epochs", "1", "--workers", "0", "1"]
    done = subprocess.run([sys.executable, str(SCRIPT), *few], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rates = dict(re.findall(r"^\| (\d) \| ([\d.e+]+) \|$", done.stdout, re.MULTILINE))
    assert sorted(rates) == ["0", "1"]
    assert all(float(rate) > 0 for rate in rates.values())
    assert re.search(r"^decode: \d+ ms per image$", done.stdout, re.MULTILINE)
