"""A model that misbehaves in its forward, once it runs on a real device."""

import os
import signal
import subprocess
import sys
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


def _exits(x):
    os._exit(0)


def _leaves(x):
    os._exit(3)


def _segfaults(x):
    os.kill(os.getpid(), signal.SIGSEGV)


def _hangs(x):
    time.sleep(600)


def _ignores_sigterm(x):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _needs_package(x):
    import a_package_that_is_not_there  # noqa: F401


def _out_of_memory(x):
    torch.empty(1 << 50, dtype=torch.float32)


def _unsupported(x):
    raise NotImplementedError("no kernel for this")


def _leaves_child(x):
    command = [sys.executable, "-c", "import os, time; os.setsid(); time.sleep(300)"]
    subprocess.Popen(command)
    return x


def _chatty(x):
    sys.stdout.write("o" * 1_000_000)
    sys.stderr.write("e" * 1_000_000)
    os.chdir("/")
    return x


MOODS = {
    "fine": lambda x: x,
    "raises": _raises,
    "unprintable": _unprintable,
    "nan": _nan,
    "shape": _shape,
    "mixes": _mixes,
    "exits": _exits,
    "leaves": _leaves,
    "segfaults": _segfaults,
    "hangs": _hangs,
    "ignores-sigterm": _ignores_sigterm,
    "needs-package": _needs_package,
    "out-of-memory": _out_of_memory,
    "unsupported": _unsupported,
    "leaves-child": _leaves_child,
    "chatty": _chatty,
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
    return Moody(num_classes, in_chans, mood)
