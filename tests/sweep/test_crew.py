"""A sweep over several devices at once: one queue, one store, every cell once."""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Lock, current_thread
from typing import Any, ClassVar

import psutil
import pytest

import longvis_bench.sweep.devices as devices_module
import longvis_bench.sweep.execute as sweep_module
from longvis_bench.errors import RunDirectoryError
from longvis_bench.records import Request, Row
from longvis_bench.runs.directory import read_rows
from longvis_bench.runs.progress import read_running
from longvis_bench.sweep.crew import shared_order
from longvis_bench.sweep.plan import Plan, Planned
from longvis_bench.sweep.reporter import Reporter
from longvis_bench.sweep.session import Session, start

FAMILIES = Path(__file__).parents[1] / "families"
MODELS = ("vit-n", "swin-n", "convnext-n", "atlas-n")


class Stub:
    """A device that takes some time per cell."""

    seconds: ClassVar[Callable[[Request], float]] = staticmethod(lambda request: 0.0)
    verdict: ClassVar[Callable[[Request], Any]] = staticmethod(lambda request: "ok")
    spans: ClassVar[dict[str, list[tuple[float, float]]]] = defaultdict(list)
    asked: ClassVar[list[Request]] = []
    made: ClassVar[list[tuple[dict[str, str], tuple[int, ...]]]] = []
    mutex: ClassVar[Lock] = Lock()

    def __init__(self, variables: Mapping[str, str] | None = None, processors: Collection[int] = ()) -> None:
        Stub.made.append((dict(variables or {}), tuple(processors)))

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, request: Request, on_tick: Callable[[], object]) -> Row:
        begun = time.monotonic()
        end = begun + Stub.seconds(request)
        while (left := end - time.monotonic()) > 0:
            on_tick()
            time.sleep(min(left, 0.02))
        on_tick()
        with Stub.mutex:
            Stub.asked.append(request)
            Stub.spans[current_thread().name].append((begun, time.monotonic()))
        return Row.of(request, Stub.verdict(request))


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    """Eight cores, and devices that measure nothing."""
    monkeypatch.setattr(sweep_module, "Runner", Stub)
    monkeypatch.setattr(devices_module, "usable_cores", lambda: 8)
    monkeypatch.setattr(devices_module, "usable_processors", lambda: list(range(8)))
    monkeypatch.setattr(Stub, "asked", [])
    monkeypatch.setattr(Stub, "made", [])
    monkeypatch.setattr(Stub, "spans", defaultdict(list))
    monkeypatch.setattr(Stub, "seconds", staticmethod(lambda request: 0.0))
    monkeypatch.setattr(Stub, "verdict", staticmethod(lambda request: "ok"))
    return Stub


def session(devices: str | None = "cpu:8x1", **options: Any) -> Session:
    options = {
        "models": MODELS,
        "resolutions": (64, 128, 256, 512),
        "batch_sizes": (1, 2),
        "threads": 1,
        "device": "cpu",
        "metrics": ("time",),
        "devices": devices,
    } | options
    return start(options, out=Path("run"))


def test_every_cell_is_measured_once_on_some_device(stub: type[Stub]) -> None:
    stub.seconds = staticmethod(lambda request: 0.01)
    found = session()
    outcome = found.run()
    keys = [planned.request.key for planned in found.plan.cells]
    assert [row.key for row in outcome.rows] == keys
    assert sorted(row.key for row in read_rows(Path("run"))) == sorted(keys)
    assert len(stub.spans) == 8, "every device worked"
    for spans in stub.spans.values():
        ordered = sorted(spans)
        assert all(before[1] <= after[0] for before, after in pairwise(ordered))
    assert len({request.turns for request in stub.asked}) == 1
    assert stub.asked[0].turns is not None
    assert {processors for _, processors in stub.made} == {(core,) for core in range(8)}
    assert max(row.neighbours for row in outcome.rows) == 7
    assert session().run().was_complete


def test_one_device_and_several_have_the_same_keys(stub: type[Stub]) -> None:
    several = {planned.request.key for planned in session().plan.cells}
    assert several == {planned.request.key for planned in session(None).plan.cells}


def test_overlap_takes_no_turns(stub: type[Stub]) -> None:
    session(overlap=True).run()
    assert {request.turns for request in stub.asked} == {None}


def test_every_model_has_a_row_soon_then_the_longest_come_first(stub: type[Stub]) -> None:
    found = session("cpu:2x1")
    plan = found.plan
    seconds = dict(zip((planned.request.key for planned in plan.cells), plan.seconds, strict=True))
    ordered = shared_order(plan.cells, plan.seconds)
    first, rest = ordered[: len(MODELS)], ordered[len(MODELS) :]
    assert sorted(planned.cell.model for planned in first) == sorted(MODELS)
    for planned in first:
        of_model = [seconds[p.request.key] for p in plan.cells if p.cell.model == planned.cell.model]
        assert seconds[planned.request.key] == min(of_model)
    lengths = [seconds[planned.request.key] for planned in rest]
    assert lengths == sorted(lengths, reverse=True)
    again = shared_order(plan.cells, plan.seconds, measured=set(MODELS))
    assert seconds[again[0].request.key] == max(plan.seconds)


def test_what_one_device_learns_of_memory_the_others_use(stub: type[Stub]) -> None:
    stub.verdict = staticmethod(lambda request: "oom")
    outcome = session("cpu:4x1", models=("vit-n",), batch_sizes=(1,)).run()
    by_size = {row.cell.resolution: row.status for row in outcome.rows}
    assert by_size[64] == "oom"
    assert set(by_size.values()) <= {"oom", "skipped"}
    stub.asked.clear()
    stub.verdict = staticmethod(lambda request: "ok")
    more = session("cpu:4x1", models=("vit-n",), batch_sizes=(1,), resolutions=(64, 1024, 2048, 4096)).run()
    assert [row.status for row in more.rows] == ["oom", "skipped", "skipped", "skipped"]
    assert stub.asked == []


def test_an_interrupt_ends_all_devices_and_the_same_command_resumes(stub: type[Stub]) -> None:
    class Impatient(Reporter):
        ticks = 0

        def tick(self) -> None:
            self.ticks += 1
            if self.ticks == 4:
                raise KeyboardInterrupt

    stub.seconds = staticmethod(lambda request: 0.02 if request.cell.resolution < 512 else 60.0)
    begun = time.monotonic()
    outcome = session().run(reporter=Impatient())
    assert outcome.interrupted
    assert time.monotonic() - begun < 30
    assert read_running(Path("run")) == []
    stub.seconds = staticmethod(lambda request: 0.0)
    resumed = session().run()
    assert len(resumed.rows) == 32
    assert {row.status for row in resumed.rows} == {"ok"}
    cut = {row.key for row in read_rows(Path("run")) if row.reason == "interrupted"}
    assert cut
    assert all(row.attempt == 2 for row in resumed.rows if row.key in cut)


def test_a_full_disk_of_one_device_ends_the_sweep(stub: type[Stub]) -> None:
    def fails(request: Request) -> Any:
        if request.cell.model == "swin-n":
            raise RunDirectoryError("no space left")
        return "ok"

    stub.verdict = staticmethod(fails)
    with pytest.raises(RunDirectoryError, match="no space left"):
        session().run()


def test_the_reporter_is_never_called_by_two_devices_at_once(stub: type[Stub]) -> None:
    class Picky(Reporter):
        def __init__(self) -> None:
            self.busy, self.calls = Lock(), 0

        def _alone(self) -> None:
            assert self.busy.acquire(blocking=False)
            time.sleep(0.001)
            self.calls += 1
            self.busy.release()

        def start(self, planned: Planned) -> None:
            self._alone()

        def finish(self, row: Row) -> None:
            self._alone()

        def tick(self) -> None:
            self._alone()

    reporter = Picky()
    session().run(reporter=reporter)
    assert reporter.calls >= 64


def makespan(seconds: list[float], number: int) -> float:
    """When the last device ends, where the next cell goes to the device that is free first."""
    free = [0.0] * number
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def idle(seconds: list[float], number: int, end: float) -> float:
    return 1 - sum(seconds) / (number * end)


def thousand(number: int = 1000) -> Plan:
    """The plan of a sweep of so many cells whose lengths spread over three orders of magnitude."""
    sizes, batches = (64, 128, 256, 512, 1024), tuple(range(1, number // 20 + 1))
    found = session(resolutions=sizes, batch_sizes=batches, metrics=("memory",)).plan
    assert len(found.cells) == number
    return found


def test_longest_first_leaves_devices_less_idle_than_every_eighth_cell() -> None:
    plan = thousand(200)
    lengths = dict(zip((p.request.key for p in plan.cells), plan.seconds, strict=True))
    shared = [lengths[p.request.key] for p in shared_order(plan.cells, plan.seconds)]
    every_eighth = max(sum(plan.seconds[part::8]) for part in range(8))
    assert idle(shared, 8, makespan(shared, 8)) < 0.05
    assert idle(shared, 8, every_eighth) > 0.05


@pytest.mark.slow
@pytest.mark.alone
def test_a_thousand_cells_on_eight_devices(stub: type[Stub], capsys: pytest.CaptureFixture[str]) -> None:
    """Overhead per cell, idle share, rows per second and memory of the parent, with real files."""
    plan = thousand()
    scale = 1000 * 0.4 / sum(plan.seconds)  # real cells take ten times as long
    lengths = {p.request.key: scale * s for p, s in zip(plan.cells, plan.seconds, strict=True)}
    stub.seconds = staticmethod(lambda request: lengths[request.key])
    before = psutil.Process().memory_info().rss
    begun = time.monotonic()
    sizes, batches = (64, 128, 256, 512, 1024), tuple(range(1, 51))
    found = replace(session(resolutions=sizes, batch_sizes=batches, metrics=("memory",)), plan=plan)
    planned = time.monotonic()
    outcome = found.run()
    wall = max(end for spans in stub.spans.values() for _, end in spans) - min(
        start for spans in stub.spans.values() for start, _ in spans
    )
    work = sum(end - start for spans in stub.spans.values() for start, end in spans)
    share = 1 - work / (8 * wall)
    every_eighth = max(sum(list(lengths.values())[part::8]) for part in range(8))
    with capsys.disabled():
        print(
            f"\n1000 cells on 8 devices: idle {share:.1%} (every 8th cell: "
            f"{1 - sum(lengths.values()) / 8 / every_eighth:.1%}), "
            f"{1e3 * (8 * wall - work) / 1000:.1f} ms per cell, "
            f"{len(outcome.rows) / wall:.0f} rows/s, planning {planned - begun:.1f} s, parent "
            f"{(psutil.Process().memory_info().rss - before) / 2**20:.0f} MiB more"
        )
    assert len({row.key for row in read_rows(Path("run"))}) == 1000
    assert share < 0.05
    assert psutil.Process().memory_info().rss - before < 400 * 2**20
