"""The row while its cell is measured: every field that the builder collects arrives in the row."""

from __future__ import annotations

import dataclasses

import pytest

from longvis_bench.measure.memory.tensor_peak import TensorPeak
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import (
    AccuracyRecord,
    Cell,
    CountRecord,
    EnergyRecord,
    FeaturesRecord,
    MemoryRecord,
    ReachRecord,
    Request,
    Row,
    SizeRecord,
    TimingRecord,
    ValidityRecord,
    WorldRecord,
)

VALUES: dict[str, object] = {
    "size": SizeRecord(reach="as it is"),
    "count": CountRecord(params=1, macs=2, flops=4, scan_flops=0, coverage=1.0),
    "params": 7,
    "timing": TimingRecord(samples_s=(1.0, 2.0, 3.0), warmup_s=(), verdict="stable"),
    "memory": MemoryRecord(peak_bytes=1, baseline_bytes=2, source="a test"),
    "accuracy": AccuracyRecord(correct_top1=1, correct_top5=None, images=2, dataset="digits", weights="w"),
    "validity": ValidityRecord(verdict="ok", reference="a test"),
    "reach": ReachRecord(basis="map", share=0.5, tokens=9, radius_50_px=(8.0,), radius_90_px=(16.0,)),
    "energy": EnergyRecord(joules=3.0, seconds=2.0, images=5, source="a test"),
    "features": FeaturesRecord(strides=(4, 8), channels=(16, 32)),
    "world": WorldRecord(backend="gloo", one_device_s=(1.0,)),
    "attention": "math",
    "numerics": {"a": "b"},
    "backends": {"scan": "numba"},
    "null_reasons": {"memory": "a test"},
    "changed_settings": ("threads",),
    "gpu_index": 1,
    "gpu_uuid": "12-34",
    "cached": ("count",),
}


def builder() -> RowBuilder:
    """Of a cell of which nothing is measured."""
    cell = Cell(model="m", family="f", variant="v", implementation="i", resolution=64)
    return RowBuilder(Request(cell=cell, key="k", attempt=3, machine="here", code="c"))


def test_every_field_that_row_and_builder_share_is_tested_here() -> None:
    shared = {field.name for field in dataclasses.fields(RowBuilder)} & set(Row.model_fields)
    assert shared - {"status", "reason", "started", "overhead_s"} == set(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_a_field_arrives_in_the_row(name: str) -> None:
    filled = builder()
    assert getattr(filled.row(), name) != VALUES[name]
    setattr(filled, name, VALUES[name])
    assert getattr(filled.row(), name) == VALUES[name]


def test_a_row_that_was_taken_does_not_change_any_more() -> None:
    filled = builder()
    before = filled.row()
    filled.null_reasons["memory"] = "later"
    filled.numerics["later"] = "later"
    filled.backends["later"] = "later"
    filled.overhead_s["later"] = 1.0
    assert not before.null_reasons
    assert not before.numerics
    assert not before.backends
    assert "later" not in before.overhead_s


def test_the_request_and_the_shapes_arrive_in_the_row() -> None:
    filled = builder()
    filled.tensor_peak = TensorPeak(8, {"input": 8}, {}, 2)
    row = filled.end("oom", "no memory")
    assert (row.key, row.attempt, row.machine, row.code) == ("k", 3, "here", "c")
    assert (row.status, row.reason) == ("oom", "no memory")
    assert row.tensors is not None
    assert row.tensors.peak_bytes == 8
    assert row.started is not None
