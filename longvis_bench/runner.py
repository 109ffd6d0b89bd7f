"""Run a cell in a process of its own and say how it ended.

On Linux a server (`server.py`) forks one worker a cell; elsewhere each cell is a new interpreter.  Whatever
happens to a worker, `Runner.run` returns a row: the worker's own if it finished one, else what it had
published so far with a status read from the evidence (exit code, signal, time limit, the kernel's OOM
counters).
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import IO, Any

from longvis_bench.errors import LongvisError
from longvis_bench.phases import finished
from longvis_bench.privacy import without_paths
from longvis_bench.records import Request, Row, Settings, Status
from longvis_bench.server import Ended

TICK_S = 0.2
"""How often a waiting runner calls `on_tick`."""
LOG_LINES = 20
KILLED = 9
"""SIGKILL, which Windows has no name for."""


class Runner:
    """Runs cells one after another, each in its own process.  Use as a context manager."""

    def __init__(self) -> None:
        self._launcher: _ForkServer | _Spawn = _ForkServer() if sys.platform == "linux" else _Spawn()

    def __enter__(self) -> Runner:
        self._launcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._launcher.stop()

    @property
    def forks(self) -> bool:
        """False where every cell pays for its own imports."""
        return isinstance(self._launcher, _ForkServer)

    def run(self, request: Request, on_tick: Callable[[], object] = lambda: None) -> Row:
        """Measure one cell.

        Arguments:
            request: the cell, and where its files are.
            on_tick: called several times a second while waiting.

        Returns:
            A complete row, whatever became of the process.

        Raises:
            KeyboardInterrupt: after the worker has been ended; `interrupted_row` makes its row.
        """
        sent = monotonic()
        request = request.model_copy(update={"sent": sent})
        kills = _oom_kills()
        with tempfile.TemporaryDirectory(prefix="longvis-", ignore_cleanup_errors=True) as folder:
            files = _Files(Path(folder))
            ended = self._launcher.run(request, files, on_tick)
            row = files.result()
            complete = row is not None
            if row is None:
                started = files.so_far() or _empty_row(request)
                status, reason = _classify(ended, request.settings, _oom_kills() - kills)
                row = started.model_copy(update={"status": status, "reason": reason})
            tail = files.log_tail() if row.status in ("crashed", "error", "timeout", "invalid") else ""
        overhead = finished(row.overhead_s, sent=sent, ended=monotonic(), complete=complete)
        return _without_paths(row.model_copy(update={"log_tail": tail, "overhead_s": overhead}))


def interrupted_row(request: Request) -> Row:
    """The row of a cell that was ended on request; it is planned again on resume."""
    return _empty_row(request).model_copy(update={"status": "skipped", "reason": "interrupted"})


def _empty_row(request: Request) -> Row:
    return Row(
        key=request.key,
        attempt=request.attempt,
        machine=request.machine,
        code=request.code,
        cell=request.cell,
        settings=request.settings,
        status="error",
        reason="not finished",
    )


def _classify(ended: Ended, settings: Settings, oom_kills: int) -> tuple[Status, str]:
    """Status and reason of a worker that left no result."""
    if ended.cancelled:
        return "skipped", "interrupted"
    if ended.timed_out:
        return (
            "timeout",
            f"no result after {settings.timeout_s:g} s; raise --timeout or lower the resolution.",
        )
    if ended.signal == KILLED and oom_kills > 0:
        return "host_oom", "the kernel ended it for want of memory; try a smaller batch or resolution."
    if ended.signal is not None:
        return "crashed", f"ended by {_signal_name(ended.signal)}; the log's last lines are in the row."
    return "crashed", f"exit {ended.exit_code} without a result"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _oom_kills() -> int:
    """How often the kernel's OOM killer has acted here: this cgroup's count, else the machine's."""
    for path, word in _oom_counters():
        try:
            pairs = (line.split() for line in path.read_text().splitlines())
            return next(int(pair[1]) for pair in pairs if pair[0] == word)
        except (OSError, StopIteration, IndexError, ValueError):
            continue
    return 0


def _oom_counters() -> list[tuple[Path, str]]:
    """Files that count OOM kills, nearest first: cgroup v2, cgroup v1, the machine."""
    counters = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            counters.append((Path(f"/sys/fs/cgroup{group}/memory.events"), "oom_kill"))
        elif "memory" in controllers.split(","):
            counters.append((Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control"), "oom_kill"))
    return [*counters, (Path("/proc/vmstat"), "oom_kill")]


def _without_paths(row: Row) -> Row:
    return row.model_copy(
        update={
            "reason": None if row.reason is None else without_paths(row.reason),
            "log_tail": without_paths(row.log_tail),
            "null_reasons": {name: without_paths(text) for name, text in row.null_reasons.items()},
        }
    )


class _Files:
    """The files a worker and its runner meet in."""

    def __init__(self, folder: Path) -> None:
        self.result_path = folder / "row.json"
        self.log_path = folder / "log.txt"

    def result(self) -> Row | None:
        """The finished row, if there is one."""
        return _read_row(self.result_path)

    def so_far(self) -> Row | None:
        """The row as last published."""
        return _read_row(self.result_path.with_suffix(".sofar"))

    def log_tail(self) -> str:
        """The last lines the worker printed."""
        try:
            size = self.log_path.stat().st_size
            with self.log_path.open("rb") as file:
                file.seek(max(0, size - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-LOG_LINES:])


def _read_row(path: Path) -> Row | None:
    try:
        return Row.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _message(request: Request, files: _Files) -> dict[str, Any]:
    return {
        "run": request.model_dump(mode="json"),
        "result": str(files.result_path),
        "log": str(files.log_path),
        "timeout_s": request.settings.timeout_s,
    }


def _command(*arguments: str) -> list[str]:
    """A fresh interpreter that finds this package, and nothing of the working directory before it."""
    root = str(Path(__file__).resolve().parent.parent)
    code = f"import sys; sys.path.append({root!r}); from longvis_bench.server import main; main()"
    return [sys.executable, "-P", "-c", code, *arguments]


class _ForkServer:
    """The parent's end of `server.py`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        self._process = subprocess.Popen(
            _command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._ready = False

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _pipe(process.stdin).close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()

    def run(self, request: Request, files: _Files, on_tick: Callable[[], object]) -> Ended:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self.start()
        assert self._process is not None
        if not self._ready:
            self._wait(self._process, on_tick)
            self._ready = True
        self._send(self._process, _message(request, files))
        try:
            answer = self._wait(self._process, on_tick)
        except KeyboardInterrupt:
            self._send(self._process, {"cancel": True})
            self._wait(self._process, lambda: None)
            raise
        return Ended() if answer is None else Ended(**answer)

    def _send(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        pipe = _pipe(process.stdin)
        pipe.write((json.dumps(message) + "\n").encode())
        pipe.flush()

    def _wait(self, process: subprocess.Popen[bytes], on_tick: Callable[[], object]) -> Any:
        """The server's next answer; None if the server itself has ended."""
        pipe = _pipe(process.stdout)
        while not select.select([pipe], [], [], TICK_S)[0]:
            on_tick()
        line = pipe.readline()
        if not line:
            if not self._ready:
                raise LongvisError("the worker process could not start; what it printed says why.")
            return None
        return json.loads(line)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


class _Spawn:
    """Where there is no fork: a new interpreter a cell, ended with its children by psutil."""

    def start(self) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        """Nothing to end."""

    def run(self, request: Request, files: _Files, on_tick: Callable[[], object]) -> Ended:
        start = monotonic()
        with files.log_path.open("wb") as log:
            process = subprocess.Popen(
                _command("--once"), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )
        timed_out = threading.Event()
        with process:
            _pipe(process.stdin).write((json.dumps(_message(request, files)) + "\n").encode())
            _pipe(process.stdin).close()
            try:
                while process.poll() is None and not timed_out.wait(TICK_S):
                    on_tick()
                    if monotonic() - start > request.settings.timeout_s:
                        timed_out.set()
            finally:
                _end_tree(process.pid)
        code = process.returncode
        return Ended(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            timed_out=timed_out.is_set(),
            seconds=monotonic() - start,
        )


def _end_tree(pid: int) -> None:
    import psutil

    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
