"""Acceptance run on a machine with an NVIDIA GPU: every CUDA path once, in one JSON report.

    python scripts/gpu_check.py REPORT.json [--only NAME,NAME] [--device cuda:1] [--list]

`make gpu` writes gpu_check/report.json.  Each check has its verdict (`ok`, `failed`, `skipped`), criterion,
figures and seconds; the report is written after every check, and a second run with the same file runs again
only what is not `ok` yet, or what `--only` names.  The whole takes under 8 minutes on an H100.

No GPU has run this script yet.  Its tolerances follow from the dtypes; limits on time and rates are guesses,
and the first run is to set them.  The check `packages` lists the wheels that a bare machine with torch lacks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from statistics import median
from time import gmtime, perf_counter, strftime
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.advice.need import CPU_ERROR, CPU_ERROR_MIB, Device, need_of
from longvis_bench.environment import read_environment
from longvis_bench.files import write_whole
from longvis_bench.measure.latency.clock import clock_for, use_device
from longvis_bench.measure.memory.tensor_peak import planned_trace
from longvis_bench.ops import dilated_attention as dilated
from longvis_bench.ops.kernel_trace import ATTENTION, KERNELS, observe
from longvis_bench.ops.selective_scan.operator import reference, selective_scan, use_backend
from longvis_bench.records import Row
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry
from longvis_bench.report.peak_flops import mfu, peak_flops
from longvis_bench.runs.directory import current, read_rows

ROOT = Path(__file__).parents[1]
FAMILIES = [found.card.family for found in built_in_cards()]
NANO = ",".join(f"{family}-n" for family in FAMILIES)
HALVES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Accepted error of attention by dtype, as a share of the largest exact value."""
SCANS = {torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""The same for the scan, which computes in float32 throughout."""
LEFT_LIMIT = 200 << 20
"""Bytes of device memory that may be missing after models that failed."""
PROBLEM = 8192
"""Rows and columns of the product that clocks are compared with."""

Figures = dict[str, Any]


class Skip(Exception):
    """A check does not apply to this machine."""


@dataclass
class Context:
    """Where a run of the checks happens."""

    device: str
    folder: Path

    def bench(self, name: str, *options: str) -> list[Row]:
        """The rows of `longvis bench` as a user runs it, in a process of its own."""
        out = self.folder / f"run-{name}"
        common = ("--device", self.device, "--out", str(out), "--fresh", "--quick")
        done = longvis("bench", *options, *common)
        runs = sorted(self.folder.glob(f"run-{name}*/cells.jsonl"), key=lambda file: file.stat().st_mtime)
        if not runs:
            raise RuntimeError(done.stderr[-800:])
        return current(read_rows(runs[-1].parent))


@dataclass
class Check:
    """One check: its function gives whether the criterion holds, and the figures."""

    run: Callable[[Context], tuple[bool, Figures]]
    limit_s: float

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def criterion(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


CHECKS: dict[str, Check] = {}


def check(limit_s: float) -> Callable[[Callable[[Context], tuple[bool, Figures]]], Check]:
    """Register a function as a check; its docstring is the criterion."""

    def register(run: Callable[[Context], tuple[bool, Figures]]) -> Check:
        CHECKS[run.__name__] = Check(run, limit_s)
        return CHECKS[run.__name__]

    return register


def longvis(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "longvis_bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def ended(rows: list[Row]) -> dict[str, str]:
    """How each cell ended, with its reason."""
    ends = {}
    for row in rows:
        cell = row.cell
        name = f"{cell.model} {cell.resolution} px, batch {cell.batch_size}, {cell.dtype}, {cell.mode}"
        ends[name] = f"{row.status}: {row.reason[:160]}" if row.reason else row.status
    return ends


def all_ok(rows: list[Row], count: int) -> bool:
    return [row.status for row in rows] == ["ok"] * count


def error(ours: Tensor, exact: Tensor) -> float:
    """Largest absolute error over the largest absolute exact value."""
    difference = (ours.detach().double() - exact.detach().double()).abs().max()
    return float(difference / exact.detach().double().abs().max().clamp_min(1e-30))


def worst_gradient_error(
    ours: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor]
) -> float:
    """Largest error of the output and of all gradients, against float64."""
    narrow = [t.clone().requires_grad_() for t in inputs]
    wide = [t.double().requires_grad_() for t in inputs]
    y, z = ours(*narrow), exact(*wide)
    weight = torch.randn_like(y)
    gradients = torch.autograd.grad(y, narrow, weight), torch.autograd.grad(z, wide, weight.double())
    return max(error(y, z), *(error(a, b) for a, b in zip(*gradients, strict=True)))


# The machine ------------------------------------------------------------------------------------------


@check(5)
def packages(context: Context) -> tuple[bool, Figures]:
    """Every package that longvis needs is installed; `missing` names the wheels to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["fvcore"], "triton"]
    versions = {name: _version(name) for name in (re.split(r"[<>=\[ ]", line)[0] for line in wanted)}
    missing = [name for name, version in versions.items() if version is None]
    return missing == [], {"missing": missing, "installed": versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@check(20)
def machine(context: Context) -> tuple[bool, Figures]:
    """Compute capability 7.5 or newer, a C compiler and Python.h for Triton."""
    found = torch.cuda.get_device_properties(context.device)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = which("gcc") or which("clang")
    figures = {
        "name": found.name,
        "capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "compiler": compiler,
        "python_h": header.exists(),
        "environment": read_environment().model_dump(mode="json"),
    }
    return (found.major, found.minor) >= (7, 5) and bool(compiler) and header.exists(), figures


@check(30)
def fork_after_imports(context: Context) -> tuple[bool, Figures]:
    """What the fork server imports does not start CUDA, and a fork of it can use the GPU."""
    code = (
        "import os, torch, timm, longvis_bench.measure.cell\n"
        "started = torch.cuda.is_initialized()\n"
        "child = os.fork()\n"
        f"if child == 0:\n    os._exit(0 if torch.zeros(1, device={context.device!r}).item() == 0 else 9)\n"
        "print(started, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment
    )
    return done.stdout.split() == ["False", "0"], {"said": done.stdout, "stderr": done.stderr[-500:]}


@check(20)
def clock(context: Context) -> tuple[bool, Figures]:
    """Events and the host's clock agree within 5 %; twice the cycles of sleep take 1.9-2.1 times the time."""
    timer, product = clock_for(torch.device(context.device)), _product(context.device)
    events, host = _median_time(timer.time, product), _median_time(_on_host(context.device), product)
    sleeps = [
        min(timer.time(lambda n=cycles: torch.cuda._sleep(n)) for _ in range(5))  # type: ignore[misc,no-untyped-call]
        for cycles in (20_000_000, 40_000_000)
    ]
    figures = {"events_s": events, "host_s": host, "sleeps_s": sleeps}
    return abs(host / events - 1) < 0.05 and 1.9 < sleeps[1] / sleeps[0] < 2.1, figures


@check(20)
def rate(context: Context) -> tuple[bool, Figures]:
    """A large bf16 product reaches 50-100 % of the peak that is recorded for the GPU."""
    name = torch.cuda.get_device_name(context.device)
    peak = peak_flops(name, "bf16")
    if peak is None:
        raise Skip(f"no peak is recorded for {name}")
    seconds = _median_time(clock_for(torch.device(context.device)).time, _product(context.device))
    share = 2 * PROBLEM**3 / seconds / peak
    return 0.5 < share <= 1.0, {"seconds": seconds, "share_of_peak": share}


@check(20)
def second_gpu(context: Context) -> tuple[bool, Figures]:
    """The same product takes the same time on two GPUs of one kind, within 25 %."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if len(names) < 2 or names[0] != names[1]:
        raise Skip("no two GPUs of one kind: " + ", ".join(names))
    seconds = [_median_time(clock_for(torch.device(d)).time, _product(d)) for d in ("cuda:0", "cuda:1")]
    return 0.8 < seconds[1] / seconds[0] < 1.25, {"seconds": seconds}


def _product(device: str) -> Callable[[], Tensor]:
    matrix = torch.randn(PROBLEM, PROBLEM, device=device, dtype=torch.bfloat16)
    return lambda: matrix @ matrix


def _on_host(device: str) -> Callable[[Callable[[], object]], float]:
    def time(work: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        start = perf_counter()
        work()
        torch.cuda.synchronize(device)
        return perf_counter() - start

    return time


def _median_time(time: Callable[[Callable[[], object]], float], work: Callable[[], object]) -> float:
    return median([time(work) for _ in range(15)][5:])


# Kernels ------------------------------------------------------------------------------------------


@check(60)
def scan(context: Context) -> tuple[bool, Figures]:
    """The Triton scan's output and gradients are near float64: 5e-6 in fp32, 1e-2 in bf16, 2e-3 in fp16."""
    errors = {
        f"{str(dtype)[6:]} {shape}": (_scan_error(context.device, dtype, *shape), limit)
        for dtype, limit in SCANS.items()
        for shape in ((2, 33, 17, 8), (1, 5, 15, 16), (25, 320, 196, 8))
    }
    return _within(errors), {"error_and_limit": errors}


def _scan_error(
    device: str, dtype: torch.dtype, batch: int, channels: int, length: int, states: int
) -> float:
    token, state = (batch, channels, length), (batch, states, length)
    shapes = (token, token, (channels, states), state, state, (channels,), (channels,))
    inputs = [torch.randn(shape, device=device) for shape in shapes]
    inputs[2] = -inputs[2].abs() - 0.1
    with use_backend("triton"):
        return worst_gradient_error(selective_scan, reference, [t.to(dtype) for t in inputs])


def _within(errors: dict[str, tuple[float, float]]) -> bool:
    return all(found <= limit for found, limit in errors.values())


@check(60)
def dilated_attention(context: Context) -> tuple[bool, Figures]:
    """Dilated attention is near float64, padded or not: 1e-4 in fp32, 3e-2 in bf16, 4e-3 in fp16."""
    errors, kernels = {}, set()
    for dtype, limit in HALVES.items():
        for sizes, flags in _dilations():
            tokens, heads, channels, segments, ratios = sizes
            inputs = [torch.randn(2, tokens, heads, channels, device=context.device).to(dtype) for _ in "qkv"]
            with observe() as seen:
                found = worst_gradient_error(
                    lambda *t, s=segments, r=ratios, f=flags: dilated.dilated_attention(*t, s, r, **f),  # type: ignore[call-arg]
                    lambda *t, s=segments, r=ratios, f=flags: dilated.reference(*t, s, r, **f),  # type: ignore[call-arg]
                    inputs,
                )
            kernels |= seen.get(ATTENTION, set())
            errors[f"{str(dtype)[6:]} {tokens} tokens {flags}"] = (found, limit)
    return _within(errors), {"error_and_limit": errors, "kernels": sorted(kernels)}


def _dilations() -> Iterator[tuple[tuple[int, int, int, tuple[int, ...], tuple[int, ...]], dict[str, bool]]]:
    for flags in ({}, {"mask_padding": True}, {"differentiable_mixing": True}):
        yield (64, 4, 16, (16, 64), (1, 2)), flags
        yield (100, 6, 12, (32, 100), (2, 4)), flags
        yield (256, 12, 64, (64, 128, 256), (1, 2, 4)), flags


@check(30)
def attention_names(context: Context) -> tuple[bool, Figures]:
    """The attention kernel that a row would name is the one that the profiler shows, in every dtype."""
    named = {
        f"{str(dtype)[6:]}": (_named_kernel(context.device, dtype), _profiled_kernel(context.device, dtype))
        for dtype in HALVES
    }
    return all(said == shown for said, shown in named.values()), {"named_and_profiled": named}


def _attend(device: str, dtype: torch.dtype, mode: Callable[[], AbstractContextManager[object]]) -> None:
    q = torch.randn(1, 12, 1024, 64, device=device, dtype=dtype)
    with mode():
        F.scaled_dot_product_attention(q, q, q)


def _named_kernel(device: str, dtype: torch.dtype) -> list[str]:
    with observe() as seen:
        _attend(device, dtype, torch.no_grad)
    return sorted(seen.get(ATTENTION, ()))


def _profiled_kernel(device: str, dtype: torch.dtype) -> list[str]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        _attend(device, dtype, torch.inference_mode)
    shown = {event.key.removeprefix("aten::") for event in profile.key_averages()}
    return [kernel for name, kernel in KERNELS.items() if name in shown] or ["math"]


# Cells ------------------------------------------------------------------------------------------


@check(100)
def nano_families(context: Context) -> tuple[bool, Figures]:
    """All nano variants at 256 px in fp32, bf16 and fp16 are ok, valid, and show an accuracy."""
    options = ("--res", "256", "--dtype", "fp32,bf16,fp16", "--budget", "1", "--images", "128")
    rows = context.bench("nano", "--models", NANO, *options)
    valid = all(row.validity and row.validity.verdict == "ok" and row.accuracy for row in rows)
    figures = {
        "ended": ended(rows),
        "reference_errors": {_name(row): row.validity and row.validity.reference_error for row in rows},
        "correct_top1": {_name(row): row.accuracy and row.accuracy.correct_top1 for row in rows},
    }
    return all_ok(rows, 3 * len(FAMILIES)) and valid, figures


def _name(row: Row) -> str:
    return f"{row.cell.model} {row.cell.dtype}"


@check(70)
def train_steps(context: Context) -> tuple[bool, Figures]:
    """A train step of all nano variants at 256 px in bf16 and fp16 is ok."""
    options = ("--res", "256", "--mode", "train", "--dtype", "bf16,fp16", "--batch", "4", "--budget", "0.5")
    rows = context.bench("train", "--models", NANO, *options, "--metrics", "time,memory")
    return all_ok(rows, 2 * len(FAMILIES)), {"ended": ended(rows)}


@check(60)
def predicted_memory(context: Context) -> tuple[bool, Figures]:
    """Measured peaks are within 10 % or 32 MiB of what `longvis fit` predicts for this GPU."""
    options = ("--res", "512,1024", "--batch", "2", "--mode", "infer,train", "--dtype", "bf16")
    rows = context.bench("predicted", "--models", NANO, *options, "--metrics", "memory")
    device = Device("cuda", 1 << 62, torch.cuda.get_device_capability(context.device))
    pairs = {
        f"{row.cell.model} {row.cell.resolution} px {row.cell.mode}": (
            row.memory.peak_bytes,
            _predicted(row, device),
        )
        for row in rows
        if row.memory
    }
    holds = [abs(b - a) <= max(CPU_ERROR * a, CPU_ERROR_MIB << 20) for a, b in pairs.values()]
    return all_ok(rows, 4 * len(FAMILIES)) and all(holds), {"measured_and_predicted": pairs}


def _predicted(row: Row, device: Device) -> int:
    trace = planned_trace(Registry().find(row.cell.model), row.cell, device.capability)
    return need_of(trace, device, train=row.cell.mode == "train").peak_bytes


@check(110)
def quick_default(context: Context) -> tuple[bool, Figures]:
    """The default sweep at 1024 px is ok, its peaks 0.98-1.5 of the tensors', and MFU under 1."""
    rows = context.bench("default", "--res", "1024", "--budget", "2")
    over = {
        row.cell.model: row.memory.peak_bytes / row.tensors.peak_bytes
        for row in rows
        if row.memory and row.tensors
    }
    shares = {row.cell.model: mfu(row) for row in rows}
    figures = {
        "ended": ended(rows),
        "peak_over_tensors": over,
        "mfu": shares,
        "attention": {row.cell.model: row.attention for row in rows},
    }
    believable = all(0.98 < each < 1.5 for each in over.values()) and all(
        (m or 0) < 1 for m in shares.values()
    )
    return bool(over) and all_ok(rows, len(rows)) and believable, figures


@check(60)
def large(context: Context) -> tuple[bool, Figures]:
    """vit-b and atlas-b at 4096 px are ok."""
    rows = context.bench("large", "--models", "vit-b,atlas-b", "--res", "4096", "--budget", "3")
    return all_ok(rows, 2), {"ended": ended(rows)}


@check(30)
def strict_fp32(context: Context) -> tuple[bool, Figures]:
    """fp32 rows allow no TF32; tf32 rows allow it, or are unsupported before compute capability 8.0."""
    options = ("--res", "256", "--dtype", "fp32,tf32", "--budget", "0.3", "--metrics", "time")
    rows = {row.cell.dtype: row for row in context.bench("tf32", "--models", "convnext-n", *options)}
    has = torch.cuda.get_device_capability(context.device) >= (8, 0)
    allowed = {dtype: row.numerics.get("cudnn_allow_tf32") for dtype, row in rows.items()}
    wanted = {"fp32": "false", "tf32": "true" if has else None}
    return allowed == wanted and rows["tf32"].status == ("ok" if has else "unsupported"), {"allowed": allowed}


HOSTILE = {
    "oom": ("torch.empty(1 << 46, dtype=torch.uint8, device=x.device)", ("oom",)),
    "assert": (
        "torch.zeros(4, device=x.device)[torch.tensor([9], device=x.device)].tolist()",
        ("error", "crashed"),
    ),
    "hang": ("x.is_cuda and torch.cuda._sleep(10**13)", ("timeout",)),
}
"""Models that fail: a line of their forward, and the statuses that may come of it."""
MODEL = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, x):
        {line}
        return self.head(x.mean((2, 3)))


def build(*, resolution, num_classes, in_chans=3):
    return Net(num_classes)
"""


def _hostile(context: Context, name: str) -> tuple[bool, Figures]:
    """A model's end, that of the cell after it, and the device memory that is missing then."""
    line, wanted = HOSTILE[name]
    file = context.folder / f"hostile_{name}.py"
    file.write_text(MODEL.format(line=line))
    before = torch.cuda.mem_get_info(context.device)[0]
    options = ("--res", "64", "--metrics", "time", "--timeout", "25", "--budget", "0.3")
    first, second = context.bench(name, "--models", f"{file}:build,vit-n", *options)
    left = before - torch.cuda.mem_get_info(context.device)[0]
    figures = {"ended": ended([first, second]), "left_bytes": left}
    return first.status in wanted and second.status == "ok" and left < LEFT_LIMIT, figures


@check(25)
def out_of_memory(context: Context) -> tuple[bool, Figures]:
    """A cell that asks for 64 TiB is `oom`, the next one ok, and no device memory stays taken."""
    return _hostile(context, "oom")


@check(25)
def device_assertion(context: Context) -> tuple[bool, Figures]:
    """A device-side assertion costs one row, the next cell is ok, and no device memory stays taken."""
    return _hostile(context, "assert")


@check(60)
def hung_kernel(context: Context) -> tuple[bool, Figures]:
    """A kernel that does not end is `timeout`, the next cell ok, and no device memory stays taken."""
    return _hostile(context, "hang")


@check(90)
def compiled(context: Context) -> tuple[bool, Figures]:
    """Three compiled nano variants are ok at 256 px."""
    options = ("--res", "256", "--compile", "--budget", "1")
    rows = context.bench("compile", "--models", "vit-n,convnext-n,mambavision-n", *options)
    return all_ok(rows, 3), {"ended": ended(rows), "overhead_s": {_name(row): row.overhead_s for row in rows}}


@check(60)
def training(context: Context) -> tuple[bool, Figures]:
    """`longvis train` trains two nano variants for two epochs and stores their weights."""
    store = context.folder / "store"
    options = ("--data", "digits", "--res", "64", "--epochs", "2", "--device", context.device)
    done = longvis("train", "--models", "vit-n,mambavision-n", *options, "--store", str(store))
    files = [file.name for file in store.rglob("*.safetensors")]
    return done.returncode == 0 and len(files) == 2, {"files": files, "stderr": done.stderr[-600:]}


@check(40)
def batch_auto(context: Context) -> tuple[bool, Figures]:
    """`--batch auto` tries at least three batch sizes and measures one of them."""
    options = ("--res", "1024", "--batch", "auto", "--budget", "2", "--metrics", "time,memory")
    rows = context.bench("auto", "--models", "convnext-t", *options)
    tries = [try_.model_dump(mode="json") for row in rows for try_ in row.batches]
    return all_ok(rows, 1) and len(tries) >= 3, {"ended": ended(rows), "tries": tries}


# The report ------------------------------------------------------------------------------------------


def run(one: Check, context: Context) -> Figures:
    """One check's entry of the report; what it raises is a failure with its traceback."""
    start, entry = perf_counter(), {"criterion": one.criterion, "limit_s": one.limit_s}
    try:
        passed, figures = one.run(context)
        entry |= {"verdict": "ok" if passed else "failed", "figures": figures}
    except Skip as reason:
        entry |= {"verdict": "skipped", "reason": str(reason)}
    except Exception as error:
        entry |= {"verdict": "failed", "reason": repr(error), "traceback": traceback.format_exc()[-1500:]}
    return {**entry, "seconds": round(perf_counter() - start, 1)}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?", help="JSON file; runs lie beside it")
    parser.add_argument("--only", default="", metavar="NAMES", help="run these checks, also if they are ok")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--list", action="store_true", help="list the checks and stop")
    asked = parser.parse_args()
    unknown = sorted(set(filter(None, asked.only.split(","))) - set(CHECKS))
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if asked.report is None and not asked.list:
        parser.error("name the report's file, e.g. report.json")
    return asked


def main() -> int:
    """Run the checks that are asked for and not ok yet; the exit code is 1 if one of the report failed."""
    asked = options()
    if asked.list:
        print("\n".join(f"{one.name}: {one.criterion}" for one in CHECKS.values()))
        return 0
    if not torch.cuda.is_available():
        print("torch sees no CUDA device here; nothing was checked.", file=sys.stderr)
        return 3
    report: Figures = json.loads(asked.report.read_text()) if asked.report.exists() else {"checks": {}}
    asked.report.parent.mkdir(parents=True, exist_ok=True)
    use_device(torch.device(asked.device))
    context = Context(asked.device, asked.report.resolve().parent)
    done = {name for name, entry in report["checks"].items() if entry["verdict"] == "ok"}
    for name in asked.only.split(",") if asked.only else [name for name in CHECKS if name not in done]:
        entry = run(CHECKS[name], context)
        report["checks"][name] = {
            **entry,
            "at": strftime("%FT%TZ", gmtime()),
            "device": _device(context.device),
        }
        text = json.dumps(report, indent=1, default=str)
        write_whole(asked.report, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        late = "" if entry["seconds"] <= entry["limit_s"] else f", more than {entry['limit_s']} s"
        print(
            f"{entry['verdict']:8}{name}  {entry['seconds']} s{late}  {entry.get('reason', '')}", flush=True
        )
    return int(any(entry["verdict"] == "failed" for entry in report["checks"].values()))


def _device(device: str) -> str:
    return torch.cuda.get_device_name(device)


if __name__ == "__main__":
    sys.exit(main())
