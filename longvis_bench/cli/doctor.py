"""`longvis doctor`: check what this machine can run, and print commands that install what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from longvis_bench import units
from longvis_bench.devices import available_devices, gpu_of, machine_gpus
from longvis_bench.environment import read_environment
from longvis_bench.errors import LongvisError, MissingDependency
from longvis_bench.measure.cache import VARIABLE, cache_folder
from longvis_bench.ops.c_toolchain import c_compiler, has_python_headers
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry

SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_MEMORY = 1 << 30
OPTIONAL = {
    "torchvision": ("torchvision", "faster decoding of large JPEGs"),
}
"""Module -> (package, its use)."""
NUMBA_BELOW = (3, 16)
"""Pythons that numba supports, as pyproject.toml asks for it."""
_MARKS = {"ok": "[green]ok[/]     ", "absent": "[yellow]absent[/] ", "failed": "[bold red]failed[/] "}


class Finding(NamedTuple):
    """Result of one check: passed, an optional part is absent, or failed."""

    state: Literal["ok", "absent", "failed"]
    what: str
    advice: str = ""


def doctor() -> None:
    """Check what this machine can run and how to add what is missing; exit code 1 if a check fails."""
    console = Console(highlight=False, soft_wrap=True)
    states = []
    for finding in examine():
        advice = f"; {finding.advice}" if finding.advice else ""
        console.print(f"{_MARKS[finding.state]} {escape(finding.what)}{escape(advice)}")
        states.append(finding.state)
    absent = f", {states.count('absent')} optional absent" if "absent" in states else ""
    failed = states.count("failed")
    console.print(f"{units.several(len(states), 'check')}, {failed} failed{absent}")
    raise typer.Exit(1 if failed else 0)


def examine() -> Iterator[Finding]:
    """Check the interpreter, the machine, required and optional packages, and all cards."""
    yield from _system()
    yield from _devices()
    yield from _packages()
    yield from _compiling()
    yield from _models()
    yield from _measuring()
    yield _cache()


def _system() -> Iterator[Finding]:
    environment = read_environment()
    old = sys.version_info < (3, 11)
    version = f"Python {platform.python_version()}"
    yield Finding("failed", version, "install 3.11 or newer") if old else Finding("ok", version)
    memory = units.size(environment.memory_bytes)
    yield Finding("ok", f"{environment.processor}, {environment.cores} usable cores, {memory}")


def _devices() -> Iterator[Finding]:
    try:
        devices = available_devices()
    except ImportError:  # reported among the packages
        return
    for device in devices:
        gpu = gpu_of(device)
        yield Finding("ok", f"device {device} {gpu.name if gpu else ''}".rstrip())
    found = machine_gpus()
    if found and "cuda" not in devices:
        name = found[0].get("name", "an NVIDIA GPU")
        yield Finding("absent", f"CUDA, though there is {name}", "install a torch built for CUDA")
    if found or "cuda" in devices:
        yield _optional("pynvml", "nvidia-ml-py", "clocks, temperature and memory of the GPU")


def _packages() -> Iterator[Finding]:
    for name, install in {**_of_ours(), **_of_cards()}.items():
        try:
            yield Finding("ok", f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("failed", f"{name} is not installed", f"install it with: {install}")
    for module, (package, use) in OPTIONAL.items():
        yield _optional(module, package, use)
    if sys.version_info >= NUMBA_BELOW:
        scan = _optional("numba", "numba", "the compiled scan on a CPU")
        yield scan if scan.state == "ok" else scan._replace(advice="torch scans, and rows say so")
    scan = _optional("mamba_ssm", "mamba-ssm", "its CUDA scan")
    yield scan if scan.state == "ok" else scan._replace(advice="optional: the scan has other backends")


def _of_ours() -> dict[str, str]:
    """Packages that the whole program needs -> the command that installs each."""
    names = ["torch", "timm", "fvcore", *(["numba"] if sys.version_info < NUMBA_BELOW else [])]
    return {name: f"python -m pip install {name}" for name in names}


def _of_cards() -> dict[str, str]:
    """Packages of the built-in families' default implementations -> the command that installs each."""
    try:
        needs = [need for found in built_in_cards() for need in found.card.requires]
    except LongvisError:  # reported among the models
        return {}
    return {need.package: need.install for need in needs}


def _optional(module: str, package: str, use: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding("absent", f"{package} ({use})", f"add it with: python -m pip install {package}")
    try:
        return Finding("ok", f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
        return Finding("ok", package)


def _compiling() -> Iterator[Finding]:
    """Requirements of `--compile` and Triton's scan besides torch."""
    compiler = c_compiler()
    if compiler is None:
        what = "a C compiler (for --compile, and Triton on CUDA)"
        yield Finding("absent", what, "install gcc or clang, e.g. apt install g++")
    else:
        yield Finding("ok", f"C compiler {Path(compiler).name}")
    if has_python_headers():
        yield Finding("ok", "Python.h")
    else:
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        advice = f"install the headers, e.g. apt install python{minor}-dev"
        yield Finding("absent", "Python.h (for --compile, and Triton on CUDA)", advice)


def _models() -> Iterator[Finding]:
    try:
        registry = Registry()
    except LongvisError as error:
        yield Finding("failed", f"cards: {error}")
        return
    yield Finding("ok", f"{len(registry.cards)} families, {units.several(len(registry.names()), 'model')}")
    missing: dict[tuple[str, str], list[str]] = {}
    for name in registry.names():
        try:
            registry.find(name).require_packages()
        except MissingDependency as error:
            missing.setdefault((error.package, error.install), []).append(name)
    for (package, install), models in missing.items():
        yield Finding("absent", f"{package} (for {units.listing(models, 2)})", f"add it with: {install}")


def _measuring() -> Iterator[Finding]:
    if platform.system() != "Linux":
        yield Finding(
            "absent", "fork", "on this system each cell starts a new interpreter, which takes some seconds"
        )
        yield Finding("absent", "peak CPU memory", "measured on Linux only; rows have null and the reason")
        return
    yield Finding("ok", "cells start by fork; the kernel reports peak memory")
    yield _shared_memory(SHARED_MEMORY)


def _shared_memory(folder: Path) -> Finding:
    """Check the shared memory through which loader processes return images."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Finding("absent", f"{folder} (for loader processes)", "train with --workers 0")
    if free < LEAST_SHARED_MEMORY:
        advice = "train with --workers 0, or give the container more, e.g. docker run --shm-size 8g"
        return Finding("absent", f"{folder} has only {units.size(free)} free (for loader processes)", advice)
    return Finding("ok", f"{folder}, {units.size(free)} free")


def _cache() -> Finding:
    """Where counts, shape runs and accuracies are kept between runs."""
    folder = cache_folder()
    if folder is None:
        return Finding("ok", f"cache off ({VARIABLE} is empty)")
    sizes = [path.stat().st_size for path in folder.rglob("*.json")]
    held = f"{len(sizes)} entries, {units.size(sum(sizes))}" if sizes else "empty"
    return Finding("ok", f"cache {folder}, {held}")
