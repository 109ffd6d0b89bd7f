"""The devices of a sweep: `--devices all`, `cuda:0,cuda:3` or `cpu:2x8`, and what each of them gets.

A CPU device is a share of the cores.  A process of a GPU sees this GPU alone (CUDA_VISIBLE_DEVICES is its
UUID), and has its share of the cores, too.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longvis_bench import units
from longvis_bench.devices import available_devices, gpu_of, kind_of, resolve_device, visible_name
from longvis_bench.environment import default_threads, usable_cores
from longvis_bench.errors import DeviceError

_CPUS = re.compile(r"cpu:(\d{1,4})x(\d{1,4})", re.ASCII)
_SIBLINGS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Slot:
    """One device of a sweep, on which one cell runs at a time."""

    name: str
    """For people: `cuda:3`, `cpu 2 of 4`."""
    device: str
    """In the words of torch in the process that runs cells."""
    here: str
    """In the words of torch in this process."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of the processes that run cells."""
    processors: tuple[int, ...] = ()
    """Processors that they may use; empty for all."""
    gpu_index: int | None = None
    """The N of `cuda:N` in this process, where the other process sees one GPU."""


@dataclass(frozen=True)
class Chosen:
    """The devices that `--devices` names, checked."""

    names: tuple[str, ...]
    """In torch's words; CPU devices are equal."""
    cores: int
    """Cores of each."""

    @property
    def text(self) -> str:
        """The same choice in the words of `--devices`, with `all` resolved."""
        return f"cpu:{len(self.names)}x{self.cores}" if self.names[0] == "cpu" else ",".join(self.names)

    @property
    def threads(self) -> int:
        """Default threads of a cell: a device's share, or OMP_NUM_THREADS if that is less."""
        return min(default_threads(), self.cores)


def choose_devices(asked: str) -> Chosen:
    """Check `--devices`.

    Arguments:
        asked: `all`, names of devices separated by commas, or `cpu:2x8` (two devices of eight cores each).

    Raises:
        DeviceError: a device is not there or named twice, kinds are mixed, or there are too few cores.
    """
    cores = usable_cores()
    found = _CPUS.fullmatch(asked.strip())
    if found is not None:
        return _cpus(int(found[1]), int(found[2]), cores)
    names = _all() if asked.strip() == "all" else [_name(part.strip()) for part in asked.split(",")]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DeviceError(f"--devices names {twice[0]} twice; name each device once.")
    _refuse_kinds(names)
    if len(names) > cores:
        raise DeviceError(
            f"--devices names {len(names)} devices, and {units.several(cores, 'core')} cannot serve them: "
            "every device needs one."
        )
    return Chosen(tuple(names), cores // len(names))


def _cpus(number: int, each: int, cores: int) -> Chosen:
    if not number or not each:
        raise DeviceError("--devices cpu:NxM takes numbers from 1 up: N devices of M cores, like cpu:2x8.")
    if number * each > cores:
        raise DeviceError(
            f"--devices cpu:{number}x{each} needs {number * each} cores, and this process may use {cores}; "
            f"{_fitting(number, cores)}."
        )
    return Chosen(("cpu",) * number, each)


def _fitting(number: int, cores: int) -> str:
    return f"cpu:{number}x{cores // number} fits" if number <= cores else f"cpu:{cores}x1 is the most"


def _all() -> list[str]:
    """Every GPU of CUDA; without one, the best device there is."""
    there = available_devices()
    indexed = [name for name in there if name.startswith("cuda:")]
    return indexed or [there[0]]


def _name(asked: str) -> str:
    """A device with its index, which is there.

    Raises:
        DeviceError: it is not, or it is none.
    """
    if not asked or asked == "auto" or asked.startswith("cpu:"):
        raise DeviceError(
            f"--devices takes all, names like cuda:0,cuda:3, or cpu:NxM alone, not {asked[:40]!r}."
        )
    device = resolve_device(asked)
    return "cuda:0" if device == "cuda" else device


def _refuse_kinds(names: Sequence[str]) -> None:
    """Raise if the devices are of several kinds: their rows would be of several environments."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        gpu = gpu_of(name)
        kinds.setdefault(kind_of(name) if gpu is None else gpu.name, []).append(name)
    if len(kinds) > 1:
        each = "; ".join(f"{','.join(found)} ({kind})" for kind, found in kinds.items())
        raise DeviceError(
            f"--devices names several kinds of devices, whose rows cannot share a directory: {each}. "
            "Give each kind a command and a directory of its own."
        )


def slots(chosen: Chosen) -> list[Slot]:
    """What each device gets: its processors, and for a GPU the variable that hides the others.

    A single device gets nothing but its name, and runs as with `--device`.
    """
    number = len(chosen.names)
    if number == 1 and chosen.names[0] != "cpu":
        return [Slot(chosen.names[0], chosen.names[0], chosen.names[0])]
    shares = share_processors(usable_processors(), number, chosen.cores)
    return [
        _slot(name, position, number, share)
        for position, (name, share) in enumerate(zip(chosen.names, shares, strict=True), start=1)
    ]


def _slot(name: str, position: int, number: int, share: tuple[int, ...]) -> Slot:
    gpu = gpu_of(name)
    if gpu is None:
        shown = f"cpu {position} of {number}" if name == "cpu" else name
        return Slot(shown, name, name, processors=share)
    hidden = {"CUDA_VISIBLE_DEVICES": visible_name(gpu.uuid)}
    return Slot(name, "cuda", name, hidden, share, gpu.index)


def usable_processors() -> list[int]:
    """Numbers of the processors that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def share_processors(
    processors: Sequence[int], number: int, each: int, topology: Path = _SIBLINGS
) -> list[tuple[int, ...]]:
    """Divide processors into shares, with the hardware threads of a core in one share where that is possible.

    Arguments:
        processors: their numbers.
        number: how many shares.
        each: processors per share.
        topology: folder in which the system describes the processors.

    Returns:
        Shares without a common processor; empty ones, which leave the choice to the system, where there are
        not enough.
    """
    if len(processors) < number * each:
        return [()] * number
    first: dict[str, int] = {}
    for processor in processors:
        first.setdefault(_core(processor, topology), processor)
    ordered = sorted(processors, key=lambda processor: (first[_core(processor, topology)], processor))
    return [tuple(ordered[start : start + each]) for start in range(0, number * each, each)]


def _core(processor: int, topology: Path) -> str:
    """The hardware threads of a processor's core, as the system lists them; else the processor."""
    try:
        return (topology / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)
