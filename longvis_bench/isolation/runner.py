"""Run each cell in a process of its own, and return its row.

On Linux a server (`fork_server.py`) forks one worker per cell; on other systems each cell is a new
interpreter.  `Runner.run` returns a row however the worker ends: the worker's row if it finished one, else
the row it last published, with a status that `exit_status.py` derives from how it ended.  Two failures are no
result of a cell and raise an error instead: a disk that takes no files, and a bug of the harness.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from longvis_bench.errors import HarnessFault, LongvisError, RunDirectoryError
from longvis_bench.files import PACKAGE, copy_whole
from longvis_bench.isolation.exit_status import Ended, classify_ending, oom_evidence, read_oom_counters
from longvis_bench.measure.latency.turns import waited_s
from longvis_bench.phases import finished
from longvis_bench.records import Request, Row
from longvis_bench.runs.directory import cannot_write
from longvis_bench.runs.progress import INTERRUPTED
from longvis_bench.text import without_paths

if TYPE_CHECKING:
    import psutil

TICK_S = 0.2
"""Interval at which a waiting runner calls `on_tick`."""
LOG_LINES = 20
"""Number of lines of a cell's log that a row stores."""
ANSWER_GRACE_S = 30.0
"""Seconds after a cell's time limit after which the runner kills a server that has not answered."""
PROBE_BYTES = 64 * 1024
"""Free space that rules out a full disk as the cause of a missing result."""
MARK = "LONGVIS_SWEEP"
"""Environment variable that every process of a sweep inherits; identifies orphans."""


class Runner:
    """Runs cells one after another, each in its own process.  Use as a context manager.

    Arguments:
        fork: False starts a new interpreter per cell; the default is to fork where the system can.
        variables: environment variables of the cells' processes, in addition to those of this one.
        processors: processors that the cells may use; empty for those of this process.
    """

    def __init__(
        self,
        fork: bool | None = None,
        *,
        variables: Mapping[str, str] | None = None,
        processors: Collection[int] = (),
    ) -> None:
        forks = can_fork() if fork is None else fork
        place = _Place(dict(variables or {}), tuple(processors))
        self._launcher: _ForkServer | _Spawn = _ForkServer(place) if forks else _Spawn(place)

    def __enter__(self) -> Runner:
        self._launcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._launcher.stop()

    @property
    def forks(self) -> bool:
        """Whether cells are forked; if not, each cell spends time on its own imports."""
        return isinstance(self._launcher, _ForkServer)

    def run(self, request: Request, on_tick: Callable[[], object] = lambda: None) -> Row:
        """Measure one cell.

        Arguments:
            request: the cell and the paths of its files.
            on_tick: called several times per second while waiting.

        Returns:
            A complete row, however the process ended.

        Raises:
            KeyboardInterrupt: raised again after the worker is killed; `interrupted_row` makes its row.
            RunDirectoryError: the disk takes no more files.
            HarnessFault: the harness itself failed, so the cell has no row.
        """
        sent = monotonic()
        request = request.model_copy(update={"sent": sent})
        before = read_oom_counters()
        try:
            folder = tempfile.TemporaryDirectory(prefix="longvis-", ignore_cleanup_errors=True)
        except OSError as error:
            raise _no_room(error) from error
        with folder:
            files = CellFiles(Path(folder.name))
            paths = {
                "predictions_path": request.predictions_path and files.predictions_path,
                "turn_note": request.turns and files.turn_note,
            }
            ended = self._launcher.run(request.model_copy(update=paths), files, on_tick)
            oom_file = oom_evidence(before, read_oom_counters())
            row = files.result()
            complete = row is not None
            if row is None:
                row = unfinished_row(request, files, ended, oom_file)
            files.deliver_predictions(request.predictions_path)
            tail = files.log_tail() if row.status in ("crashed", "error", "timeout", "invalid") else ""
        overhead = finished(row.overhead_s, sent=sent, ended=monotonic(), complete=complete)
        return _without_paths(row.model_copy(update={"log_tail": tail, "overhead_s": overhead}))


def can_fork() -> bool:
    """Whether cells can be forked from a process with the imports done: on Linux with pidfd."""
    return sys.platform == "linux" and hasattr(os, "fork") and hasattr(os, "pidfd_open")


def unfinished_row(request: Request, files: CellFiles, ended: Ended, oom_file: str | None) -> Row:
    """The row of a worker that left no result: the row it last published, with the status of its end.

    Raises:
        RunDirectoryError: the folder of its files is full.
        HarnessFault: the worker left the traceback of a bug of the harness.
    """
    if not ended.cancelled:
        files.probe()
        fault = files.fault()
        if fault is not None:
            raise HarnessFault(fault)
    started = files.so_far() or Row.of(request)
    status, reason = classify_ending(ended, request.settings, oom_file, files.log_tail())
    return started.model_copy(update={"status": status, "reason": reason})


def _no_room(error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"cannot write to the folder for temporary files {tempfile.gettempdir()}: {error.strerror or error}; "
        "free some space or set TMPDIR, then give the same command again: rows written so far are kept."
    )


def interrupted_row(request: Request) -> Row:
    """The row of a cell that the user interrupted; a resumed sweep measures it again."""
    return Row.of(request, "skipped", INTERRUPTED)


def _without_paths(row: Row) -> Row:
    return row.model_copy(
        update={
            "reason": None if row.reason is None else without_paths(row.reason),
            "log_tail": without_paths(row.log_tail),
            "null_reasons": {name: without_paths(text) for name, text in row.null_reasons.items()},
        }
    )


class CellFiles:
    """The files through which a worker and its runner communicate."""

    def __init__(self, folder: Path) -> None:
        self.result_path = folder / "row.json"
        self.log_path = folder / "log.txt"
        self.predictions_path = folder / "predictions.npz"
        self.turn_note = folder / "turn.json"

    def result(self) -> Row | None:
        """The finished row, if there is one."""
        return _read_row(self.result_path)

    def so_far(self) -> Row | None:
        """The row that the worker last published."""
        return _read_row(self.result_path.with_suffix(".sofar"))

    def fault(self) -> str | None:
        """The traceback of a bug of the harness, if the worker left one."""
        try:
            return self.result_path.with_suffix(".fault").read_text(encoding="utf-8") or None
        except OSError:
            return None

    def probe(self) -> None:
        """Check that the worker was able to write its result here.

        Raises:
            RunDirectoryError: the folder takes no files.
        """
        try:
            self.result_path.with_suffix(".probe").write_bytes(bytes(PROBE_BYTES))
        except OSError as error:
            raise _no_room(error) from error

    def deliver_predictions(self, target: Path | None) -> None:
        """Copy the predictions, if there are any, to the run's directory, atomically and durably.

        The row is appended afterwards, so that after a power cut every row has its predictions.

        Raises:
            RunDirectoryError: the run's directory takes no more files.
        """
        if target is None or not self.predictions_path.exists():
            return
        try:
            copy_whole(self.predictions_path, target)
        except OSError as error:
            raise cannot_write(target.parent.parent, error) from error

    def log_tail(self) -> str:
        """The last lines of the worker's output."""
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


def _message(request: Request, files: CellFiles) -> dict[str, Any]:
    return {
        "run": request.model_dump(mode="json"),
        "result": str(files.result_path),
        "log": str(files.log_path),
        "turn_note": None if request.turns is None else str(files.turn_note),
        "timeout_s": request.settings.timeout_s,
        "memory_limit_bytes": request.settings.memory_limit_bytes,
    }


def _command(*arguments: str) -> list[str]:
    """Command of a new interpreter that finds this package and does not search the working directory."""
    path = f"import sys; sys.path.append({str(PACKAGE.parent)!r})"
    code = f"{path}; from longvis_bench.isolation.fork_server import main; main()"
    return [sys.executable, "-P", "-c", code, *arguments]


class _Place(NamedTuple):
    """What the processes of cells get in addition to what they inherit."""

    variables: dict[str, str]
    processors: tuple[int, ...]

    def confine(self, pid: int) -> None:
        """Confine a process, and those that it starts later, to the processors."""
        if self.processors and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # it has ended already
                os.sched_setaffinity(pid, self.processors)


class _ForkServer:
    """The parent's end of `fork_server.py`."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._mark = uuid4().hex

    def start(self) -> None:
        self._process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **self._place.variables, MARK: self._mark},
        )
        self._place.confine(self._process.pid)
        self._ready = False

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):  # the server is dead and needs no unsent request
            _pipe(process.stdin).close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()
        if process.returncode != 0:
            _end_marked(self._mark)

    def run(self, request: Request, files: CellFiles, on_tick: Callable[[], object]) -> Ended:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self.start()
        assert self._process is not None
        if not self._ready:
            self._wait(self._process, on_tick)
            self._ready = True
        start = monotonic()
        try:
            self._send(self._process, _message(request, files))
            limit = request.settings.timeout_s + ANSWER_GRACE_S
            answer = self._wait(self._process, on_tick, lambda: limit + waited_s(request.turn_note))
        except KeyboardInterrupt:
            self._send(self._process, {"cancel": True})
            self._wait(self._process, lambda: None, lambda: ANSWER_GRACE_S)
            raise
        return Ended(**answer) if answer is not None else self._lost(start, request)

    def _lost(self, start: float, request: Request) -> Ended:
        """The end of a cell whose server ended, or was killed because it did not answer, with its tree."""
        assert self._process is not None
        seconds, process = monotonic() - start, self._process
        self.stop()
        late = seconds > request.settings.timeout_s
        return Ended(server_exit=process.returncode, timed_out=late, seconds=seconds)

    def _send(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        pipe = _pipe(process.stdin)
        try:
            pipe.write((json.dumps(message) + "\n").encode())
            pipe.flush()
        except BrokenPipeError:
            return  # the server has ended; `_wait` reports that

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        on_tick: Callable[[], object],
        patience_s: Callable[[], float] | None = None,
    ) -> Any:
        """The server's next answer; None if the server has ended or was killed."""
        pipe, start = _pipe(process.stdout), monotonic()
        while not _readable(pipe, TICK_S):
            on_tick()
            if process.poll() is not None and not _readable(pipe, 0):
                break  # an orphan of the server keeps the pipe open
            if patience_s is not None and monotonic() - start > patience_s():
                process.kill()
        line = pipe.readline() if _readable(pipe, 0) else b""
        if not line and not self._ready:
            raise LongvisError("the fork server could not start; its output above says why.")
        return json.loads(line) if line else None


def _readable(pipe: IO[bytes], seconds: float) -> bool:
    return bool(select.select([pipe], [], [], seconds)[0])


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


class _Spawn:
    """Launcher without fork: a new interpreter per cell, killed with its children through psutil."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    def start(self) -> None:
        """Do nothing: there is no server."""

    def stop(self) -> None:
        """Do nothing: there is no server."""

    def run(self, request: Request, files: CellFiles, on_tick: Callable[[], object]) -> Ended:
        start = monotonic()
        seen: dict[str, Any] = {}
        with files.log_path.open("wb") as log:
            process = subprocess.Popen(
                _command("--once"),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._place.variables},
            )
        self._place.confine(process.pid)
        with process:
            _pipe(process.stdin).write((json.dumps(_message(request, files)) + "\n").encode())
            _pipe(process.stdin).close()
            try:
                while not seen and not _ends_within(process, TICK_S):
                    on_tick()
                    seen = _limits_passed(process.pid, start, request)
            finally:
                _end_tree(process.pid)
        code = process.returncode
        ended = {"exit_code": code} if code >= 0 else {"signal": -code}
        return Ended(**{**ended, **seen, "seconds": monotonic() - start})


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _limits_passed(pid: int, start: float, request: Request) -> dict[str, Any]:
    """The limit that a spawned cell has exceeded, as a field of `Ended`; empty if it exceeds none."""
    settings = request.settings
    if monotonic() - start > settings.timeout_s + waited_s(request.turn_note):
        return {"timed_out": True}
    if settings.memory_limit_bytes is not None:
        held = sum(_resident_bytes(member) for member in _family(pid))
        if held > settings.memory_limit_bytes:
            return {"memory_bytes": held}
    return {}


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants, children first."""
    import psutil

    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def _resident_bytes(process: psutil.Process) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _end_tree(pid: int) -> None:
    for member in _family(pid):
        _end(member)


def _end_marked(mark: str) -> None:
    """Kill the processes of a dead server, including those of other sessions, by their mark.

    The search is repeated, because a process that executes another program has no mark for a moment.
    """
    import psutil

    for _ in range(3):
        left = [process for process in psutil.process_iter() if _has_mark(process, mark)]
        for process in left:
            _end(process)
        psutil.wait_procs(left, timeout=1)
        if not left:
            return


def _has_mark(process: psutil.Process, mark: str) -> bool:
    import psutil

    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def _end(process: psutil.Process) -> None:
    import psutil

    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
