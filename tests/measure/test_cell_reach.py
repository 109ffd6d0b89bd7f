"""The metric `reach` of a cell: its columns, its reasons, and that the other metrics do not need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvis_bench.measure.cell import measure_cell
from longvis_bench.records import METRICS, Cell, Request, Row, Settings
from longvis_bench.registry.registry import Registry
from longvis_bench.report.columns import BY_NAME, null_reason, null_reasons

pytestmark = pytest.mark.usefixtures("two_threads")


def request(*, weights: Path | None = None, timeout_s: float = 600.0, **changes: object) -> Request:
    cell = Cell(
        model="convnext-n",
        family="convnext",
        variant="convnext-n",
        implementation="timm",
        resolution=256,
        threads=2,
        metrics=("reach",),
        weights=None if weights is None else weights.name,
    ).model_copy(update=changes)
    return Request(cell=cell, settings=Settings(budget_s=0.1, timeout_s=timeout_s), weights_path=weights)


def value(row: Row, name: str) -> object:
    return BY_NAME[name].value(row)


def test_it_is_off_unless_asked_for() -> None:
    assert "reach" not in METRICS
    row = measure_cell(request(resolution=64, metrics=("count",)))
    assert row.reach is None
    assert null_reason(BY_NAME["reach_share"], row) == "not asked for (--metrics)"


def test_columns_of_fresh_and_trained_weights() -> None:
    variant = Registry().find("convnext-n")
    entry = variant.shipped_weights("digits", 256)
    assert entry is not None
    assert entry.file is not None
    row = measure_cell(request(weights=variant.folder / entry.file))
    assert row.status == "ok", row.reason
    assert row.timing is None
    assert row.reach is not None
    assert (len(row.reach.radius_50_px), len(row.reach.trained_radius_50_px)) == (3, 3)
    radii = [value(row, f"reach_{kind}radius_{share}_px") for kind in ("", "trained_") for share in (50, 90)]
    assert all(isinstance(radius, float) and radius > 0 for radius in radii)
    assert value(row, "reach_basis") == "map"
    assert value(row, "reach"), "the older column of this name is the adaptation to the size"
    assert "reach" in row.overhead_s
    assert Row.model_validate_json(row.to_json()) == row


def test_reasons_where_there_is_none() -> None:
    train = measure_cell(request(resolution=64, mode="train"))
    assert (train.status, train.reach) == ("ok", None)
    assert null_reasons(train)["reach"] == "measured in inference cells only"
    late = measure_cell(request(resolution=64, timeout_s=1e-6))
    assert late.status == "ok"
    assert "raise --timeout" in null_reasons(late)["reach"]
    fresh = measure_cell(request(resolution=64))
    assert null_reason(BY_NAME["reach_trained_radius_50_px"], fresh) == "the cell has no weights"
