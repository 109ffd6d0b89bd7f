"""Whatever a model does, its cell ends in one true row and the next cell is fine; so with a killed sweep.

The long form is `make chaos`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from longvis_bench.isolation.runner import Runner
from longvis_bench.records import Cell, Request, Row, Settings

HERE = Path(__file__).parents[1]
FAMILIES = HERE / "families"
KILLS = int(os.environ.get("LONGVIS_KILLS", "20"))
LIMIT_S = 3.0

ENDINGS = {
    "raises": ("error", "ValueError: a sentence of the model's own (moody.py:"),
    "unprintable": ("error", "Unprintable: (its message cannot be read: RuntimeError)"),
    "nan": ("invalid", "100% of the logits are NaN or infinite"),
    "shape": ("invalid", "returned shape (1, 9), not (1, 10)"),
    "shape-later": ("invalid", "returned shape (1, 9), not (1, 10)"),
    "mixes": ("invalid", "same image in a batch"),
    "exits": ("error", "ended the process by sys.exit(0) (moody.py:"),
    "leaves": ("crashed", "exit code 3 and no result"),
    "segfaults": ("crashed", "SIGSEGV"),
    "kills-itself": ("crashed", "SIGKILL"),
    "hangs": ("timeout", f"no result after {LIMIT_S:g} s"),
    "hangs-native": ("timeout", f"no result after {LIMIT_S:g} s"),
    "hangs-locked": ("timeout", f"no result after {LIMIT_S:g} s"),
    "ignores-sigterm": ("timeout", f"no result after {LIMIT_S:g} s"),
    "needs-package": ("missing_dependency", "python -m pip install a_package_that_is_not_there"),
    "out-of-memory": ("host_oom", "this machine ran out of memory"),
    "hoards": ("host_oom", "raise --memory-limit"),
    "unsupported": ("unsupported", "no kernel for this"),
    "leaves-child": ("ok", ""),
    "leaves-fork": ("ok", ""),
    "leaves-thread": ("ok", ""),
    "chatty": ("ok", ""),
    "moves": ("ok", ""),
}


ELSEWHERE = ("fine", "naps", "slower-in-batches", "no-room-above-4", "killed-above-4")
"""The well-behaved one, and moods that other tests are about: killed sweeps, the search for a batch size."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


def request(mood: str) -> Request:
    cell = Cell(
        model=f"moody-{mood}",
        family="moody",
        variant=f"moody-{mood}",
        implementation="user",
        resolution=64,
        threads=1,
    )
    limit = LIMIT_S if ENDINGS.get(mood, ("",))[0] == "timeout" else 60.0
    memory = 1 << 30 if mood == "hoards" else None
    settings = Settings(budget_s=0.2, timeout_s=limit, memory_limit_bytes=memory)
    return Request(cell=cell, settings=settings, key="k", models_dirs=(FAMILIES,))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="moods are signals and forks")
@pytest.mark.parametrize("mood", ENDINGS)
def test_how_a_cell_ends_and_the_next_one_is_fine(runner: Runner, mood: str) -> None:
    here = Path.cwd()
    start = time.monotonic()
    row = runner.run(request(mood))
    spent = time.monotonic() - start
    status, words = ENDINGS[mood]
    assert row.status == status, (row.reason, row.log_tail)
    assert words in (row.reason or "")
    assert (row.reason is None) == (status == "ok")
    assert row.count is not None, "what was known before it ended is kept"
    assert (row.timing is not None) == (status == "ok" or mood in ("nan", "mixes"))
    assert status != "timeout" or spent < LIMIT_S + 15
    assert _below_the_server() == set(), "something of the cell outlives it"
    assert Path.cwd() == here
    after: Row = runner.run(request("fine"))
    assert after.status == "ok", after.reason


def _below_the_server() -> set[str]:
    """Names of processes that the server still has; a worker that has just ended may be waited for."""
    names: set[str] = set()
    for _ in range(20):
        servers = psutil.Process().children()
        names = {child.name() for server in servers for child in server.children(recursive=True)}
        if not names:
            break
        time.sleep(0.05)
    return names


def test_every_mood_has_its_ending() -> None:
    """A mood that is added must be put to the test."""
    card = tomllib.loads((FAMILIES / "moody" / "card.toml").read_text())
    moods = {entry["arguments"]["mood"] for entry in card["variants"].values()}
    assert moods == {*ENDINGS, *ELSEWHERE}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up by their environment")
def test_kill_9_at_random_instants_loses_and_repeats_nothing() -> None:
    script = HERE / "chaos" / "kill_and_resume.py"
    program = [sys.executable, str(script), "--kills", str(KILLS), "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert json.loads(done.stdout)["kills"] == KILLS
