"""Energy of iterations, from the device's own counter: NVML's on an NVIDIA GPU, RAPL's on a processor.

After the latency was sampled, the iteration is repeated back to back for some seconds, with nothing between
two of them, and the counter is read before and after.  GPUs renew their counter every 20 to 100 ms, so the
repetition lasts long enough for that to be a small share.  The counter is the whole device's: all packages
(sockets) of the machine, or the whole GPU.  Its idle power is measured before the model is built, and stored
beside the energy; nothing is subtracted.

Reference: Linux, Documentation/power/powercap/powercap.rst; NVIDIA, NVML API,
`nvmlDeviceGetTotalEnergyConsumption` (Volta and newer).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from longvis_bench import units
from longvis_bench.devices import nvml_handle, start_nvml, whole_gpu
from longvis_bench.errors import Unsupported
from longvis_bench.measure.latency.clock import Clock, Iteration
from longvis_bench.records import EnergyRecord

LOOP_S = 2.0
"""Seconds for which iterations are repeated, at least one iteration."""
LOOK_S = 10.0
"""Longest time between two readings, so that a counter cannot wrap twice: RAPL's take minutes."""
IDLE_S = 1.0
"""Seconds for which the idle power is measured."""
POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3


class Meter(Protocol):
    """A counter of energy."""

    source: str
    """What is counted, for the row."""

    def joules(self) -> float:
        """Energy since the meter was made."""
        ...


@dataclass
class _Zone:
    """The counter of one package, which starts again at 0 after its highest value."""

    energy: Path
    range_j: float | None
    last: float
    total: float = 0.0

    def look(self) -> None:
        now = _number(self.energy) * MICRO
        step = now - self.last
        if step < 0:
            if self.range_j is None:
                raise Unsupported(f"{self.energy.parent.name} started again, and its range is not known")
            step += self.range_j
        self.last, self.total = now, self.total + step


class RaplMeter:
    """The packages of the machine.

    Arguments:
        folder: where the system describes its power zones.

    Raises:
        Unsupported: there are none, or they cannot be read; the message is the reason.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        try:
            self._zones = [_zone(path) for path in _packages(folder)]
        except PermissionError as error:
            raise Unsupported(
                "only root may read RAPL's energy_uj here; `sudo chmod a+r "
                "/sys/class/powercap/intel-rapl:*/energy_uj` allows it until the next start"
            ) from error
        except (OSError, ValueError) as error:
            raise Unsupported(f"RAPL cannot be read: {error}") from error
        if not self._zones:
            raise Unsupported("this machine shows no RAPL packages (virtual machines rarely do)")
        self.source = f"RAPL, {units.several(len(self._zones), 'package')}"

    def joules(self) -> float:
        """See Meter; call it more often than a counter takes to wrap."""
        for zone in self._zones:
            zone.look()
        return sum(zone.total for zone in self._zones)


def _packages(folder: Path) -> list[Path]:
    """The zones that are packages: others lie inside of them, or count several of them again."""
    zones = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
    top = [zone for zone in zones if zone.name.count(":") == 1]
    return [zone for zone in top if (zone / "name").read_text().strip().startswith("package")]


def _zone(path: Path) -> _Zone:
    try:
        range_j = _number(path / "max_energy_range_uj") * MICRO
    except (OSError, ValueError):
        range_j = None
    return _Zone(path / "energy_uj", range_j, _number(path / "energy_uj") * MICRO)


def _number(file: Path) -> int:
    return int(file.read_text())


class NvmlMeter:
    """An NVIDIA GPU.

    Arguments:
        uuid: the GPU's, as torch gives it.
        nvml: the module `pynvml`, ready to be asked; None without a driver or the package.

    Raises:
        Unsupported: it has no counter; the message is the reason.
    """

    source = "NVML"

    def __init__(self, uuid: str, nvml: Any) -> None:
        if nvml is None:
            raise Unsupported("NVML does not answer")
        self._nvml = nvml
        try:
            self._gpu = nvml_handle(nvml, uuid)
            whole = whole_gpu(nvml, self._gpu)
        except Exception as error:
            raise Unsupported("NVML knows no such GPU") from error
        if whole is not self._gpu:
            raise Unsupported("a slice of a GPU (MIG) has no energy counter of its own")
        try:
            self._start = self._read()
        except Exception as error:
            raise Unsupported("this GPU counts no energy; GPUs before Volta do not") from error

    def joules(self) -> float:
        """See Meter."""
        return self._read() - self._start

    def _read(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) * MILLI


def meter_for(device: torch.device, powercap: Path = POWERCAP) -> Meter:
    """The meter of a device.

    Raises:
        Unsupported: it has none; the message is the reason.
    """
    if device.type == "cpu":
        return RaplMeter(powercap)
    if device.type != "cuda":
        raise Unsupported(f"no energy counter of {device.type} is known")
    return NvmlMeter(str(torch.cuda.get_device_properties(device).uuid), start_nvml())


def idle_power(meter: Meter, *, sleep: Callable[[float], object] = time.sleep) -> float:
    """Watts of the device while this process does nothing for a second."""
    before, start = meter.joules(), time.perf_counter()
    sleep(IDLE_S)
    return (meter.joules() - before) / (time.perf_counter() - start)


def measure_energy(
    iteration: Iteration, clock: Clock, meter: Meter, *, batch: int, idle_w: float | None
) -> EnergyRecord:
    """Repeat an iteration and read the counter.

    Arguments:
        iteration: runs one batch; it is warm.
        clock: times it, and waits for the device.
        meter: the device's.
        batch: images per iteration.
        idle_w: power of the device at rest, for the record.

    Raises:
        Unsupported: the counter did not move.
    """
    before, spent, done, looked = meter.joules(), 0.0, 0, 0.0
    while not done or spent < LOOP_S:
        seconds = clock.time(iteration)
        spent, done = spent + seconds, done + 1
        if spent - looked > LOOK_S:
            meter.joules()
            looked = spent
    joules = meter.joules() - before
    if joules <= 0:
        raise Unsupported(f"the energy counter ({meter.source}) did not move in {units.seconds(spent)}")
    return EnergyRecord(joules=joules, seconds=spent, images=done * batch, source=meter.source, idle_w=idle_w)
