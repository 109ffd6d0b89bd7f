"""What several test files share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from longvis_bench.files import PACKAGE
from longvis_bench.isolation import runner
from longvis_bench.records import Cell, Row

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: a thread that spins at a barrier takes the time of the one it waits for, and
    # tests take more than twice as long.  OpenMP reads this when torch is imported, in child processes, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ENVIRONMENT = dict(os.environ)
"""As it is before any test."""

HERE = Path(__file__).parent
ROOT = HERE.parent
FAMILIES = HERE / "families"
PARENT = PACKAGE.parent
"""The folder that the tested package is imported from."""

Longvis = Callable[..., "subprocess.CompletedProcess[str]"]
Pictures = Callable[..., Path]
ModelFile = Callable[..., Path]
Plant = Callable[[str, int], "AbstractContextManager[object]"]

MODEL = """import torch
from torch import nn
def build(*, resolution, num_classes, in_chans=3):
    return Net(num_classes)
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.head = nn.Linear(3, n)
    def forward(self, x):
"""
"""A model's file up to the lines of its forward pass."""


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, so that `./models` and `results/` are its own too."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of a session have a cache of their own; `_own_cache` gives every test one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGVIS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test starts with an empty cache: its folder is made by the first entry."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGVIS_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / name))
        yield


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With several workers (`pytest -n 2`), a test marked `alone` runs while no other test does.

    Every test holds `running`, those marked for itself only; the `door` keeps others from going ahead of a
    test that waits for it.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    shared = tmp_path_factory.getbasetemp().parent
    alone = request.node.get_closest_marker("alone") is not None
    with (shared / "running.lock").open("w") as running:
        with (shared / "door.lock").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


class PreparedServer:
    """A fork server that `prepared_process.py` has forked, with the part of `Popen` that `Runner` uses."""

    def __init__(self, channel: socket.socket, environment: dict[str, str]) -> None:
        request = json.dumps({"environment": environment, "folder": str(Path.cwd())}).encode()
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        ours, theirs = os.pipe()
        socket.send_fds(channel, [request], [theirs_in, theirs_out, 2, theirs])
        for descriptor in (theirs_in, theirs_out, theirs):
            os.close(descriptor)
        self.stdin: IO[bytes] = os.fdopen(ours_in, "wb")
        self.stdout: IO[bytes] = os.fdopen(ours_out, "rb")
        self._answers: IO[bytes] = os.fdopen(ours, "rb", buffering=0)
        self.returncode: int | None = None
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code.

        Raises:
            TimeoutExpired: it runs on.
        """
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("fork server", timeout or 0.0)
            self.returncode = int(self._answers.readline() or -signal.SIGKILL)
            self._answers.close()
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def _prepared() -> Iterator[Callable[[], socket.socket]]:
    """The socket of `prepared_process.py`, which starts with the first server of the session."""
    started: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []

    def channel() -> socket.socket:
        if not started:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            program = [str(HERE / "prepared_process.py"), str(theirs.fileno()), str(PARENT)]
            process = subprocess.Popen(
                [sys.executable, "-P", *program], pass_fds=[theirs.fileno()], env=ENVIRONMENT, cwd=HERE
            )
            started.append((ours, process))
            theirs.close()
        return started[0][0]

    yield channel
    for ours, process in started:
        ours.close()
        process.kill()  # its own end takes a second, of torch's
        process.wait()


@pytest.fixture(autouse=True)
def _quick_servers(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    _prepared: Callable[[], socket.socket],
) -> None:
    """Fork servers start within milliseconds, but in tests of their start, end and memory (`real_server`)."""
    if request.node.get_closest_marker("real_server") is not None or not runner.can_fork():
        return

    def start(command: list[str], **options: Any) -> Any:
        if options.get("start_new_session"):
            return PreparedServer(_prepared(), options["env"])
        return subprocess.Popen(command, **options)

    names = ("PIPE", "STDOUT", "TimeoutExpired")
    found = {name: getattr(subprocess, name) for name in names}
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=start, **found))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps write their tables only: figures take most of the time of a small one."""
    import longvis_bench.report.plots.write as plots

    monkeypatch.setattr(plots, "write_plots", lambda *_: [])


@pytest.fixture
def families() -> Path:
    """The folder of the test families."""
    return FAMILIES


@pytest.fixture
def model_file(tmp_path: Path) -> ModelFile:
    """Write the file of a model with a linear `self.head` and the given lines of forward, x -> logits."""

    def make(name: str, *forward: str) -> Path:
        file = tmp_path / f"{name}.py"
        file.write_text(MODEL + "".join(f"        {line}\n" for line in forward))
        return file

    return make


@pytest.fixture
def branchy(model_file: ModelFile) -> Path:
    """The file of a model that branches on values, so that it does not run without data."""
    return model_file(
        "branchy", "x = x.mean(dim=(2, 3))", "return self.head(x if x.sum().item() > 0 else -x)"
    )


@pytest.fixture
def plant() -> Plant:
    """Plant a fault: inside, an operator's elements from a flat index on are those at its start."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Wrong(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self, name: str, start: int) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.name, self.start = name, start

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func._overloadpacket._qualified_op_name == self.name:
                out = result[0] if isinstance(result, tuple) else result
                flat = out.contiguous().flatten()
                flat[self.start :] = flat[: max(0, flat.numel() - self.start)].clone()
                out.copy_(flat.view(out.shape))
            return result

    return Wrong


@pytest.fixture
def longvis(tmp_path: Path) -> Longvis:
    """Run the command line as a user does; returns the finished process."""

    def run(*arguments: object, cwd: Path = tmp_path, columns: int = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "longvis_bench", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
        if not _is_installed():
            environment["PYTHONPATH"] = str(ROOT)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=240, cwd=cwd, env=environment, check=False
        )

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Make a data set of random PNGs in `tmp_path / "pets"`: class -> training images, and held-out ones."""

    def make(
        classes: dict[str, int] | None = None, *, size: tuple[int, int] = (12, 10), val: int = 2
    ) -> Path:
        import numpy as np
        from PIL import Image

        random = np.random.default_rng(0)
        for name, train in (classes or {"cat": 4, "dog": 3}).items():
            for split, count in (("train", train), ("val", val)):
                folder = tmp_path / "pets" / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number:03}.png")
        return tmp_path / "pets"

    return make


def _is_installed() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("longvis-bench")
    except PackageNotFoundError:
        return False
    return True


@pytest.fixture
def cell() -> Cell:
    """A cell of the well-behaved test model."""
    return Cell(
        model="moody-fine",
        family="moody",
        variant="moody-fine",
        implementation="user",
        resolution=64,
        threads=1,
    )


@pytest.fixture
def row(cell: Cell) -> Row:
    """A minimal row."""
    return Row(key="0" * 16, cell=cell, status="ok")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Keep torch from taking more threads than the machine has to spare."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
