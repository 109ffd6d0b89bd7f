"""How a worker process ended, read from evidence: exit code, signal, limits, the kernel's OOM counters.

What a model raises inside the process is `faults.py`'s; this module speaks of processes that left no result.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from longvis_bench import units
from longvis_bench.measure.exception_status import LIMIT_COUNTS
from longvis_bench.records import Settings, Status

SIGKILL = 9
"""Windows has no name for it."""
_ROOT = Path("/")


@dataclass(frozen=True)
class Ended:
    """How a worker ended, as the process that watched it saw it."""

    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    cancelled: bool = False
    memory_bytes: int | None = None
    """What its processes held together when that passed the memory limit; None where it did not."""
    server_exit: int | None = None
    """Exit code of the process that starts workers (negative: its signal), where that one ended instead."""
    seconds: float = 0.0


class OomCounter(NamedTuple):
    """How often the kernel's OOM killer has acted, and which file says so."""

    kills: int
    source: str


def read_oom_counters(root: Path = _ROOT) -> dict[str, OomCounter]:
    """The counters of OOM kills that can be read here, nearest first: cgroup v2, cgroup v1, the machine.

    Arguments:
        root: the file system's root.

    Returns:
        By file; empty where the system keeps none.
    """
    counters = {}
    for path in _counter_files(root):
        kills = _oom_kills(path)
        if kills is not None:
            counters[str(path)] = OomCounter(kills, path.name)
    return counters


def oom_evidence(before: dict[str, OomCounter], after: dict[str, OomCounter]) -> str | None:
    """Name of the nearest file that counted an OOM kill in between.

    Only the nearest counter is evidence: the machine's also counts the kills of others.
    """
    for path, counter in after.items():
        if path in before:
            return counter.source if counter.kills > before[path].kills else None
    return None


def _counter_files(root: Path) -> list[Path]:
    """The process's cgroup by its own path, then as a container sees it, then the whole machine."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    files = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        files += [mount / group.lstrip("/") / name, mount / name]
    return [*dict.fromkeys(files), root / "proc/vmstat"]


def _oom_kills(path: Path) -> int | None:
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
        return next(int(pair[1]) for pair in pairs if pair[:1] == ["oom_kill"])
    except (OSError, StopIteration, IndexError, ValueError):
        return None


def classify_ending(
    ended: Ended, settings: Settings, oom_file: str | None, log_tail: str = ""
) -> tuple[Status, str]:
    """Status and one sentence, with advice, for a worker that left no result.

    Arguments:
        ended: what was seen of the process.
        settings: its limits.
        oom_file: `oom_evidence` of the time it ran.
        log_tail: the last lines it printed.
    """
    if ended.cancelled:
        return "skipped", "interrupted"
    if ended.memory_bytes is not None:
        return "host_oom", _over_limit(ended.memory_bytes, settings)
    if ended.timed_out:
        return (
            "timeout",
            f"no result after {settings.timeout_s:g} s; raise --timeout or lower the resolution.",
        )
    if SIGKILL in (ended.signal, -(ended.server_exit or 0)) and oom_file is not None:
        return (
            "host_oom",
            f"the kernel's OOM killer ended it ({oom_file}); try a smaller batch or resolution.",
        )
    said = next((words for words in _LOG_OOM if words in log_tail), None)
    if said is not None:
        return (
            "host_oom",
            f"native code ran out of this machine's memory ({said}); try a smaller batch or resolution.",
        )
    if ended.server_exit is not None:
        how = signal_name(-ended.server_exit) if ended.server_exit < 0 else f"exit {ended.server_exit}"
        return (
            "crashed",
            f"the process that starts cells was ended ({how}); see whether the model ends others.",
        )
    if ended.signal is not None:
        return (
            "crashed",
            f"ended by {signal_name(ended.signal)}{_ADVICE.get(ended.signal, '')}; "
            "the log's last lines are in the row.",
        )
    return (
        "crashed",
        f"exit {ended.exit_code} without a result; look for an exit call in the model, "
        "the log's last lines are in the row.",
    )


_LOG_OOM = ("std::bad_alloc", "libgomp: Out of memory", "LLVM ERROR: out of memory")
"""What native code prints before it gives up for want of memory."""
_ADVICE = {
    4: " (an instruction this processor lacks: install a build for it)",
    SIGKILL: " (by somebody else or itself: the OOM killer counted nothing)",
}


def _over_limit(held: int, settings: Settings) -> str:
    limit = settings.memory_limit_bytes
    return (
        f"its processes held {units.size(held)}, more than the memory limit of {units.size(limit)}; "
        f"raise --memory-limit, or try a smaller batch or resolution. {LIMIT_COUNTS}"
    )


def signal_name(number: int) -> str:
    """`11` -> `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
