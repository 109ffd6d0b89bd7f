"""Checks of whole cells, as `longvis bench` and `longvis train` run them."""

from __future__ import annotations

import torch

from gpu_checks.check import Context, Figures, all_ok, check, ended, longvis
from longvis_bench.advice.need import CPU_ERROR, CPU_ERROR_MIB, Device, need_of
from longvis_bench.measure.memory.tensor_peak import planned_trace
from longvis_bench.records import Row
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry
from longvis_bench.report.peak_flops import mfu

FAMILIES = [found.card.family for found in built_in_cards()]
NANO = ",".join(f"{family}-n" for family in FAMILIES)


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
