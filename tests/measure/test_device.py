"""The GPU that a cell asks for is the current one, and the row names it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from longvis_bench.measure import device as device_module
from longvis_bench.measure.device import take_device
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import Cell, Request

CELL = Cell(model="m", family="m", variant="m", implementation="native", resolution=64, device="cuda")


@pytest.mark.parametrize(("asked", "index"), [("cuda:1", 1), ("", 0)])
def test_the_row_names_the_gpu_that_ran(asked: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.__setitem__(0, device.index))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    uuids = ["a", "b"]
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=uuids[current[0] if device.index is None else device.index]),
    )
    monkeypatch.setattr(device_module, "used_by_gpu", lambda: {"b": 7})
    builder = RowBuilder(Request(cell=CELL, device=asked))
    take_device(builder.request, builder)
    row = builder.row()
    assert (row.gpu_index, row.gpu_uuid) == (index, uuids[index])
    assert row.cell.device == "cuda"
    assert builder.gpu_used_bytes == {"b": 7}


def test_on_a_cpu_there_is_none() -> None:
    builder = RowBuilder(Request(cell=CELL.model_copy(update={"device": "cpu"}), device="cpu"))
    take_device(builder.request, builder)
    assert (builder.row().gpu_index, builder.row().gpu_uuid) == (None, None)
