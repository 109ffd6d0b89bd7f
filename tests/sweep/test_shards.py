"""Parts of a sweep: balanced, the same on every machine, numbered by SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longvis_bench.environment import read_environment
from longvis_bench.errors import LongvisError
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.plan import Plan, make_plan
from longvis_bench.sweep.session import start
from longvis_bench.sweep.shards import deal, read_part, take_part

FAMILIES = Path(__file__).parents[1] / "families"
SEVEN = ("atlas-s", "convnext-s", "fastervit-2", "longvit-s", "mambavision-s", "swin-s", "vit-s")
TASK, COUNT, FIRST, LAST = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX"))


def shares(seconds: tuple[float, ...], parts: int) -> list[float]:
    dealt = deal(seconds, parts)
    assert set(dealt) <= set(range(1, parts + 1))
    return [sum(s for s, part in zip(seconds, dealt, strict=True) if part == n) for n in range(1, parts + 1)]


def plan(**options: Any) -> Plan:
    return make_plan(SweepConfig(device="cpu", threads=2, **options), read_environment())


@pytest.mark.parametrize(
    ("metrics", "budget"), [(("time", "memory", "count"), 1.0), (("memory",), 30.0), (("time",), 30.0)]
)
def test_parts_of_7_models_at_3_sizes_are_balanced(metrics: tuple[str, ...], budget: float) -> None:
    """No part has 1.3 times the mean, but for one that is a single cell; every n-th cell gave up to 69 %."""
    whole = plan(models=SEVEN, resolutions=(512, 1024, 2048), metrics=metrics, budget_s=budget)
    seconds = whole.seconds
    assert len(seconds) == 21
    mean = sum(seconds) / 7
    assert max(shares(seconds, 7)) <= max(1.3 * mean, *seconds)
    assert min(shares(seconds, 7)) > 0.1 * mean


def test_parts_of_equal_cells_are_equal() -> None:
    assert shares((1.0,) * 21, 7) == [3.0] * 7
    assert shares((1.0,) * 6, 4) == [2.0, 2.0, 1.0, 1.0]


def test_no_part_has_more_than_four_thirds_of_the_mean_where_cells_are_small() -> None:
    import random

    for seed in range(50):
        draw = random.Random(seed)
        parts = draw.randint(2, 16)
        seconds = tuple(draw.random() for _ in range(6 * parts))
        mean = sum(seconds) / parts
        if max(seconds) <= mean / 3:
            assert max(shares(seconds, parts)) <= 4 / 3 * mean
        assert sum(shares(seconds, parts)) == pytest.approx(sum(seconds))


def test_a_part_lists_the_cells_of_all_parts() -> None:
    whole = plan(models=SEVEN, resolutions=(512, 1024), metrics=("count",))
    parts = [take_part(whole, number, 3) for number in (1, 2, 3)]
    assert sorted(p.request.key for part in parts for p in part.cells) == sorted(
        p.request.key for p in whole.cells
    )
    assert len({part.listed.cells for part in parts}) == 1
    for number, part in enumerate(parts, start=1):
        assert [cell.key for cell in part.listed.own] == [p.request.key for p in part.cells]
        assert (part.listed.part, part.listed.parts) == (number, 3)


def array(task: int | str, count: int | str = 8, first: int = 1, last: int = 8) -> dict[str, str]:
    return {TASK: str(task), COUNT: str(count), FIRST: str(first), LAST: str(last)}


def test_slurm_numbers_the_parts() -> None:
    assert read_part("auto", array(3)) == (3, 8)
    assert read_part("auto", array(0, first=0, last=7)) == (1, 8)
    assert read_part("auto", {TASK: "2", COUNT: "4"}) == (2, 4)
    assert read_part((3, 8), {}) == (3, 8)
    assert read_part((3, 8), array(3)) == (3, 8)
    assert read_part((3, 8), array(2, first=0, last=7)) == (3, 8)
    assert read_part((3, 8), array(3, count=1, first=3, last=3)) == (3, 8)  # one task submitted again


@pytest.mark.parametrize(
    ("asked", "variables", "words"),
    [
        ("auto", {}, "SLURM_ARRAY_TASK_ID is not set: submit with sbatch --array=1-8"),
        ("auto", {TASK: "3"}, "needs SLURM_ARRAY_TASK_COUNT"),
        ("auto", array(3, count=1, first=3, last=3), "to run one part again, give --shard"),
        ("auto", array(3, count=3, first=1, last=7), "3 from 1 to 7"),
        ("auto", array(9), "SLURM_ARRAY_TASK_ID=9 contradicts the array, whose tasks are 1 to 8"),
        ("auto", array("three"), "must be a whole number, not 'three'"),
        ((3, 8), array(5), "--shard 3/8 contradicts SLURM_ARRAY_TASK_ID=5"),
    ],
)
def test_slurm_variables_that_contradict(asked: Any, variables: dict[str, str], words: str) -> None:
    with pytest.raises(LongvisError, match=words) as caught:
        read_part(asked, variables)
    assert str(caught.value).count(".") == str(caught.value).rstrip().endswith(".")


def test_auto_names_the_directory_by_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in array(2, count=2, last=2).items():
        monkeypatch.setenv(name, value)
    session = start({"models": ("vit-n",), "resolutions": (64, 128), "device": "cpu"}, shard="auto")
    assert session.path.name.endswith("-shard-2-of-2")
    assert session.invocation.shard == "2/2"
    assert len(session.plan.cells) == 1
