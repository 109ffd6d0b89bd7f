"""Status of a worker process that left no result, from exit code, signal, limits and OOM counters.

`measure/exception_status.py` classifies exceptions inside the process.
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
"""A number, because `signal.SIGKILL` does not exist on Windows."""
_ROOT = Path("/")


@dataclass(frozen=True)
class Ended:
    """How a worker ended, as observed by the process that watched it."""

    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    cancelled: bool = False
    memory_bytes: int | None = None
    """Memory of all processes of the cell when it exceeded the limit; None if it did not."""
    server_exit: int | None = None
    """Exit code of the fork server (negative: its signal), if the server ended before the worker."""
    seconds: float = 0.0


class OomCounter(NamedTuple):
    """Number of kills by the kernel's OOM killer, and the name of the file that counts them."""

    kills: int
    source: str


def read_oom_counters(root: Path = _ROOT) -> dict[str, OomCounter]:
    """All readable counters of OOM kills, most specific first: cgroup v2, cgroup v1, the machine.

    Arguments:
        root: the file system's root.

    Returns:
        Path -> counter; empty if the system has none.
    """
    counters = {}
    for path in _counter_files(root):
        kills = _oom_kills(path)
        if kills is not None:
            counters[str(path)] = OomCounter(kills, path.name)
    return counters


def oom_evidence(before: dict[str, OomCounter], after: dict[str, OomCounter]) -> str | None:
    """Name of the most specific counter file, if its count has increased; else None.

    Only that counter is evidence, because the machine's counter includes kills outside this cgroup.
    """
    for path, counter in after.items():
        if path in before:
            return counter.source if counter.kills > before[path].kills else None
    return None


def _counter_files(root: Path) -> list[Path]:
    """Counter files of the process's cgroup: by its full path, as seen in a container, and of the machine."""
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
    """Status, and a reason of one sentence with advice, for a worker that left no result.

    Arguments:
        ended: how the process ended.
        settings: the settings of the cell, with its limits.
        oom_file: `oom_evidence` for the run of the process.
        log_tail: last lines of the process's output.
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
            f"the kernel's OOM killer ended the process ({oom_file}); try a smaller batch or resolution.",
        )
    message = next((text for text in _LOG_OOM if text in log_tail), None)
    if message is not None:
        return (
            "host_oom",
            f"native code ran out of host memory ({message}); try a smaller batch or resolution.",
        )
    if ended.server_exit is not None:
        how = signal_name(-ended.server_exit) if ended.server_exit < 0 else f"exit {ended.server_exit}"
        return (
            "crashed",
            f"the fork server ended ({how}); check whether the model kills other processes.",
        )
    if ended.signal is not None:
        return (
            "crashed",
            f"the process ended by {signal_name(ended.signal)}{_ADVICE.get(ended.signal, '')}; "
            "the row has the last lines of its log.",
        )
    return (
        "crashed",
        f"the process ended with exit code {ended.exit_code} and no result; look for an exit call in the "
        "model: the row has the last lines of its log.",
    )


_LOG_OOM = ("std::bad_alloc", "libgomp: Out of memory", "LLVM ERROR: out of memory")
"""Messages of native code that fails to allocate memory."""
_ADVICE = {
    4: " (an instruction that this processor lacks: install a build for it)",
    SIGKILL: " (not from the OOM killer, which counted no kill)",
}


def _over_limit(held: int, settings: Settings) -> str:
    limit = settings.memory_limit_bytes
    return (
        f"the cell's processes held {units.size(held)}, more than the memory limit of {units.size(limit)}; "
        f"raise --memory-limit, or try a smaller batch or resolution. {LIMIT_COUNTS}"
    )


def signal_name(number: int) -> str:
    """`11` -> `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
