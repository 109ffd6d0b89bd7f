"""What moves a latency between processes and over time: an experiment for a quiet CPU machine.

    python scripts/latency_factors.py OUT.json [--rounds 10] [--seconds 1.2] [--only FACTOR ...]

Each factor is one setting of the machine, of the C library, of OpenMP or of this harness, changed alone
against a base.  A round starts one fresh process per factor and one for the base, in random order; every
process times the same cells, and between the model's samples four pieces of fixed work (convolutions, matrix
products, a pass over memory, small operators).  So what all processes of a round share is the machine over
time, what is left between processes of one factor is the process, and what is left between the samples of a
process is within it.  `scripts/latency_factors_report.py` turns the file into tables.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

CELLS = (("atlas-n", 256), ("convnext-n", 256), ("convnext-n", 512), ("swin-n", 256))
"""Models and pixels per side: those whose latencies were seen to shift between processes."""
WARMUP_SHARE = 0.4
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(64 << 20)}
_ADDR_NO_RANDOMIZE, _PR_SET_THP_DISABLE = 0x0040000, 41

FACTORS: dict[str, dict[str, Any]] = {
    "base": {},
    "freed memory given back": {"env": dict.fromkeys(KEPT)},
    "huge pages by madvise": {"env": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}},
    "huge pages disabled": {"thp_disable": True},
    "threads not pinned": {"pin": False},
    "each thread on a core of its own": {"apart": True},
    "each thread bound by OpenMP": {"env": {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}, "pin": False},
    "OpenMP waits actively": {"env": {"OMP_WAIT_POLICY": "active"}},
    "OpenMP waits passively": {"env": {"OMP_WAIT_POLICY": "passive"}},
    "one thread": {"threads": 1},
    "addresses not randomised": {"no_aslr": True},
    "forks of one server": {"fork": True},
    "cells in reverse order": {"reverse": True},
    "no oneDNN primitive cache": {"env": {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}},
    "channels last": {"channels_last": True},
}
"""The base keeps freed memory, pins one thread per core, and leaves everything else as torch has it."""


def main() -> None:
    """Run the experiment, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.2, help="per cell, warm-up included")
    parser.add_argument("--only", nargs="*", default=list(FACTORS))
    parser.add_argument("--process", help="settings as JSON: be one of the processes")
    options = parser.parse_args()
    if options.process is not None:
        be_process(json.loads(options.process))
        return
    factors = ["base", *(name for name in options.only if name != "base")]
    results = []
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(server(name, options.seconds)) for name in factors if _forks(name)
        }
        for number in range(options.rounds):
            for name in random.sample(factors, len(factors)):
                answer = servers[name]() if name in servers else run_once(name, options.seconds)
                results.append({"round": number, "factor": name, "at": monotonic(), "cells": answer})
            Path(options.out).write_text(json.dumps({"seconds": options.seconds, "processes": results}))
            print(f"round {number + 1} of {options.rounds}", flush=True)


def _forks(name: str) -> bool:
    return bool(FACTORS[name].get("fork"))


def run_once(name: str, seconds: float) -> dict[str, Any]:
    """Start one process of a factor; what it measured, by cell."""
    command, environment = _start(name, seconds)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def server(name: str, seconds: float) -> Iterator[Callable[[], dict[str, Any]]]:
    """A process that has imported everything, and forks once per call."""
    command, environment = _start(name, seconds)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines, wishes = process.stdout, process.stdin

        def fork() -> dict[str, Any]:
            wishes.write("\n")
            wishes.flush()
            return dict(json.loads(lines.readline()))

        try:
            yield fork
        finally:
            wishes.close()


def _start(name: str, seconds: float) -> tuple[list[str], dict[str, str]]:
    settings = {**FACTORS[name], "seconds": seconds}
    changed: Mapping[str, str | None] = {**KEPT, **settings.pop("env", {})}
    environment = {key: value for key, value in {**os.environ, **changed}.items() if value is not None}
    return [sys.executable, __file__, "-", "--process", json.dumps(settings)], environment


def be_process(settings: dict[str, Any]) -> None:
    """Measure all cells under some settings and print the samples; a server does it once per line read."""
    _prepare(settings)
    import torch

    import longvis_bench as lv

    lv.list_models()
    if not settings.get("fork"):
        print(json.dumps(measure_all(settings)), flush=True)
        return
    torch.set_num_threads(1)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            print(json.dumps(measure_all(settings)), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


def _prepare(settings: dict[str, Any]) -> None:
    """What must be set before torch is loaded; a change of the address space needs a new program."""
    libc = ctypes.CDLL(None)
    if settings.get("thp_disable"):
        libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if settings.get("no_aslr") and not libc.personality(0xFFFFFFFF) & _ADDR_NO_RANDOMIZE:
        libc.personality(_ADDR_NO_RANDOMIZE)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def measure_all(settings: dict[str, Any]) -> dict[str, Any]:
    """Time all cells one after the other, each model built afresh."""
    import torch

    from longvis_bench.measure.latency.conditions import pinned

    threads = int(settings.get("threads", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = settings.get("mkldnn", True)
    cells = CELLS[::-1] if settings.get("reverse") else CELLS
    with ExitStack() as stack:
        if settings.get("pin", True):
            stack.enter_context(pinned(threads))
        return {f"{model} {size}": measure(model, size, settings) for model, size in cells}


def measure(model: str, size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Samples of one model and of the fixed work, in seconds, and what the system did meanwhile."""
    import torch

    import longvis_bench as lv
    from longvis_bench.measure.latency.conditions import ThreadsApart
    from longvis_bench.measure.latency.counters import CounterWatch

    layout = torch.channels_last if settings.get("channels_last") else torch.contiguous_format
    built = lv.build(model, resolution=size).eval().to(memory_format=layout)
    images = torch.randn(1, 3, size, size).contiguous(memory_format=layout)
    work = fixed_work()
    start, seconds = monotonic(), settings["seconds"]
    with torch.inference_mode():
        if settings.get("apart"):
            apart = ThreadsApart(range(torch.get_num_threads()))
            built(images)
            apart.look()
        while monotonic() - start < WARMUP_SHARE * seconds:
            built(images)
            for piece in work.values():
                piece()
        counters = CounterWatch()
        samples: dict[str, list[float]] = {"model": [], **{name: [] for name in work}}
        turn = 0
        while monotonic() - start < seconds:
            samples["model"].append(_timed(lambda: built(images)))
            if turn % 3 == 0:
                for name, piece in work.items():
                    samples[name].append(_timed(piece))
            turn += 1
    return {"samples_s": samples, "counters": counters.read().model_dump(), "images_at": images.data_ptr()}


def fixed_work() -> dict[str, Callable[[], object]]:
    """Four pieces of work that a yardstick could be made of."""
    import torch
    from torch.nn import functional as F

    maps, kernel = torch.randn(1, 32, 96, 96), torch.randn(32, 32, 3, 3) / 17
    matrix, stream, small = torch.randn(384, 384), torch.randn(1 << 21), torch.randn(32, 32)

    def convolutions() -> None:
        F.conv2d(F.conv2d(maps, kernel, padding=1), kernel, padding=1)

    def products() -> None:
        (matrix @ matrix) @ matrix

    def small_operators() -> None:
        value = small
        for _ in range(16):
            value = F.gelu(value + small)

    return {
        "convolutions": convolutions,
        "products": products,
        "stream": lambda: stream.add(1.0),
        "small operators": small_operators,
    }


def _timed(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


if __name__ == "__main__":
    main()
