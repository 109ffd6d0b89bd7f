"""What `longvis doctor` looks at."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

from longvis_bench import units
from longvis_bench.environment import available_devices, read_environment
from longvis_bench.errors import LongvisError, MissingDependency
from longvis_bench.measure.flops.fvcore_check import INSTALL
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry


class Finding(NamedTuple):
    """One thing looked at: present, absent though optional, or broken."""

    state: Literal["ok", "absent", "broken"]
    what: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at the interpreter, the machine, the needed and optional packages, and every card."""
    return [*_system(), *_packages(), *_models(), *_measuring()]


def _system() -> Iterator[Finding]:
    environment = read_environment()
    state: Literal["ok", "broken"] = "ok" if sys.version_info >= (3, 11) else "broken"
    yield Finding(
        state, f"Python {platform.python_version()}", "" if state == "ok" else "install 3.11 or newer"
    )
    memory = units.size(environment.memory_bytes)
    yield Finding("ok", f"{environment.processor}, {environment.cores} usable cores, {memory}")
    for device in available_devices():
        name = environment.gpu if device.startswith("cuda") and environment.gpu else ""
        yield Finding("ok", f"device {device} {name}".rstrip())


def _packages() -> Iterator[Finding]:
    for name, install in {**_of_ours(), **_of_cards()}.items():
        try:
            yield Finding("ok", f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("broken", name, f"install it with: {install}")
    if importlib.util.find_spec("fvcore") is None:
        yield Finding("absent", "fvcore (second opinion on FLOPs)", f"add it with: {INSTALL}")
    else:
        yield Finding("ok", f"fvcore {importlib.metadata.version('fvcore')}")
    if importlib.util.find_spec("mamba_ssm") is None:
        yield Finding("absent", "mamba-ssm (its CUDA scan)", "not needed: the scan has other backends")
    else:
        yield Finding("ok", "mamba-ssm")


def _of_ours() -> dict[str, str]:
    """Packages that the whole program needs -> the command that installs each."""
    return {name: f"python -m pip install {name}" for name in ("torch", "timm", "numba")}


def _of_cards() -> dict[str, str]:
    """Packages that the built-in families need, other implementations aside."""
    try:
        needs = [need for found in built_in_cards() for need in found.card.requires]
    except LongvisError:  # named among the models
        return {}
    return {need.package: need.install for need in needs}


def _models() -> Iterator[Finding]:
    try:
        registry = Registry()
    except LongvisError as error:
        yield Finding("broken", f"cards: {error}")
        return
    yield Finding("ok", f"{len(registry.cards)} families, {len(registry.names())} models")
    for name in registry.names():
        try:
            registry.find(name).require_packages()
        except MissingDependency as error:
            yield Finding("absent", name, f"add it with: {error.install}")


def _measuring() -> Iterator[Finding]:
    if platform.system() == "Linux":
        yield Finding("ok", "cells start by fork; peak memory from the kernel")
        return
    yield Finding("absent", "cells start as new interpreters here (some seconds each)")
    yield Finding("absent", "peak CPU memory", "it is measured on Linux only, and null with a reason here")
