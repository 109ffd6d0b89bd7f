"""How one sample is obtained: seconds from the start of an iteration until the device has finished it.

The clock is handed to `timing.py`, so that tests use one whose samples they know.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
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
    """CUDA events around the iteration: the time on the device, without the host's way back.

    Arguments:
        device: whose stream the events are recorded on; without an index, the current CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(partial(torch.cuda.synchronize, device))
        self._device = device
        self.host_s: list[float] = []
        """Of every iteration so far, seconds until the host had handed all its work to the device."""

    def time(self, iteration: Iteration) -> float:
        """See Clock."""
        stream = torch.cuda.current_stream(self._device)
        start, end = _event(), _event()  # on the stream's device, from their first record on
        self._synchronize()
        start.record(stream)
        begun = time.perf_counter()
        iteration()
        self.host_s.append(time.perf_counter() - begun)
        end.record(stream)
        self._synchronize()
        return float(start.elapsed_time(end)) / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def clock_for(device: torch.device) -> Clock:
    """The clock of a device; every kind with a `synchronize` of its own is waited for."""
    if device.type == "cuda":
        return CudaClock(device)
    module = getattr(torch, device.type, None)
    synchronize = getattr(module, "synchronize", None)
    if device.type == "cpu" or synchronize is None:
        return HostClock()
    return HostClock(synchronize if device.index is None else partial(synchronize, device))


def use_device(device: torch.device) -> None:
    """Make a device the current one of this process: libraries allocate and launch on the current device.

    A device without an index (`cpu`, `mps`, `cuda`) already is the current one of its kind.
    """
    setter = getattr(getattr(torch, device.type, None), "set_device", None)
    if device.type != "cpu" and device.index is not None and setter is not None:
        setter(device)
