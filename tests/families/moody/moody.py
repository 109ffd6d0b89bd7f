"""A model that misbehaves in its forward, once it runs on a real device."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import torch
from torch import nn


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")


def _raises(x):
    raise ValueError("a sentence of the model's own")


def _unprintable(x):
    raise Unprintable


def _nan(x):
    return x * float("nan")


def _shape(x):
    return x[:, :-1]


def _mixes(x):
    return x + x.mean(dim=0, keepdim=True) * torch.linspace(1, 2, len(x)).unsqueeze(1)


def _shape_later(x):
    calls.append(1)
    return x[:, :-1] if len(calls) == 3 else x


def _exits(x):
    sys.exit(0)


def _leaves(x):
    os._exit(3)


def _segfaults(x):
    os.kill(os.getpid(), signal.SIGSEGV)


def _kills_itself(x):
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs(x):
    while True:
        time.sleep(1)


def _hangs_native(x):
    ctypes.CDLL(None).pause()  # in C, the interpreter free


def _hangs_locked(x):
    ctypes.PyDLL(None).sleep(600)  # in C, and no thread of Python can run


def _ignores_sigterm(x):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _needs_package(x):
    import a_package_that_is_not_there  # noqa: F401


def _out_of_memory(x):
    torch.empty(1 << 50, dtype=torch.float32)


def _hoards(x):
    """Memory without end, which only --memory-limit may stop: nobody's machine is to be filled."""
    hoard = []
    while len(hoard) < 64:
        hoard.append(bytearray(os.urandom(1 << 16)) * (1 << 9))  # 32 MiB, written to
        time.sleep(0.01)
    raise RuntimeError("2 GiB taken and nothing stopped it")


def _unsupported(x):
    raise NotImplementedError("no kernel for this")


def _leaves_child(x):
    command = [sys.executable, "-c", "import os, time; os.setsid(); time.sleep(300)"]
    subprocess.Popen(command)
    return x


def _leaves_fork(x):
    if os.fork() == 0:
        time.sleep(300)  # with every file of its parent open
        os._exit(0)
    return x


def _leaves_thread(x):
    if not threads:
        threads.append(threading.Thread(target=time.sleep, args=(300,)))
        threads[0].start()
    return x


def _chatty(x):
    sys.stdout.write("o" * 1_000_000)
    sys.stderr.write("e" * 1_000_000)
    return x


def _moves(x):
    os.chdir("/")
    return x


def _naps(x):
    """A cell that takes its time and none of the processor's, and notes in $MOODY_DIARY that it ran."""
    if not calls:
        calls.append(1)
        diary = os.open(os.environ["MOODY_DIARY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(diary, f"{sizes[-1]}\n".encode())
        os.close(diary)
    time.sleep(0.05)
    return x


calls, sizes, threads = [], [], []


def _slower_in_batches(x):
    time.sleep(0.005 * len(x) ** 1.5)
    return x


def _no_room_above_4(x):
    time.sleep(0.02)
    if len(x) > 4:
        _out_of_memory(x)
    return x


def _killed_above_4(x):
    time.sleep(0.02)
    if len(x) > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


MOODS = {
    "fine": lambda x: x,
    "raises": _raises,
    "unprintable": _unprintable,
    "nan": _nan,
    "shape": _shape,
    "mixes": _mixes,
    "shape-later": _shape_later,
    "exits": _exits,
    "leaves": _leaves,
    "segfaults": _segfaults,
    "kills-itself": _kills_itself,
    "hangs": _hangs,
    "hangs-native": _hangs_native,
    "hangs-locked": _hangs_locked,
    "ignores-sigterm": _ignores_sigterm,
    "needs-package": _needs_package,
    "out-of-memory": _out_of_memory,
    "hoards": _hoards,
    "unsupported": _unsupported,
    "leaves-child": _leaves_child,
    "leaves-fork": _leaves_fork,
    "leaves-thread": _leaves_thread,
    "chatty": _chatty,
    "slower-in-batches": _slower_in_batches,
    "no-room-above-4": _no_room_above_4,
    "killed-above-4": _killed_above_4,
    "moves": _moves,
    "naps": _naps,
}


class Moody(nn.Module):
    def __init__(self, num_classes, in_chans, mood):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 8, 16, 16)
        self.head = nn.Linear(8, num_classes)
        self.mood = mood

    def forward(self, x):
        logits = self.head(self.stem(x).mean(dim=(2, 3)))
        return logits if logits.device.type == "meta" else MOODS[self.mood](logits)


def build(*, resolution, num_classes, in_chans=3, mood):
    sizes.append(resolution)
    return Moody(num_classes, in_chans, mood)
