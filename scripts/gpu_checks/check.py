"""What a check is, and what its function gets; the checks stand in the modules beside this one."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from longvis_bench.records import Row
from longvis_bench.runs.directory import current, read_rows

Figures = dict[str, Any]


class Skip(Exception):
    """A check does not apply to this machine."""


@dataclass
class Context:
    """Where a run of the checks happens."""

    device: str
    folder: Path

    def bench(self, name: str, *options: str) -> list[Row]:
        """The rows of `longvis bench` as a user runs it, in a process of its own."""
        out = self.folder / f"run-{name}"
        common = ("--device", self.device, "--out", str(out), "--fresh", "--quick")
        done = longvis("bench", *options, *common)
        runs = sorted(self.folder.glob(f"run-{name}*/cells.jsonl"), key=lambda file: file.stat().st_mtime)
        if not runs:
            raise RuntimeError(done.stderr[-800:])
        return current(read_rows(runs[-1].parent))


@dataclass
class Check:
    """One check: its function gives whether the criterion holds, and the figures."""

    run: Callable[[Context], tuple[bool, Figures]]
    limit_s: float

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def criterion(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


def check(limit_s: float) -> Callable[[Callable[[Context], tuple[bool, Figures]]], Check]:
    """Make a function a check; its docstring is the criterion."""
    return lambda run: Check(run, limit_s)


def longvis(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "longvis_bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def ended(rows: list[Row]) -> dict[str, str]:
    """How each cell ended, with its reason."""
    ends = {}
    for row in rows:
        cell = row.cell
        name = f"{cell.model} {cell.resolution} px, batch {cell.batch_size}, {cell.dtype}, {cell.mode}"
        ends[name] = f"{row.status}: {row.reason[:160]}" if row.reason else row.status
    return ends


def all_ok(rows: list[Row], count: int) -> bool:
    return [row.status for row in rows] == ["ok"] * count


def run(one: Check, context: Context) -> Figures:
    """One check's entry of the report; what it raises is a failure with its traceback."""
    start, entry = perf_counter(), {"criterion": one.criterion, "limit_s": one.limit_s}
    try:
        passed, figures = one.run(context)
        entry |= {"verdict": "ok" if passed else "failed", "figures": figures}
    except Skip as reason:
        entry |= {"verdict": "skipped", "reason": str(reason)}
    except Exception as error:
        entry |= {"verdict": "failed", "reason": repr(error), "traceback": traceback.format_exc()[-1500:]}
    return {**entry, "seconds": round(perf_counter() - start, 1)}
