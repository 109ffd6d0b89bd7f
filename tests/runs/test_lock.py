"""The lock of a run's folder: one writer, on systems with and without POSIX record locks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longvis_bench.errors import RunDirectoryError
from longvis_bench.runs.lock import Lock

WITHOUT_POSIX = "import filelock; sys.modules['fcntl'] = None; "
"""As on Windows, where there is no module fcntl; filelock, imported before, keeps its own."""
HOLD = """
import sys
{system}
from pathlib import Path
from longvis_bench.runs.lock import Lock
lock = Lock(Path({path!r}))
print("taken", flush=True)
sys.stdin.readline()
{end}
print("released", flush=True)
sys.stdin.readline()
"""


def holder(path: Path, system: str, end: str = "lock.release()") -> subprocess.Popen[str]:
    """A process that takes the lock and releases it after a line of input."""
    code = HOLD.format(system=system, path=str(path), end=end)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture(params=["posix", "elsewhere"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Code that makes a process see the system; this process sees it, too."""
    if request.param == "posix":
        return ""
    import filelock  # noqa: F401

    monkeypatch.setitem(sys.modules, "fcntl", None)
    return WITHOUT_POSIX


def test_a_second_writer_is_refused_until_the_first_ends(system: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, system) as first:
        assert told(first) == "taken"
        with pytest.raises(RunDirectoryError, match="another longvis run is writing"):
            Lock(path)
        go_on(first)
        assert told(first) == "released"
        Lock(path).release()
        go_on(first)


def test_the_lock_of_a_dead_process_is_free(system: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, system) as first:
        assert told(first) == "taken"
        first.kill()
        first.wait()
    Lock(path).release()


def test_one_process_does_not_take_it_twice(system: str, tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    with pytest.raises(RunDirectoryError):
        Lock(tmp_path / "lock")
    lock.release()
    Lock(tmp_path / "lock").release()
