"""`--batch auto`: find the batch size with the highest throughput that fits into memory.

The search doubles the batch size, then refines it.  Each batch size is tried in a fresh process, and the
chosen one is measured in another: a try that runs out of memory ends no other, and no try inherits
another's memory.  Doubling stops when a batch fails, when throughput has fallen twice, or at a limit: on a
CPU 64 images and half of the free memory (or `--memory-limit`), extrapolated from earlier tries; on every
device two timing budgets.  Refining tries the middle between the best batch and its neighbours.
Throughputs that differ by less than `--precision` count as equal, and the smallest such batch wins.  The
row keeps all tries.
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
"""Share of the memory that is free when the search starts."""
TRY_SHARE = 0.125
"""Share of the cell's timing budget that one try may use."""
SEARCH_BUDGETS = 2.0
"""Timing budgets that all tries together may use."""
TRY_ITERATIONS = 6
"""Iterations of a try at least, with those for peak and workspace; used to predict its time."""
WORSE = 0.95
"""Throughput below this share of the best counts as fallen."""
REFINEMENTS = 4


def measure_best_batch(run: Run, request: Request, on_tick: Callable[[], object]) -> Row:
    """Measure a cell at the batch size with the highest throughput.

    Arguments:
        run: measures one cell in a fresh process (`Runner.run`).
        request: of a cell with `batch_auto`; the search starts at its batch size.
        on_tick: passed on to `run`.

    Returns:
        The row of the chosen batch size, or of the smallest where not even that one runs; with all tries.
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
        """Double the batch size until a batch fails or throughput has fallen twice."""
        batch, fallen = self._request.cell.batch_size, 0
        while self.tries[batch].status == "ok" and fallen < 2 and 2 * batch <= self._images:
            batch *= 2
            self._try(batch)
            best = max(self._rates().values(), default=0.0)
            fallen = fallen + 1 if self._rates().get(batch, 0.0) < WORSE * best else 0

    def refine(self) -> None:
        """Try the middles between the best batch size and its neighbours until these are near."""
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
        """The smallest batch size as good as the best within the precision; None where none ran."""
        rates = self._rates()
        if not rates:
            return None
        enough = max(rates.values()) * (1 - self._request.settings.precision)
        return min(batch for batch, rate in rates.items() if rate >= enough)

    def keep(self, row: Row, batch: int) -> None:
        """Store the result of a batch size; a later row replaces an earlier one."""
        self.tries[batch] = BatchTry(
            batch_size=batch,
            status=row.status,
            reason=row.reason,
            throughput_img_s=_rate(row, batch),
            peak_bytes=row.memory.peak_bytes if row.memory else None,
        )
        self._end = monotonic()

    def complete(self, row: Row) -> Row:
        """Add the tries and the seconds of the search to a row."""
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
        """Measure time and memory; the first try also counts: where it fails, its row is the cell's."""
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
        """Why a batch size is not tried; None where it is."""
        peak, seconds = self._predicted_peak(batch), self._predicted_seconds(batch)
        if self._memory is not None and peak is not None and peak > self._memory:
            return f"needs about {units.size(peak)} of memory, and the limit is {units.size(self._memory)}"
        left = SEARCH_BUDGETS * self._request.settings.budget_s - self._timed_s
        if seconds > left:
            return (
                f"needs about {units.seconds(seconds)}, and the search has {units.seconds(max(0, left))} left"
            )
        return None

    def _predicted_peak(self, batch: int) -> float | None:
        """Extrapolated linearly from the two largest batches that ran, in bytes."""
        known = [(b, t.peak_bytes) for b, t in sorted(self.tries.items()) if t.peak_bytes is not None]
        if not known:
            return None
        (b1, p1), (b2, p2) = known[-2] if len(known) > 1 else (0, 0), known[-1]
        return p2 + (batch - b2) * max(0, p2 - p1) / (b2 - b1)

    def _predicted_seconds(self, batch: int) -> float:
        rates = self._rates()
        return TRY_ITERATIONS * batch / rates[max(rates)] if rates else 0.0

    def _rates(self) -> dict[int, float]:
        """Batch size -> images per second, of those that ran."""
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
