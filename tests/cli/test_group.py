"""Standard streams that are closed or full, and starting quickly."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from longvis_bench.runs.directory import latest, read_rows

FAMILIES = Path(__file__).parents[1] / "families"
MEASURE = (
    *("bench", "-m", "moody-fine", "--models-dir", str(FAMILIES), "-r", "64", "--device", "cpu"),
    *("--budget", "0.1", "--metrics", "count,time", "--quick", "-o", "run"),
)


def shell(redirection: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command with a redirection of the shell."""
    line = f'"$0" -m longvis_bench "$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *words], capture_output=True, text=True, check=False
    )


WORDS = (("models",), ("--help",), ("--version",), ("bench", "--help"))
CLOSED = (">&-", ">&- 2>&-", "<&- >&-", "2>&-")
QUICK = {(CLOSED[0], words) for words in WORDS} | {(closed, ("--help",)) for closed in CLOSED}


@pytest.mark.parametrize(
    ("redirection", "words"),
    [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in product(CLOSED, WORDS)],
)
def test_closed_streams_are_no_error(redirection: str, words: tuple[str, ...]) -> None:
    done = shell(redirection, *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_without_standard_output_measures_all_the_same() -> None:
    done = shell(">&-", *MEASURE)
    assert done.returncode == 0, done.stderr
    assert len(latest(read_rows(Path("run")))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [("models",), ("--help",), ("--version",), ("models", "vit"), MEASURE])
def test_a_full_standard_output_is_one_sentence(words: tuple[str, ...]) -> None:
    done = shell("> /dev/full", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot write to standard output: ")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_sweep_whose_output_is_full_measures_every_cell_and_writes_its_tables() -> None:
    words = ["64,128" if word == "64" else word for word in MEASURE]
    assert shell("> /dev/full", *words).returncode == 2
    assert len(latest(read_rows(Path("run")))) == 2
    assert Path("run", "summary.md").is_file()


def test_a_reader_that_leaves_is_no_error() -> None:
    done = shell("| head -1 > /dev/null", "models")
    assert done.stderr == ""


@pytest.mark.alone
def test_the_version_is_quick() -> None:
    """Under 0.3 s of CPU; on a machine too slow for that, within three times the interpreter's own."""
    assert min(cpu_seconds("-m", "longvis_bench", "--version") for _ in range(3)) < max(
        0.3, 3 * min(cpu_seconds("-c", "import argparse") for _ in range(3))
    )
    heavy = "import sys, longvis_bench.__main__ as m; sys.argv = ['longvis', '--version']; m.main()"
    loaded = "; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", heavy + loaded], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=dict(os.environ))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
