"""How one sample is obtained: seconds from the start of an iteration until the device has finished it.

The clock is handed to `timing.py`, so that tests use one whose samples they know.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Iteration = Callable[[], object]


class Clock(Protocol):
    """Times one iteration, device work included."""

    def time(self, iteration: Iteration) -> float:
        """Run the iteration once; return its duration in seconds."""
        ...

    def now(self) -> float:
        """Seconds on the clock that budgets are kept by."""
        ...


class HostClock:
    """`perf_counter` around the iteration, with the device synchronised before and after.

    Arguments:
        synchronize: waits until the device is idle; nothing on a CPU.
    """

    def __init__(self, synchronize: Callable[[], object] = lambda: None) -> None:
        self._synchronize = synchronize

    def time(self, iteration: Iteration) -> float:
        """See Clock."""
        self._synchronize()
        start = time.perf_counter()
        iteration()
        self._synchronize()
        return time.perf_counter() - start

    def now(self) -> float:
        """See Clock."""
        return time.perf_counter()


class CudaClock(HostClock):
    """CUDA events around the iteration: what the device took, without the host's way back."""

    def __init__(self) -> None:
        super().__init__(torch.cuda.synchronize)

    def time(self, iteration: Iteration) -> float:
        """See Clock."""
        start, end = _event(), _event()
        torch.cuda.synchronize()
        start.record()
        iteration()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def clock_for(device: torch.device) -> Clock:
    """The clock of a device; every kind with a `synchronize` of its own is waited for."""
    if device.type == "cuda":
        return CudaClock()
    module = getattr(torch, device.type, None)
    synchronize = getattr(module, "synchronize", None)
    if device.type != "cpu" and synchronize is not None:
        return HostClock(synchronize)
    return HostClock()
