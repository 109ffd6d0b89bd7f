"""`kill -9` of a sweep at random instants, each followed by a resume, and what must hold at the end.

    python tests/chaos/kill_and_resume.py --kills 200 --seed 1

A sweep of 20 cells is started, killed at a random instant, started again
with the same command, and so on until it completes; then the next sweep, until there were as many kills as
asked for.  The model keeps a diary of the cells that really ran.  Checked:

    at each kill    every process of the sweep is gone a second later, those that left its session included
    at each resume  no cell that had its row runs again
    at the end      exactly 20 rows and keys, each once in `load_results`; cells ran once more than that only
                    where a kill had cut them off
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import longvis_bench as lv
from longvis_bench.resolution import Resolution
from longvis_bench.runs.directory import ROWS, TORN, read_rows

ROOT = Path(lv.__file__).parent.parent
FAMILIES = Path(__file__).parent.parent / "families"
SIZES = tuple(range(32, 32 + 16 * 20, 16))
GONE_WITHIN_S = 1.0
HANGS_AFTER_S = 240.0


@dataclass
class Counts:
    """What happened, over all sweeps."""

    seed: int
    sweeps: int = 0
    kills: int = 0
    kills_before_the_first_row: int = 0
    kills_during_a_cell: int = 0
    resumes: int = 0
    torn_tails: int = 0
    rows: int = 0
    cells_run: int = 0
    reruns_of_cut_off_cells: int = 0
    orphans: int = 0


class Sweep:
    """One run directory, from its first start to its last row."""

    def __init__(self, folder: Path, counts: Counts) -> None:
        self.run, self.diary, self.counts = folder / "run", folder / "diary", counts
        self.environment = {**os.environ, "MOODY_DIARY": str(self.diary), "PYTHONPATH": str(ROOT)}
        self.command = [sys.executable, "-m", "longvis_bench", "bench", "--models", "moody-naps"]
        self.command += ["--models-dir", str(FAMILIES), "--res", ",".join(map(str, SIZES)), "--device", "cpu"]
        # one process per cell: further ones run cells again on purpose (tests/sweep/test_processes.py)
        self.command += ["--threads", "1", "--metrics", "count,time", "--budget", "0.3", "--quick"]
        self.command += ["--out", str(self.run)]

    def start(self, seconds: float | None) -> bool:
        """Run, and kill after so many seconds; True if it had ended before."""
        done, ran = self.rows(), len(self.ran())
        process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = process.communicate(timeout=HANGS_AFTER_S if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            assert seconds is not None, f"no end after {HANGS_AFTER_S} s: {self.command}"
            process.send_signal(signal.SIGKILL)
            process.communicate()
            self._note_kill(len(self.ran()) - ran)
            killed = True
        else:
            assert process.returncode == 0, output.decode()
            killed = False
        again = set(self.ran()[ran:]) & done
        assert not again, f"cells with rows were run again: {again}"
        return not killed

    def rows(self) -> set[Resolution]:
        """Sizes of the cells that have their row."""
        if not (self.run / ROWS).exists():
            return set()
        return {row.cell.resolution for row in read_rows(self.run)}

    def ran(self) -> list[int]:
        """Sizes of the cells that ran, in order, cut-off ones included."""
        return [int(line) for line in self.diary.read_text().split()] if self.diary.exists() else []

    def _note_kill(self, started: int) -> None:
        self.counts.kills += 1
        killed_at = time.monotonic()
        while (left := self._alive()) and time.monotonic() < killed_at + GONE_WITHIN_S:
            time.sleep(0.02)
        self.counts.orphans += len(left)
        for process in left:
            print("alive after a second:", process, file=sys.stderr)
        self.counts.kills_before_the_first_row += not self.rows()
        self.counts.kills_during_a_cell += len(self.ran()) > len(self.rows()) and started > 0

    def _alive(self) -> list[psutil.Process]:
        """Every process that this sweep started, whoever its parent is now: all inherit the diary's name."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("MOODY_DIARY") == str(self.diary)
                if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def check(self) -> None:
        """What must hold once it is complete."""
        rows, ran = read_rows(self.run), Counter(self.ran())
        frame = lv.load_results(self.run)
        assert [row.status for row in rows] == ["ok"] * len(SIZES), [(row.status, row.reason) for row in rows]
        assert len(rows) == len({row.key for row in rows}) == len(SIZES)
        assert sorted(frame["key"]) == sorted(row.key for row in rows)
        assert sorted(frame["resolution"]) == sorted(ran) == list(SIZES)
        torn = self.run / TORN
        self.counts.torn_tails += len(torn.read_text().splitlines()) if torn.exists() else 0
        self.counts.rows += len(rows)
        self.counts.cells_run += ran.total()
        self.counts.reruns_of_cut_off_cells += ran.total() - len(SIZES)


def kill_and_resume(kills: int, seed: int, folder: Path, until_s: float = float("inf")) -> Counts:
    """Kill sweeps and resume them.

    Arguments:
        kills: how often in all.
        seed: of the instants.
        folder: for the runs; made where it is not there.
        until_s: start no further sweep after so many seconds.

    Raises:
        AssertionError: something that must hold does not.
    """
    chance, counts, begun = random.Random(seed), Counts(seed), time.monotonic()
    whole_s = _seconds_of_a_sweep(folder / "unharmed")
    while counts.kills < kills and time.monotonic() < begun + until_s:
        place = folder / f"sweep-{counts.sweeps}"
        place.mkdir(parents=True)
        sweep = Sweep(place, counts)
        while not sweep.start(_instant(chance, whole_s) if counts.kills < kills else None):
            counts.resumes += 1
        sweep.check()
        counts.sweeps += 1
        print(json.dumps(asdict(counts)), file=sys.stderr, flush=True)
    assert counts.orphans == 0, counts
    assert counts.reruns_of_cut_off_cells <= counts.kills_during_a_cell, counts
    return counts


def _instant(chance: random.Random, whole_s: float) -> float:
    """Seconds after which to kill: of a whole sweep, or of its first fifth, the start and the first cells.

    What is resumed has less left to do, so that instants drawn over the whole would mostly come too late.
    """
    return chance.uniform(0, whole_s * chance.choice((0.2, 0.2, 1.0)))


def _seconds_of_a_sweep(folder: Path) -> float:
    """What a sweep takes that nobody kills."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    Sweep(folder, Counts(seed=0)).start(None)
    return time.monotonic() - started


def main() -> None:
    """Print the counts as one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_and_resume(options.kills, options.seed, Path(folder), options.until)
    print(json.dumps(asdict(counts)))


if __name__ == "__main__":
    main()
