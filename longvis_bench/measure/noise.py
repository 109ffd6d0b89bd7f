"""What else the machine did while a cell was timed: cores kept busy by others, time taken by a hypervisor."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Noise:
    """None where the system does not tell."""

    load: float | None = None
    """Cores that other processes kept busy, on average."""
    steal: float | None = None
    """Share of the machine's time that the hypervisor took, 0-1."""


class NoiseWatch:
    """Starts watching when made."""

    def __init__(self) -> None:
        self._machine = psutil.cpu_times()
        self._own = _own_seconds()

    def read(self) -> Noise:
        """What happened since."""
        now = psutil.cpu_times()
        passed = {name: getattr(now, name) - getattr(self._machine, name) for name in now._fields}
        guests = passed.get("guest", 0.0) + passed.get("guest_nice", 0.0)  # counted in user already
        total = sum(passed.values()) - guests
        wall = total / psutil.cpu_count() if total > 0 else 0.0
        if wall <= 0:
            return Noise()
        idle = passed["idle"] + passed.get("iowait", 0.0) + passed.get("steal", 0.0)
        others = total - idle - (_own_seconds() - self._own)
        steal = passed["steal"] / total if "steal" in passed else None
        return Noise(load=max(0.0, others / wall), steal=steal)


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system
