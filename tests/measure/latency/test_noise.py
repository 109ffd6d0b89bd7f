"""What the machine did meanwhile: counters of the real system, sensors of an invented GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from longvis_bench.measure import cell as worker
from longvis_bench.measure.latency import noise
from longvis_bench.measure.latency.noise import (
    CpuSensor,
    Look,
    NoiseWatch,
    NoSensor,
    NvidiaSensor,
    sensor_for,
)
from longvis_bench.records import Cell, Request, Settings

FAMILIES = Path(__file__).parents[2] / "families"


class Sensors:
    """Gives the looks it is told, the last one for ever."""

    def __init__(self, *looks: Look) -> None:
        self._looks = iter(looks)
        self._last = Look()

    def look(self) -> Look:
        self._last = next(self._looks, self._last)
        return self._last


@pytest.fixture
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "LOOK_EVERY_S", 0.0)


@pytest.mark.usefixtures("_look_always")
def test_looks_come_together() -> None:
    watch = NoiseWatch(
        Sensors(
            Look(1.8e9, 60.0, 90.0),
            Look(1.8e9, 71.0, 90.0, ("power cap",)),
            Look(1.2e9, 88.0, 90.0, ("hardware thermal slowdown", "power cap")),
            Look(1.2e9, 80.0, 90.0),
        )
    )
    for _ in range(3):
        watch.look()
    found = watch.read()
    assert found.clock_hz == 1.5e9
    assert found.clock_change == pytest.approx(1.2 / 1.8 - 1)
    assert (found.temperature_c, found.temperature_limit_c) == (88.0, 90.0)
    assert found.slowdowns == ("power cap", "hardware thermal slowdown")


def test_looks_are_seldom() -> None:
    looks = []
    watch = NoiseWatch(SimpleNamespace(look=lambda: looks.append(1) or Look()))  # type: ignore[func-returns-value]
    for _ in range(100):
        watch.look()
    assert len(looks) == 1


def test_a_device_that_tells_nothing_is_not_known() -> None:
    found = NoiseWatch(NoSensor()).read()
    assert (found.clock_hz, found.clock_change, found.temperature_c, found.slowdowns) == (
        None,
        None,
        None,
        (),
    )


class FakeNvml:
    """As much of pynvml as is asked for."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1, 0, 1

    class NVMLError(Exception):
        pass

    def __init__(self, reasons: int = 0) -> None:
        self.reasons = reasons
        self.uuid = ""

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.uuid = uuid
        return uuid

    def nvmlDeviceGetClockInfo(self, gpu: str, kind: int) -> int:  # noqa: N802
        return 1755

    def nvmlDeviceGetMaxClockInfo(self, gpu: str, kind: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetTemperature(self, gpu: str, kind: int) -> int:  # noqa: N802
        return 71

    def nvmlDeviceGetTemperatureThreshold(self, gpu: str, kind: int) -> int:  # noqa: N802
        raise self.NVMLError

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:  # noqa: N802
        return self.reasons


@pytest.mark.parametrize(
    ("reasons", "named"),
    [
        (0x0, ()),
        (0x1 | 0x2 | 0x100, ()),  # idle, clocks set by the user or for the display
        (0x4, ("power cap",)),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x10 | 0x20 | 0x80, ("sync boost", "software thermal slowdown", "power brake")),
    ],
)
def test_nvml_in_our_words(reasons: int, named: tuple[str, ...]) -> None:
    look = NvidiaSensor("GPU-1234", FakeNvml(reasons)).look()
    assert look == Look(1.755e9, 71.0, None, named, 1.98e9)


class NewerNvml(FakeNvml):
    """A driver that dropped older names: an attribute is missing, or asking raises."""

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:  # noqa: N802
        raise AttributeError("libnvidia-ml.so: undefined symbol")

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: str) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetTemperature(self, gpu: str, kind: int) -> int:  # noqa: N802
        raise AttributeError("libnvidia-ml.so: undefined symbol")

    def nvmlDeviceGetTemperatureV(self, gpu: str, kind: int) -> int:  # noqa: N802
        return 70

    def nvmlDeviceGetMarginTemperature(self, gpu: str) -> int:  # noqa: N802
        return 20


def test_names_that_newer_drivers_drop_have_fallbacks() -> None:
    look = NvidiaSensor("GPU-1234", NewerNvml(0x4)).look()
    assert look == Look(1.755e9, 70.0, 90.0, ("power cap",), 1.98e9)


def test_a_failing_sensor_never_ends_a_cell() -> None:
    class Broken:
        def look(self) -> Look:
            raise OSError("the driver went away")

    watch = NoiseWatch(Broken())
    watch.look()
    assert watch.read().clock_hz is None


def test_the_gpu_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    assert isinstance(sensor_for(torch.device("cuda:1")), NvidiaSensor)
    assert nvml.uuid == "GPU-12-34"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert isinstance(sensor_for(torch.device("cuda:1")), NoSensor)
    assert isinstance(sensor_for(torch.device("mps")), NoSensor)
    assert isinstance(sensor_for(torch.device("cpu")), CpuSensor)


def test_a_processor_without_a_frequency_driver_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])
    assert CpuSensor().look() == Look()
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [SimpleNamespace(current=c) for c in (800, 3600)])
    assert CpuSensor().look() == Look(clock_hz=3.6e9)


@pytest.fixture
def _neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    process.kill()
    process.wait()


@pytest.mark.usefixtures("_neighbour")
def test_a_busy_neighbour_is_seen() -> None:
    watch = NoiseWatch(NoSensor())
    time.sleep(1.0)
    found = watch.read()
    assert found.load_cores is not None
    assert found.load_cores > 0.4
    assert found.own_cores is not None
    assert found.own_cores < 0.5


def test_steal_and_load_are_shares_of_what_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times(SimpleNamespace):
        _fields = ("user", "system", "idle", "steal")

    passing = iter([Times(user=0, system=0, idle=0, steal=0), Times(user=8, system=2, idle=9, steal=1)])
    own = iter([SimpleNamespace(user=0.0, system=0.0), SimpleNamespace(user=4.0, system=2.0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(passing))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: next(own)))
    found = NoiseWatch(NoSensor()).read()
    assert found.steal == pytest.approx(1 / 20)
    assert found.load_cores == pytest.approx(4 / 10)
    assert found.own_cores == pytest.approx(6 / 10)


@pytest.mark.usefixtures("two_threads", "_look_always")
def test_what_spoils_a_cell_is_a_warning_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [Look(2e9, 80.0, 90.0), Look(1e9, 89.0, 90.0, ("power cap",))]
    monkeypatch.setattr(worker, "sensor_for", lambda device: Sensors(*looks))
    cell: dict[str, Any] = {"model": "moody-fine", "family": "moody", "variant": "moody-fine"}
    cell |= {"implementation": "user", "resolution": 64, "threads": 2, "metrics": ("time",)}
    row = worker.measure_cell(
        Request(cell=Cell.model_validate(cell), settings=Settings(budget_s=0.1), models_dirs=(FAMILIES,))
    )
    assert row.timing is not None
    assert row.timing.noise.slowdowns == ("power cap",)
    named = {note.code: note.message for note in row.notes}
    assert {"hot", "throttled"} <= set(named)  # the clock's change is a matter of how many looks there were
    assert named["hot"] == "the device reached 89 °C, and it throttles at 90 °C"
