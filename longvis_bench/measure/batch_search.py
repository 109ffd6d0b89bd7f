"""`--batch auto`: the batch of best throughput within memory, found by doubling, then refining.

Every batch is tried in a process of its own, so that one that does not fit costs only itself and no try's
memory is that of another; so is the measurement of the chosen one.  Doubling ends where a batch fails, where
throughput has fallen twice, or at a limit: on a CPU 64 images and half of the free memory (or what
`--memory-limit` allows), judged by
the tries before; on every device the time of two budgets.  Refining tries the middle between the best batch
and its neighbours.  Throughputs that differ by less than the precision asked for count as equal, and the
smallest such batch wins.  Every try stays in the row.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from longvis_bench import units
from longvis_bench.records import BatchTry, Request, Row
from longvis_bench.stats import median

Run = Callable[[Request, Callable[[], object]], Row]

CPU_IMAGES = 64
"""Largest batch tried on a CPU."""
GPU_IMAGES = 4096
CPU_MEMORY_SHARE = 0.5
"""Of the memory that is free when the search begins."""
TRY_SHARE = 0.125
"""Of the cell's budget: what one try may time."""
SEARCH_BUDGETS = 2.0
"""Budgets that all tries together may time."""
TRY_ITERATIONS = 6
"""Iterations a try takes at least, peak and workspace included; to foresee its time."""
WORSE = 0.95
"""Throughput below this share of the best has fallen."""
REFINEMENTS = 4


def measure_best_batch(run: Run, request: Request, on_tick: Callable[[], object]) -> Row:
    """Measure a cell at the batch that suits it best.

    Arguments:
        run: measures one cell in a process of its own (`Runner.run`).
        request: of a cell with `batch_auto`; its batch is where the search starts.
        on_tick: passed on.

    Returns:
        The row of the chosen batch, or of the smallest where not even that could be measured; with all tries.
    """
    search = _Search(run, request, on_tick)
    search.double()
    search.refine()
    while (best := search.best()) is not None:
        row = run(_at(request, best), on_tick)
        if row.status not in ("oom", "host_oom"):
            return search.complete(row)
        search.keep(row, best)
    return search.complete(search.first)


def _at(request: Request, batch: int) -> Request:
    return request.model_copy(update={"cell": request.cell.model_copy(update={"batch_size": batch})})


class _Search:
    """The tries so far."""

    def __init__(self, run: Run, request: Request, on_tick: Callable[[], object]) -> None:
        self._run, self._request, self._tick = run, request, on_tick
        self._start, self._end, self._timed_s = monotonic(), 0.0, 0.0
        on_cpu = request.cell.device == "cpu"
        self._images = CPU_IMAGES if on_cpu else GPU_IMAGES
        free = request.settings.memory_limit_bytes or CPU_MEMORY_SHARE * _free_memory()
        self._memory = free if on_cpu else None
        self.tries: dict[int, BatchTry] = {}
        self.first = self._measure(request.cell.batch_size)

    def double(self) -> None:
        """Twice the batch until it fails or is no longer worth it."""
        batch, fallen = self._request.cell.batch_size, 0
        while self.tries[batch].status == "ok" and fallen < 2 and 2 * batch <= self._images:
            batch *= 2
            self._try(batch)
            best = max(self._rates().values(), default=0.0)
            fallen = fallen + 1 if self._rates().get(batch, 0.0) < WORSE * best else 0

    def refine(self) -> None:
        """The middles between the best batch and its neighbours, until those are near."""
        for _ in range(REFINEMENTS):
            best = self.best()
            if best is None:
                return
            below = max((b for b in self.tries if b < best), default=best)
            above = min((b for b in self.tries if b > best), default=best)
            near = max(1, best // 8)
            middles = [(best + other) // 2 for other in (below, above) if abs(other - best) > near]
            for middle in middles:
                self._try(middle)
            if not middles:
                return

    def best(self) -> int | None:
        """The smallest batch as good as the best; None where none ran."""
        rates = self._rates()
        if not rates:
            return None
        enough = max(rates.values()) * (1 - self._request.settings.precision)
        return min(batch for batch, rate in rates.items() if rate >= enough)

    def keep(self, row: Row, batch: int) -> None:
        """Keep what became of a batch; a later row of it replaces an earlier one."""
        self.tries[batch] = BatchTry(
            batch_size=batch,
            status=row.status,
            reason=row.reason,
            throughput_img_s=_rate(row, batch),
            peak_bytes=row.memory.peak_bytes if row.memory else None,
        )
        self._end = monotonic()

    def complete(self, row: Row) -> Row:
        """A row as the sweep stores it."""
        spent = {**row.overhead_s, "search": self._end - self._start}
        tries = tuple(self.tries[batch] for batch in sorted(self.tries))
        return row.model_copy(update={"batches": tries, "overhead_s": spent})

    def _try(self, batch: int) -> None:
        reason = self._limit(batch)
        if reason is None:
            self._measure(batch)
        else:
            self.tries[batch] = BatchTry(batch_size=batch, status="skipped", reason=reason)

    def _measure(self, batch: int) -> Row:
        """Time and memory; the first try also counts, because its row is the cell's where it fails."""
        request, cell = self._request, self._request.cell
        counts = "count" in cell.metrics and not self.tries
        settings = request.settings.model_copy(update={"budget_s": TRY_SHARE * request.settings.budget_s})
        metrics = ("count", "time", "memory") if counts else ("time", "memory")
        tried = cell.model_copy(update={"batch_size": batch, "metrics": metrics})
        row = self._run(request.model_copy(update={"cell": tried, "settings": settings}), self._tick)
        self.keep(row, batch)
        if row.timing is not None:
            self._timed_s += sum(row.timing.warmup_s) + sum(row.timing.samples_s)
        return row.model_copy(
            update={
                "cell": cell.model_copy(update={"batch_size": batch}),
                "settings": request.settings,
            }
        )

    def _limit(self, batch: int) -> str | None:
        """Why a batch is not tried."""
        peak, seconds = self._foreseen_peak(batch), self._foreseen_seconds(batch)
        if self._memory is not None and peak is not None and peak > self._memory:
            return f"would take about {units.size(peak)} of memory, limit {units.size(self._memory)}"
        left = SEARCH_BUDGETS * self._request.settings.budget_s - self._timed_s
        if seconds > left:
            return (
                f"would take about {units.seconds(seconds)}, and the search has {units.seconds(max(0, left))}"
            )
        return None

    def _foreseen_peak(self, batch: int) -> float | None:
        """By the straight line through the two largest batches that ran."""
        known = [(b, t.peak_bytes) for b, t in sorted(self.tries.items()) if t.peak_bytes is not None]
        if not known:
            return None
        (b1, p1), (b2, p2) = known[-2] if len(known) > 1 else (0, 0), known[-1]
        return p2 + (batch - b2) * max(0, p2 - p1) / (b2 - b1)

    def _foreseen_seconds(self, batch: int) -> float:
        rates = self._rates()
        return TRY_ITERATIONS * batch / rates[max(rates)] if rates else 0.0

    def _rates(self) -> dict[int, float]:
        """Batch -> images per second, of those that ran."""
        return {
            batch: tried.throughput_img_s
            for batch, tried in self.tries.items()
            if tried.status == "ok" and tried.throughput_img_s is not None
        }


def _rate(row: Row, batch: int) -> float | None:
    latency = median(row.timing.samples_s) if row.timing else None
    return batch / latency if latency else None


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
