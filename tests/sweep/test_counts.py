"""Models whose cards state no multiply-adds are counted before a sweep is estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longvis_bench.environment import read_environment
from longvis_bench.records import CountRecord, Request, Row
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.counts import with_counts
from longvis_bench.sweep.plan import Plan, make_plan

FAMILIES = Path(__file__).parents[1] / "families"


class Counting:
    """A runner that counts 1 GMAC per 1,000 px, and fails for the model `moody-nan`."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, request: Request) -> Row:
        self.asked.append(request)
        row = Row.of(request, "ok")
        if request.cell.variant == "moody-nan":
            return row
        macs = request.cell.resolution * 10**6
        return row.model_copy(
            update={"count": CountRecord(params=1, macs=macs, flops=2 * macs, scan_flops=0, coverage=1.0)}
        )


def plan(*models: str, **options: Any) -> Plan:
    options = {"resolutions": (64, 128), "modes": ("infer", "train"), "models_dirs": (FAMILIES,)} | options
    return make_plan(SweepConfig(models=models, device="cpu", threads=1, **options), read_environment())


def test_each_model_and_size_is_counted_once() -> None:
    runner = Counting()
    counted = with_counts(plan("moody-fine", "moody-nan", "vit-n"), lambda: runner)
    asked = [(request.cell.variant, request.cell.resolution) for request in runner.asked]
    assert sorted(asked) == sorted((m, r) for m in ("moody-fine", "moody-nan") for r in (64, 128))
    assert {request.cell.metrics for request in runner.asked} == {("count",)}
    seconds = {
        (p.cell.variant, p.cell.resolution, p.cell.mode): counted.iteration_seconds(p) for p in counted.cells
    }
    small, large = seconds["moody-fine", 64, "infer"], seconds["moody-fine", 128, "infer"]
    assert small == pytest.approx(64e6 / 25e9)
    assert large == pytest.approx(128e6 / 25e9)
    assert seconds["moody-fine", 64, "train"] == pytest.approx(3 * 64e6 / 25e9)
    assert seconds["moody-nan", 64, "infer"] is None


@pytest.mark.parametrize(("models", "metrics"), [(("vit-n",), ("time",)), (("moody-fine",), ("count",))])
def test_what_needs_no_count_starts_no_process(models: tuple[str, ...], metrics: tuple[str, ...]) -> None:
    def never() -> Any:
        raise AssertionError

    unchanged = plan(*models, metrics=metrics)
    assert with_counts(unchanged, never) is unchanged


def test_a_count_in_a_process_of_its_own_is_that_of_the_model() -> None:
    from longvis_bench import count
    from longvis_bench.registry.registry import Registry

    counted = with_counts(plan("vit-n[depth=3]", resolutions=(64,), modes=("infer",)))
    model = Registry().find("vit-n[depth=3]").build(resolution=64, num_classes=10)
    assert list(counted.macs.values()) == [count(model, resolution=64).macs]
