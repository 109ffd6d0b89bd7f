"""Latency: seconds per iteration in the steady state, as raw samples and a verdict.

One iteration runs one batch that is on the device already.  The first iteration never counts: it allocates,
picks algorithms (cuDNN's autotune, oneDNN's kernels) and fills caches.  Its duration is a column of its own,
and so is that of compiling, which happens before.  Warm-up ends when the last `WINDOW` samples show no trend;
these samples count.  Sampling stops when the 95 % interval of the median is narrow enough
(`stats.should_stop`) or the cell's budget, warm-up included, is spent.

Rows store the samples; `stats` derives the statistics when a row is read.
"""

from __future__ import annotations

from collections.abc import Callable

from longvis_bench.measure.latency.clock import Clock, Iteration
from longvis_bench.records import TimingRecord
from longvis_bench.stats import is_flat, should_stop, verdict

WINDOW = 5
"""Warm-up is over when this many samples in a row show no trend."""
WARMUP_SHARE = 0.5
"""Warm-up is cut off after this share of the budget, even if the samples still show a trend."""
PART_ITERATIONS = 5
"""Training steps whose parts are timed separately, at most."""


def measure_latency(
    iteration: Iteration,
    clock: Clock,
    *,
    budget_s: float,
    precision: float = 0.02,
    look: Callable[[], object] = lambda: None,
) -> TimingRecord:
    """Time an iteration until its median is known to `precision` or the budget is spent.

    Arguments:
        iteration: runs one batch; called at least twice, even if that exceeds the budget.
        clock: times one sample, in seconds.
        budget_s: seconds for warm-up and samples together.
        precision: wanted half-width of the median's 95 % interval, as a share of the median.
        look: reads the machine's sensors; called after the first iteration and between any two others.

    Returns:
        Warm-up and counted samples in seconds, and a verdict: `stable` (precise enough), `noisy` (budget
        spent first), or `budget` (budget spent with fewer than 6 samples).
    """
    start = clock.now()
    taken = [clock.time(iteration)]
    warm = None
    while True:
        look()
        taken.append(clock.time(iteration))
        spent = clock.now() - start
        if warm is None:
            warm = _end_of_warmup(taken, spent, budget_s)
        samples = taken[warm or 1 :]
        if warm is not None and should_stop(samples, precision):
            return _record(taken, warm, "stable")
        if spent >= budget_s:
            return _record(taken, warm or 1, verdict(samples, precision))


def _end_of_warmup(taken: list[float], spent: float, budget_s: float) -> int | None:
    """Number of leading samples that are warm-up; None while warm-up has not ended."""
    if len(taken) > WINDOW and is_flat(taken[-WINDOW:]):
        return len(taken) - WINDOW
    if spent >= WARMUP_SHARE * budget_s and len(taken) > WINDOW:
        return len(taken) - WINDOW
    return None


def _record(taken: list[float], warm: int, verdict: str) -> TimingRecord:
    return TimingRecord.model_validate(
        {"samples_s": taken[warm:], "warmup_s": taken[:warm], "verdict": verdict}
    )


def time_parts(parts: dict[str, Iteration], clock: Clock, budget_s: float) -> dict[str, tuple[float, ...]]:
    """Part -> its seconds in each of a few training steps; after the budget no further step starts."""
    start = clock.now()
    apart: list[dict[str, float]] = []
    while len(apart) < PART_ITERATIONS and (not apart or clock.now() - start < budget_s):
        apart.append({name: clock.time(part) for name, part in parts.items()})
    return {name: tuple(sample[name] for sample in apart) for name in parts}
