"""Predicted against measured peaks: the committed table for the CPU, and this machine's GPU, if any."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
import torch

from longvis_bench.advice.need import CPU_ERROR, CPU_ERROR_MIB, Device, need_of
from longvis_bench.isolation.runner import Runner
from longvis_bench.measure.memory.tensor_peak import planned_trace
from longvis_bench.records import Cell, Mode, Request, Settings
from longvis_bench.registry.registry import Registry

PAGE = Path(__file__).parents[3] / "docs" / "predicted-memory.md"
LINE = re.compile(r"\| (\S+) \| (\d+) \| (infer|train) \| ([\d.]+) \| ([\d.]+) \| ([+-][\d.]+) \|")
FAMILIES = ("atlas", "convnext", "fastervit", "longvit", "mambavision", "swin", "vit")
MIB = 1 << 20


class Entry(NamedTuple):
    """One line of the table, in MiB."""

    model: str
    resolution: int
    mode: str
    measured: float
    predicted: float


def entries() -> list[Entry]:
    if not PAGE.is_file():
        pytest.skip("the tests run apart from the source tree")
    found = LINE.findall(PAGE.read_text(encoding="utf-8"))
    return [Entry(m, int(r), mode, float(a), float(b)) for m, r, mode, a, b, _ in found]


def asked(name: str, resolution: int, mode: str, **more: object) -> Cell:
    variant = Registry().find(name)
    cell = {
        "model": name,
        "family": variant.family,
        "variant": name,
        "implementation": variant.implementation,
    }
    return Cell.model_validate(cell | {"resolution": resolution, "mode": mode} | more)


def predicted(cell: Cell, device: Device) -> float:
    trace = planned_trace(Registry().find(cell.model), cell, device.capability)
    return need_of(trace, device, train=cell.mode == "train").peak_bytes / MIB


def holds(predicted: float, measured: float) -> bool:
    return abs(predicted - measured) <= max(CPU_ERROR * measured, CPU_ERROR_MIB)


def test_the_table_keeps_its_bounds() -> None:
    found = entries()
    assert {(entry.model.partition("-")[0], entry.mode) for entry in found} == {
        (family, mode) for family in FAMILIES for mode in ("infer", "train")
    }
    assert {entry.resolution for entry in found} >= {512, 1024, 2048}
    assert median(abs(entry.predicted / entry.measured - 1) for entry in found) <= 0.03
    assert [entry for entry in found if not holds(entry.predicted, entry.measured)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_the_table(family: str) -> None:
    """A change of the model of memory that moves a prediction by 1 % needs a new table."""
    for entry in entries():
        if entry.model == f"{family}-n" and entry.resolution == 512:
            now = predicted(asked(entry.model, 512, entry.mode), Device("cpu", 1))
            assert now == pytest.approx(entry.predicted, rel=0.01, abs=0.06)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_this_gpu_the_prediction_holds(family: str, mode: Mode) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    cell = asked(f"{family}-n", 1024, mode, device="cuda", dtype="bf16", metrics=("memory",), batch_size=4)
    with Runner() as runner:
        row = runner.run(Request(cell=cell, settings=Settings(budget_s=1)))
    assert row.memory is not None, row.reason
    device = Device("cuda", 1, torch.cuda.get_device_capability())
    assert holds(predicted(cell, device), row.memory.peak_bytes / MIB)
