"""The process that forks one worker per cell: `python -m longvis_bench.isolation.fork_server`.

It imports torch and timm once, executes no tensor operation and never initialises CUDA, so a fork of it is a
fresh process with the imports already done.  It reads one JSON request per line from standard input and
answers with one JSON line per request on standard output; every worker has its own session and log file.

No process outlives its cell: the server is the subreaper of all processes that its workers start, and kills
the whole tree at the time limit, at the memory limit and after each cell.  When the parent dies in any way,
the server's standard input closes, and the server kills the tree and exits.

It imports no other module of this package before it has arranged to die with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FIRST_FOR_OOM_KILLER = "1000"
_MEMORY_TICK_S = 0.02
"""Interval at which the server reads the memory of a cell with a limit."""
_CPU_DATA_LIMIT = 1.0
"""RLIMIT_DATA headroom for CPU cells, as a multiple of the memory limit.  The server reads the memory every
20 ms; a larger allocation must fail at once."""


def main() -> None:
    """Serve requests until standard input closes; with `--once`, act as the worker of one request."""
    if sys.argv[1:] == ["--once"]:
        _work(json.loads(sys.stdin.readline()))
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _hung_up(0):  # the parent died before the line above, which acts on later deaths only
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    _import_heavy()
    _prctl(_PR_SET_PDEATHSIG, 0)  # from here on the closing of standard input ends the server and its tree
    _answer(answers, {"ready": os.getpid()})
    requests = _Lines(0)
    while (line := requests.next()) is not None:
        request = json.loads(line)
        if "run" not in request:
            continue
        ended = _run(request, requests, answers)
        if requests.closed:
            break
        _answer(answers, ended)
    _kill_descendants()
    os._exit(0)  # skips torch's slow shutdown, because the parent may be dead


def _hung_up(descriptor: int) -> bool:
    """Whether the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _import_heavy() -> None:
    """Import and read before the first fork what nearly every worker needs."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import timm  # noqa: F401
    import torch  # noqa: F401

    import longvis_bench.measure.cell  # noqa: F401
    from longvis_bench.data.digits import read_scans
    from longvis_bench.registry.registry import preload

    preload()
    read_scans()


class _Lines:
    """Lines of a file descriptor that is also used with select, which does not see Python's own buffers."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.closed = False
        self._buffer = b""

    def next(self) -> str | None:
        """The next line; None after the other end has closed."""
        while b"\n" not in self._buffer:
            if not self.read():
                return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def read(self) -> bool:
        """Read the available bytes into the buffer; False at the end of the stream."""
        chunk = os.read(self.descriptor, 65536)
        self.closed = not chunk
        self._buffer += chunk
        return bool(chunk)

    def take_cancel(self) -> bool:
        """Remove a cancel request from the buffer; whether there was one."""
        before, self._buffer = self._buffer, self._buffer.replace(b'{"cancel": true}\n', b"")
        return before != self._buffer


def _run(request: dict[str, Any], requests: _Lines, answers: int) -> dict[str, Any]:
    """Fork a worker, wait until it ends or kill it at a limit; the fields of `exit_status.Ended`."""
    start, server = monotonic(), os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(answers)
        _be_worker(request, requests.descriptor, server)
    seen = _watch(pid, _deadline(start, request), request.get("memory_limit_bytes"), requests)
    _kill_tree(pid)
    _, status = os.waitpid(pid, 0)
    _kill_descendants()
    code = os.waitstatus_to_exitcode(status)
    ended = {"exit_code": code} if code >= 0 else {"signal": -code}
    return {**ended, **seen, "seconds": monotonic() - start}


def _deadline(start: float, request: dict[str, Any]) -> Callable[[], float]:
    """The moment at which a worker is ended, later by the time for which it has waited for other cells."""
    note = request.get("turn_note")
    if note is None:
        return lambda: start + float(request["timeout_s"])
    from longvis_bench.measure.latency.turns import waited_s

    return lambda: start + float(request["timeout_s"]) + waited_s(Path(note))


def _watch(
    pid: int, deadline: Callable[[], float], memory_limit: int | None, requests: _Lines
) -> dict[str, Any]:
    """Wait until the worker ends, exceeds a limit or is cancelled; a field of `Ended`, or empty."""
    child = os.pidfd_open(pid)
    try:
        while True:
            left = deadline() - monotonic()
            if left <= 0:
                return {"timed_out": True}
            held = 0 if memory_limit is None else unreclaimable_bytes([pid, *_below(pid)])
            if memory_limit is not None and held > memory_limit:
                return {"memory_bytes": held}
            wait = left if memory_limit is None else min(left, _MEMORY_TICK_S)
            ready, _, _ = select.select([child, requests.descriptor], [], [], wait)
            if child in ready:
                return {}
            if requests.descriptor in ready:
                requests.read()
                if requests.closed or requests.take_cancel():
                    return {"cancelled": True}
    finally:
        os.close(child)


def unreclaimable_bytes(processes: list[int]) -> int:
    """Memory of processes that the kernel cannot reclaim: resident without file-backed pages, and swapped."""
    return sum(_held_by(pid) for pid in processes)


def _held_by(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = (line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")))
    return sum(int(field[1]) * 1024 for field in fields)


def _limit_data(limit: int | None, device: str) -> None:
    """Make allocations far beyond the limit fail at once: between readings a process can allocate gigabytes.

    This holds for CPU cells only, because drivers of accelerators map more memory than they use.
    """
    if limit is None or device != "cpu":
        return
    import resource

    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    bound = now + int(_CPU_DATA_LIMIT * limit)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def _be_worker(request: dict[str, Any], requests: int, server: int) -> None:
    """Run a request in the forked child; never returns."""
    code = 1
    try:
        os.setsid()
        _die_with(server)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        offer_to_oom_killer()
        _redirect(Path(request["log"]), requests)
        _limit_data(request.get("memory_limit_bytes"), request["run"]["cell"]["device"])
        _work(request)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(request: dict[str, Any]) -> None:
    """Measure, and write the row for the parent, or the traceback of a bug of the harness."""
    import traceback

    from longvis_bench.files import write_whole
    from longvis_bench.measure.cell import measure_cell
    from longvis_bench.records import Request

    result = Path(request["result"])

    def publish(row: Any, name: str = ".sofar") -> None:
        line = row.to_json().encode()
        write_whole(result.with_suffix(name), lambda file: file.write(line), durable=False)

    try:
        publish(measure_cell(Request.model_validate(request["run"]), publish), result.suffix)
    except Exception:
        fault = traceback.format_exc().encode()
        write_whole(result.with_suffix(".fault"), lambda file: file.write(fault), durable=False)
        raise


def _redirect(log: Path, requests: int) -> None:
    """Redirect standard output and error to the cell's log, and standard input to the null device."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, requests)


def offer_to_oom_killer() -> None:
    """Make the OOM killer choose this process and its children before any other process."""
    try:
        Path("/proc/self/oom_score_adj").write_text(_FIRST_FOR_OOM_KILLER)
    except OSError:
        return


def _kill_tree(pid: int) -> None:
    """Kill the worker's process group and all its descendants; harmless if they have ended."""
    for victim in [*_below(pid), pid]:
        _kill(victim)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _kill_descendants() -> None:
    """Kill and reap all descendants of this server, including processes that left their session."""
    while below := _below(os.getpid()):
        for victim in below:
            _kill(victim)
        for victim in below:
            try:
                os.waitpid(victim, 0)
            except ChildProcessError:
                continue


def _below(pid: int) -> list[int]:
    """All descendants of a process, children first."""
    found = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []
    for child in children:
        found += [child, *_below(child)]
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _die_with(parent: int) -> None:
    """End when the parent ends, and at once if it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _answer(descriptor: int, message: dict[str, Any]) -> None:
    os.write(descriptor, (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    main()
