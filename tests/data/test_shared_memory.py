"""Workers and shared memory: enough of it, too little, none, and a worker that is killed all the same."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longvis_bench.data import shared_memory
from longvis_bench.data.digits import Digits
from longvis_bench.data.folder import Folder
from longvis_bench.data.loader import Loader, named_worker_deaths
from longvis_bench.data.protocol import Split
from longvis_bench.data.shared_memory import (
    free_shared_memory,
    has_semaphores,
    plan_handover,
    shared_memory_fault,
)
from longvis_bench.errors import LongvisError
from longvis_bench.resolution import Resolution

Pictures = Callable[..., Path]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux's")


def _no_lock(self: object) -> None:
    raise FileNotFoundError("/dev/shm")


def _free(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(shared_memory, "free_shared_memory", lambda: count)


@LINUX
def test_free_bytes_are_those_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs("/dev/shm")
    free = free_shared_memory()
    assert free is not None
    assert abs(free - found.f_bavail * found.f_frsize) < 1 << 30
    assert has_semaphores()
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "absent")
    assert free_shared_memory() == 0


def test_plan_follows_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, batches = 50 << 20, 9
    for free in (None, 9 * batch * 2):
        _free(monkeypatch, free)
        assert plan_handover(4, batch, batches) == (4, "shared memory", None)
    _free(monkeypatch, 64 << 20)
    plan = plan_handover(4, batch, batches)
    assert plan[:2] == (4, "pipes")
    assert plan.note is not None
    assert "9 batches of 50.0 MiB do not fit the 64.0 MiB free" in plan.note
    assert "--shm-size" in plan.note
    monkeypatch.setattr(type(multiprocessing.get_context()), "Lock", _no_lock)
    plan = plan_handover(4, batch, batches)
    assert plan[:2] == (0, "shared memory")
    assert plan.note is not None
    assert "without workers: /dev/shm is missing" in plan.note
    assert plan_handover(0, batch, batches).note is None


def test_memory_too_full_for_the_locks_of_a_loader_means_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first lock fits into the last page of /dev/shm; torch's queues need a page for each of theirs."""
    made: list[None] = []

    def lock(self: object) -> object:
        made.append(None)
        if len(made) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return object()

    monkeypatch.setattr(type(multiprocessing.get_context()), "Lock", lock)
    _free(monkeypatch, 4096)
    plan = plan_handover(2, 1 << 20, 5)
    assert plan.workers == 0
    assert plan.note is not None
    assert "/dev/shm is missing, not writable or full" in plan.note


@LINUX
def test_a_loader_takes_no_more_locks_than_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    real = multiprocessing.synchronize.SemLock.__init__

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        taken.append(type(self).__name__)
        real(self, *arguments, **options)

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", counted)
    for workers in (1, 2):
        loader = Loader(Digits(), "val", resolution=32, batch_size=200, workers=workers)
        taken.clear()
        next(loader.epoch(0))
        assert 0 < len(taken) <= shared_memory.OWN_LOCKS + shared_memory.LOCKS_PER_WORKER * workers


def test_doctor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, sentence in ((None, None), (8 << 30, None), (64 << 20, "has 64.0 MiB free")):
        _free(monkeypatch, free)
        assert (shared_memory_fault() or "").partition("/dev/shm ")[2].startswith(sentence or "")
        assert (shared_memory_fault() is None) == (sentence is None)
    monkeypatch.setattr(type(multiprocessing.get_context()), "Lock", _no_lock)
    assert "is missing or not writable" in str(shared_memory_fault())


def test_pipes_carry_the_same_batches(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(size=(20, 13))
    data = Folder(str(root))
    options: dict[str, Any] = {"resolution": 16, "batch_size": 3}
    plain = list(Loader(data, "train", **options).epoch(0))
    _free(monkeypatch, 100)
    loader = Loader(data, "train", workers=2, **options)
    assert loader.note is not None
    assert "5 batches of 2.25 KiB do not fit" in loader.note
    share = torch.UntypedStorage._share_fd_cpu_

    def marked(storage: torch.UntypedStorage, *rest: Any) -> Any:
        (root / "shared").touch()
        return share(storage, *rest)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", marked)  # in the workers too: they are forked
    for batch, same in zip(loader.epoch(0), plain, strict=True):
        assert torch.equal(batch.images, same.images)
        assert batch.indices == same.indices
    assert not (root / "shared").exists()


class _Deadly(Digits):
    """Its images kill the process that loads them, but not the one that made it."""

    def __init__(self) -> None:
        self._parent = os.getpid()

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        if os.getpid() != self._parent:
            os.kill(os.getpid(), signal.SIGBUS)
        return super().load(split, index, resolution)


def test_a_killed_worker_is_one_sentence() -> None:
    loader = Loader(_Deadly(), "val", resolution=8, batch_size=2, workers=1)
    said = r"killed \(DataLoader worker .*fewer --workers, or 0"
    with pytest.raises(LongvisError, match=said), named_worker_deaths():
        list(loader.epoch(0))


def test_other_errors_keep_their_kind() -> None:
    with pytest.raises(RuntimeError, match="shapes"), named_worker_deaths():
        raise RuntimeError("shapes do not agree")


PROGRAM = """
import sys
from longvis_bench.data.digits import Digits
from longvis_bench.data.loader import Loader
loader = Loader(Digits(), "val", resolution=512, batch_size=8, workers=2)
print(sum(len(batch.indices) for batch in loader.epoch(0)), loader.note)
"""


@LINUX
@pytest.mark.parametrize(
    "mount", ["", pytest.param("mount -t tmpfs -o size=4m tmpfs /dev/shm", marks=pytest.mark.slow)]
)
def test_in_a_container_without_shared_memory(mount: str) -> None:
    """/dev/shm taken away or made small, in a mount namespace of its own."""
    hide = mount or "mount -t tmpfs -o ro tmpfs /dev/shm"
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*unshare, hide], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    command = f"{hide} && exec {sys.executable} -c '{PROGRAM}'"
    done = subprocess.run([*unshare, command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("397 ")
    assert ("through pipes" if mount else "without workers") in done.stdout
