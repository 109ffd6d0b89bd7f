"""One cell or training at a time on a GPU: several processes, also those of several users, take turns.

The lock is a file per GPU, named by its UUID, that the system frees when its holder dies.  A sweep holds it
from before a cell's process starts until it has ended, a training until its end.  Containers that do not
share the folder for temporary files do not see each other's locks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from longvis_bench.devices import Gpu, gpu_of, torch_gpus

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from longvis_bench.sweep.reporter import Reporter

FOLDER = Path("/tmp" if os.name == "posix" else tempfile.gettempdir()) / "longvis-locks"
"""The same for all users, whatever TMPDIR is.  Anybody may write there, and without the sticky bit, under
which Linux forbids opening the lock of another user."""
TICK_S = 0.2
"""How often a process that waits tells its reporter that it is alive."""


class GpuTurns:
    """The turns of one sweep or training on its GPUs; nothing is waited for on other devices.

    Arguments:
        devices: in torch's words.
    """

    def __init__(self, *devices: str) -> None:
        gpus = {gpu.uuid: gpu for gpu in map(gpu_of, devices) if gpu is not None}
        self._gpus = sorted(
            gpus.values(), key=lambda gpu: gpu.uuid
        )  # one order, so that no two wait in a ring
        self._told = False

    @contextmanager
    def turn(self, reporter: Reporter) -> Iterator[None]:
        """Have the GPUs for what runs inside; while another process has one, wait, and tell the reporter."""
        with ExitStack() as held:
            for gpu in self._gpus:
                lock = self._lock(gpu, reporter)
                if lock is not None:
                    held.callback(lock.release)
            yield

    def _lock(self, gpu: Gpu, reporter: Reporter) -> BaseFileLock | None:
        """The lock, taken; None where the system has none to give."""
        from filelock import FileLock, Timeout

        try:
            lock = FileLock(_path(gpu), mode=0o666)
            while True:
                with suppress(Timeout):
                    lock.acquire(timeout=TICK_S)
                    return lock
                self._tell(
                    f"Another longvis process measures or trains on {gpu.name}; this one waits for its turn.",
                    reporter,
                )
                reporter.tick()
        except (OSError, NotImplementedError) as error:
            self._tell(
                f"Cannot lock {gpu.name} ({error}): start no other sweep or training on it meanwhile.",
                reporter,
            )
            return None

    def _tell(self, sentence: str, reporter: Reporter) -> None:
        if not self._told:
            reporter.note(sentence)
        self._told = True


def _path(gpu: Gpu) -> Path:
    """The file that is locked."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user's, who has opened it to all
        FOLDER.chmod(0o777)
    return FOLDER / f"gpu-{gpu.uuid}.lock"


def note_on_kinds(device: str) -> str | None:
    """A sentence where torch sees GPUs of another kind, too, whose rows are of another environment."""
    gpu = gpu_of(device)
    if gpu is None:
        return None
    others = dict.fromkeys(found.name for found in torch_gpus() if found.name != gpu.name)
    if not others:
        return None
    return (
        f"This run measures on {gpu.name} (cuda:{gpu.index}) alone; {' and '.join(others)} in this machine "
        "would be another environment, with a directory of its own."
    )
