"""Disturbances on the machine while a cell is timed: load, stolen time, clocks, temperature, throttling.

The system's counters are read before and after the timing: processor time of other processes, and time that
the hypervisor took.  Clock frequency, temperature and the device's reasons for throttling are sampled twice a
second, between iterations and never within one, and only after the first iteration: the clock of an idle
device is of no use.  A value that the platform does not report is None.  `row_warnings.py` has the thresholds
above which a row gets a warning.

Reference: NVIDIA, NVML API, "Clocks event reasons" (`nvmlClocksEventReason*`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import psutil
import torch

from longvis_bench.devices import nvml_handle, start_nvml, whole_gpu
from longvis_bench.records import NoiseRecord
from longvis_bench.stats import median

LOOK_EVERY_S = 0.5
"""Seconds between two readings of the sensors."""

SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's bits for clocks below the requested ones; those for an idle GPU and user-set clocks are left out."""


@dataclass(frozen=True)
class Look:
    """One reading of a device's sensors; None for a value that the device does not report."""

    clock_hz: float | None = None
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    """The temperature at which the device starts to throttle."""
    slowdowns: tuple[str, ...] = ()
    clock_limit_hz: float | None = None
    """The highest clock that the device supports."""


class Sensor(Protocol):
    """The sensors of the device that is timed."""

    def look(self) -> Look:
        """Read the sensors; takes microseconds to a few milliseconds."""
        ...


class CpuSensor:
    """The fastest core's frequency, where the system has a driver that reports it."""

    def look(self) -> Look:
        """See Sensor."""
        try:
            clocks = [core.current for core in psutil.cpu_freq(percpu=True)]
        except (AttributeError, NotImplementedError, OSError, RuntimeError):  # reports no frequency
            clocks = []
        return Look(clock_hz=max(clocks, default=0.0) * 1e6 or None)


class NvidiaSensor:
    """A GPU's clock, temperature and reasons for throttling, read through NVML.

    Arguments:
        uuid: the GPU's, as torch gives it; an index would not do, as NVML ignores CUDA_VISIBLE_DEVICES.
        nvml: the module `pynvml`, ready to be asked.
    """

    def __init__(self, uuid: str, nvml: Any) -> None:
        self._nvml = nvml
        self._gpu = whole_gpu(nvml, nvml_handle(nvml, uuid))  # a slice (MIG) has no sensors of its own

    def look(self) -> Look:
        """See Sensor."""
        nvml, gpu = self._nvml, self._gpu
        clock = _first(lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))
        limit = _first(lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM))
        temperature = _first(
            lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            lambda: nvml.nvmlDeviceGetTemperatureV(gpu, nvml.NVML_TEMPERATURE_GPU),
        )
        hot = _first(
            lambda: nvml.nvmlDeviceGetTemperatureThreshold(gpu, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            lambda: _number(temperature) + nvml.nvmlDeviceGetMarginTemperature(gpu),
        )
        reasons = _first(
            lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
            lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
        )
        return Look(
            clock_hz=None if clock is None else clock * 1e6,
            clock_limit_hz=None if limit is None else limit * 1e6,
            temperature_c=temperature,
            temperature_limit_c=hot,
            slowdowns=tuple(name for bit, name in SLOWDOWNS.items() if int(reasons or 0) & bit),
        )


def _first(*questions: Callable[[], Any]) -> float | None:
    """The first number that one of several queries returns; None where all fail.

    Not every GPU and driver supports every query, and newer drivers drop names (`ThrottleReasons`).  A query
    that fails for any reason counts as unsupported.
    """
    for question in questions:
        try:
            return float(_number(question()))
        except Exception:
            continue
    return None


def _number(answer: Any) -> Any:
    """The result of a query, checked to be a number.

    Raises:
        TypeError: it is not a number.
    """
    if not isinstance(answer, int | float):
        raise TypeError(f"not a number: {answer!r}")
    return answer


class NoSensor:
    """A device without readable sensors."""

    def look(self) -> Look:
        """See Sensor."""
        return Look()


def sensor_for(device: torch.device) -> Sensor:
    """The sensors of a device; those of an NVIDIA GPU need the package nvidia-ml-py."""
    if device.type == "cpu":
        return CpuSensor()
    if device.type != "cuda":
        return NoSensor()
    try:
        return NvidiaSensor(str(torch.cuda.get_device_properties(device).uuid), start_nvml())
    except Exception:  # package or NVML library missing or of another version, or GPU unknown
        return NoSensor()


class NoiseWatch:
    """Watches the machine from its construction on.

    Arguments:
        sensor: the sensors of the timed device.
    """

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._looks: list[Look] = []
        self._looked = float("-inf")
        self._machine = psutil.cpu_times()
        self._own = _own_seconds()

    def look(self) -> None:
        """Read the sensors, at most once per `LOOK_EVERY_S`; to be called between iterations."""
        if perf_counter() - self._looked >= LOOK_EVERY_S:
            self._look()
            self._looked = perf_counter()

    def read(self) -> NoiseRecord:
        """The disturbances since construction."""
        self._look()
        load, own, steal = self._processors()
        clocks = [look.clock_hz for look in self._looks if look.clock_hz]
        return NoiseRecord(
            load_cores=load,
            own_cores=own,
            steal=steal,
            clock_hz=median(clocks),
            clock_limit_hz=_highest([look.clock_limit_hz for look in self._looks]),
            clock_change=_change(clocks),
            temperature_c=_highest([look.temperature_c for look in self._looks]),
            temperature_limit_c=_highest([look.temperature_limit_c for look in self._looks]),
            slowdowns=tuple(dict.fromkeys(name for look in self._looks for name in look.slowdowns)),
        )

    def _look(self) -> None:
        try:
            self._looks.append(self._sensor.look())
        except Exception:  # a failing sensor never ends a cell
            self._looks.append(Look())

    def _processors(self) -> tuple[float | None, float | None, float | None]:
        """Cores kept busy by other processes, cores kept busy by this one, and the share of stolen time."""
        now = psutil.cpu_times()
        passed = {name: getattr(now, name) - getattr(self._machine, name) for name in now._fields}
        guests = passed.get("guest", 0.0) + passed.get("guest_nice", 0.0)  # `user` and `nice` include them
        total = sum(passed.values()) - guests
        wall = total / psutil.cpu_count() if total > 0 else 0.0
        if wall <= 0:
            return None, None, None
        idle = passed["idle"] + passed.get("iowait", 0.0) + passed.get("steal", 0.0)
        own = _own_seconds() - self._own
        steal = passed["steal"] / total if "steal" in passed else None
        return max(0.0, (total - idle - own) / wall), own / wall, steal


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def _change(values: list[float]) -> float | None:
    """Median of the later half / median of the earlier half - 1; None for fewer than two values."""
    half = len(values) // 2
    before, after = median(values[:half]), median(values[half:])
    return after / before - 1 if before and after else None


def _highest(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
