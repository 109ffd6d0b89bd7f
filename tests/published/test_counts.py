"""A second process counts from the other end, through the cache, and never outlives the check."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from longvis_bench.files import PACKAGE
from longvis_bench.measure.flops.counter import OperatorCount
from longvis_bench.published import counts
from longvis_bench.published.counts import ALONE, Counts, count_all
from longvis_bench.published.numbers import claims_of
from longvis_bench.published.verdicts import check
from longvis_bench.registry.registry import Registry

TINY = "vit-n[dim=32,depth=1,num_heads=2]"


@pytest.mark.parametrize("apart", [False, True])
def test_what_the_second_process_counts_is_read_by_the_first(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = json.dumps({"models_dirs": [], "keys": [[TINY, 64, 10], [TINY, 96, 10]]})
    if apart:
        command = [sys.executable, "-P", "-m", counts.__name__]
        monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
        subprocess.run(command, input=asked.encode(), check=True, timeout=120)
    else:
        count_all(asked)
    monkeypatch.setattr(counts, "count_variant", None)  # would be called for what is not in the cache
    variant = Registry().find(TINY)
    with Counts() as found:
        small, large = (found.count(variant, size, 10) for size in (64, 96))
    assert not isinstance(small, str)
    assert not isinstance(large, str)
    assert small.macs < large.macs


class Process:
    """A second process that is only asked."""

    started: ClassVar[list[Process]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.stdin, self.asked, self.killed = io.BytesIO(), b"", False
        self.stdin.close = lambda: setattr(self, "asked", self.stdin.getvalue())  # type: ignore[method-assign]
        Process.started.append(self)

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> None:
        assert self.killed


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    monkeypatch.setattr(Process, "started", [])
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(counts, "count_variant", lambda *_: Count())
    return Process.started


class Count:
    """Anything that has been counted."""

    def operators(self) -> OperatorCount:
        return OperatorCount(1, 1, 0, 0, True)


def test_it_begins_at_the_end_and_is_ended(processes: list[Process]) -> None:
    claims = claims_of(Registry(), ["swin-*", "vit-*", "convnext-*"])
    check(Registry(), ["swin-*", "vit-*", "convnext-*"])
    (second,) = processes
    asked = json.loads(second.asked)["keys"]
    counted = [claim for claim in claims if claim.quantity in ("params", "MACs")]
    assert asked[0] == [counted[-1].model, counted[-1].entry.resolution, 1000]
    assert len(asked) == len(set(map(tuple, asked))) > 2 * ALONE
    assert second.killed


def test_few_counts_and_counts_without_a_cache_need_none(processes: list[Process]) -> None:
    check(Registry(), ["swin-t", "vit-s"])
    check(Registry(), ["swin-*", "vit-*", "convnext-*"], cache=False)
    assert processes == []


def test_it_is_ended_where_the_first_fails(processes: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter(range(ALONE + 2))
    monkeypatch.setattr(counts, "count_variant", lambda *_: (next(made), Count())[1])
    with pytest.raises((StopIteration, RuntimeError)):
        check(Registry(), ["swin-*", "vit-*", "convnext-*"])
    assert processes[0].killed
