"""Time one iteration: seconds from its start until the device has finished it.

`timing.py` takes the clock as an argument, so that tests can pass one with known samples.
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
        """Seconds on the clock that measures the budget."""
        ...


class HostClock:
    """`perf_counter` around the iteration, with the device synchronised before and after.

    Arguments:
        synchronize: waits until the device is idle; does nothing on a CPU.
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
    """CUDA events around the iteration: device time, without the latency of the host's synchronisation.

    Arguments:
        device: the events are recorded on its current stream; without an index, the current CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(partial(torch.cuda.synchronize, device))
        self._device = device
        self.host_s: list[float] = []
        """Seconds that the host took to launch all work of an iteration, for every iteration so far."""

    def time(self, iteration: Iteration) -> float:
        """See Clock."""
        stream = torch.cuda.current_stream(self._device)
        start, end = _event(), _event()  # `record` binds an event to the stream's device
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
    """The clock of a device; it synchronises every kind of device that has a `synchronize` function."""
    if device.type == "cuda":
        return CudaClock(device)
    module = getattr(torch, device.type, None)
    synchronize = getattr(module, "synchronize", None)
    if device.type == "cpu" or synchronize is None:
        return HostClock()
    return HostClock(synchronize if device.index is None else partial(synchronize, device))


def use_device(device: torch.device) -> None:
    """Make a device the current one of this process, because libraries allocate and launch there.

    A device without an index (`cpu`, `mps`, `cuda`) is the current one of its kind already.
    """
    setter = getattr(getattr(torch, device.type, None), "set_device", None)
    if device.type != "cpu" and device.index is not None and setter is not None:
        setter(device)
