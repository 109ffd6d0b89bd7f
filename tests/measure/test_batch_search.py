"""`--batch auto` finds the batch of best throughput, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import longvis_bench.measure.batch_search as search
from longvis_bench.errors import LongvisError
from longvis_bench.measure.batch_search import measure_best_batch
from longvis_bench.records import Cell, MemoryRecord, Request, Row, Settings, TimingRecord
from longvis_bench.runs.directory import current, read_rows
from longvis_bench.sweep.session import Session, start

pytestmark = pytest.mark.usefixtures("no_figures")
FAMILIES = Path(__file__).parents[1] / "families"
MIB = 1 << 20


class Machine:
    """Runs cells of a model whose seconds and bytes are functions of the batch."""

    def __init__(
        self,
        seconds: Callable[[int], float],
        *,
        peak: Callable[[int], int] = lambda batch: batch * MIB,
        fits: int = 10**9,
        final_fits: int = 10**9,
    ) -> None:
        self.seconds, self.peak, self.fits, self.final_fits = seconds, peak, fits, final_fits
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, request: Request, on_tick: Callable[[], object]) -> Row:
        batch, final = request.cell.batch_size, "validity" in request.cell.metrics
        self.asked.append((batch, final))
        row = Row(key=request.key, cell=request.cell, settings=request.settings, status="ok")
        if batch > (self.final_fits if final else self.fits):
            return row.model_copy(update={"status": "oom", "reason": "no room"})
        timing = TimingRecord(samples_s=(self.seconds(batch),) * 7, warmup_s=(), verdict="stable")
        memory = MemoryRecord(peak_bytes=self.peak(batch), baseline_bytes=0, source="test")
        return row.model_copy(update={"timing": timing, "memory": memory})


def request(device: str = "cpu", budget_s: float = 1e6) -> Request:
    cell = Cell(
        model="m",
        family="m",
        variant="m",
        implementation="user",
        resolution=64,
        batch_auto=True,
        device=device,
    )
    return Request(cell=cell, settings=Settings(budget_s=budget_s), key="k")


def find(machine: Machine, request: Request = request()) -> Row:  # noqa: B008
    return measure_best_batch(machine, request, lambda: None)


def test_a_try_times_for_its_own_share_of_the_budget_and_the_chosen_batch_for_a_process_s() -> None:
    budgets: dict[bool, set[float]] = {True: set(), False: set()}

    class Watched(Machine):
        def __call__(self, request: Request, on_tick: Callable[[], object]) -> Row:
            budgets["validity" in request.cell.metrics].add(request.timing_budget_s)
            return super().__call__(request, on_tick)

    find(
        Watched(lambda batch: 1e-3 * batch),
        request(budget_s=30.0).model_copy(update={"process_budget_s": 10.0}),
    )
    assert budgets == {True: {10.0}, False: {3.75}}


@pytest.mark.parametrize("best", [1, 3, 7, 12, 20, 40])
def test_the_peak_of_throughput_is_found(best: int) -> None:
    """Throughput falls by a share of the distance from the best batch, on a logarithmic scale."""
    machine = Machine(lambda batch: batch / (1 / max(batch / best, best / batch)))
    row = find(machine)
    rates = {tried.batch_size: tried.throughput_img_s for tried in row.batches}
    chosen = row.cell.batch_size
    assert abs(chosen - best) <= max(1, best / 8)
    assert machine.asked[-1] == (chosen, True)
    assert row.cell.batch_auto
    assert row.key == "k"
    assert list(rates) == sorted(rates)


def test_equal_throughputs_take_the_smallest_batch() -> None:
    assert find(Machine(lambda batch: batch * 1.0)).cell.batch_size == 1


def test_a_failing_batch_bounds_the_search() -> None:
    row = find(Machine(lambda batch: 1.0, fits=11))
    assert row.cell.batch_size in (10, 11)
    assert row.status == "ok"
    assert {tried.batch_size for tried in row.batches if tried.status == "oom"} >= {12, 16}


def test_the_cpu_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda batch: 1.0)
    assert find(machine).cell.batch_size == search.CPU_IMAGES
    assert find(Machine(lambda batch: 1.0), request("cuda")).cell.batch_size == search.GPU_IMAGES


def test_a_batch_that_would_not_fit_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=40 * MIB))
    machine = Machine(lambda batch: 1.0)
    row = find(machine)
    assert max(batch for batch, _ in machine.asked) == row.cell.batch_size == 20
    skipped = [tried for tried in row.batches if tried.status == "skipped"]
    assert all("of memory, and the limit is 20.0 MiB" in (tried.reason or "") for tried in skipped)
    assert skipped[0].throughput_img_s is None


def test_a_batch_that_would_take_too_long_is_never_run() -> None:
    machine = Machine(lambda batch: 10.0 * batch**0.5)
    row = find(machine, request(budget_s=100.0))
    assert max(batch for batch, _ in machine.asked) < 20
    assert any("the search has" in (tried.reason or "") for tried in row.batches)


def test_where_nothing_fits_the_row_is_that_of_one_image() -> None:
    machine = Machine(lambda batch: 1.0, fits=0)
    row = find(machine)
    assert (row.status, row.reason, row.cell.batch_size) == ("oom", "no room", 1)
    assert row.cell.metrics == request().cell.metrics
    assert row.settings == request().settings
    assert machine.asked == [(1, False)]


def test_a_chosen_batch_that_fails_in_the_end_gives_way_to_the_next() -> None:
    row = find(Machine(lambda batch: 1.0, fits=8, final_fits=4))
    assert row.status == "ok"
    assert row.cell.batch_size == 4
    assert {tried.batch_size for tried in row.batches if tried.status == "oom"} >= {6, 8}


def session(model: str, **options: object) -> Session:
    given = {
        "models": (model,),
        "resolutions": (64,),
        "models_dirs": (FAMILIES,),
        "device": "cpu",
        "threads": 1,
    }
    more = {"batch_sizes": ("auto",), "budget_s": 1.0, "repeats": 1, "metrics": ("count", "time", "memory")}
    return start(given | more | options, out=Path("run"))


@pytest.mark.parametrize(
    ("mood", "status"),
    [("no-room-above-4", "host_oom"), pytest.param("killed-above-4", "crashed", marks=pytest.mark.slow)],
)
def test_a_model_without_room_above_4(mood: str, status: str) -> None:
    outcome = session(f"moody-{mood}").run()
    (row,) = outcome.rows
    assert row.status == "ok", row.reason
    assert row.cell.batch_size == 4
    assert {tried.batch_size: tried.status for tried in row.batches if tried.batch_size > 4}[8] == status
    assert all(tried.peak_bytes for tried in row.batches if tried.status == "ok")
    assert session(f"moody-{mood}").run().was_complete
    assert [r.cell.batch_size for r in current(read_rows(Path("run")))] == [4]


def test_a_model_that_is_slower_in_batches_runs_alone() -> None:
    (row,) = session("moody-slower-in-batches").run().rows
    assert row.status == "ok", row.reason
    assert row.cell.batch_size == 1
    assert len(row.batches) >= 2


def test_without_time_there_is_nothing_to_search_by() -> None:
    with pytest.raises(LongvisError, match="--metrics must include time"):
        session("moody-fine", metrics=("memory",))
