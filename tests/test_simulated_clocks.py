"""Whole measurements on clocks whose truth is known: coverage of the interval, naming of drifts.

Every trial is a `measure_latency` with warm-up detection and stop rule on.  Seeds are fixed.  By default 200
trials a clock, with bounds three binomial standard errors looser than the requirement (a sound harness fails
one in 700 such tests, a seed that passed passes again); `make deep` runs 2,000 trials against the requirement
itself, and `pytest -m slow -s tests/test_simulated_clocks.py` prints the rates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from longvis_bench import stats
from longvis_bench.measure.timing import measure_latency
from longvis_bench.quality import notes_for
from longvis_bench.records import TimingRecord

Draw = Callable[[random.Random], float]
Shape = Callable[[int], float]
"""Noise-free duration of the i-th iteration."""

PRECISION = 0.02
SEED = 20251121


def log_normal(spread: float) -> Draw:
    return lambda rng: math.exp(rng.gauss(0, spread))


def bimodal(share: float, gap: float) -> Draw:
    return lambda rng: (1.0 if rng.random() < share else 1 + gap) * math.exp(rng.gauss(0, 0.01))


def cauchy(rng: random.Random) -> float:
    return 1 + 0.05 * abs(math.tan(math.pi * (rng.random() - 0.5)))


def pareto(rng: random.Random) -> float:
    return 1 + 0.05 * (rng.paretovariate(1.1) - 1)


def spikes(rng: random.Random) -> float:
    return math.exp(rng.gauss(0, 0.03)) * (1 + 10 * rng.random() if rng.random() < 0.1 else 1)


STATIONARY: dict[str, tuple[Draw, float | None]] = {
    "constant": (lambda _: 0.125, 0.125),
    "log-normal 2 %": (log_normal(0.02), 1.0),
    "log-normal 5 %": (log_normal(0.05), 1.0),
    "log-normal 10 %": (log_normal(0.1), 1.0),
    "two equal modes": (bimodal(0.5, 0.3), 1.15),
    "two equal modes, near": (bimodal(0.5, 0.1), 1.05),
    "modes 60:40": (bimodal(0.6, 0.3), None),
    "modes 70:30": (bimodal(0.7, 0.3), None),
    "Cauchy": (cauchy, 1.05),
    "Pareto": (pareto, 1 + 0.05 * (2 ** (1 / 1.1) - 1)),
    "spikes": (spikes, None),
}
"""Clock -> one sample, and its true median; None where only many samples tell it."""

BUDGET = 60
"""Iterations of a drifting clock that its budget pays for."""


def rising(by: float) -> Shape:
    return lambda i: 1 + by * i / BUDGET


def settling(by: float, over: float) -> Shape:
    return lambda i: 1 + by * (1 - math.exp(-i / over))


def throttled(by: float, at: int) -> Shape:
    return lambda i: 1 + by if i >= at else 1.0


CHANGING: dict[str, tuple[Shape, float]] = {
    "rises 20 %, noise 2 %": (rising(0.2), 0.02),
    "rises 30 %, noise 1 %": (rising(0.3), 0.01),
    "rises 30 %, noise 5 %": (rising(0.3), 0.05),
    "heats up by 20 %, noise 2 %": (settling(0.2, 10), 0.02),
    "throttled 30 % at 6, noise 3 %": (throttled(0.3, 6), 0.03),
    "throttled 30 % at 8, noise 1 %": (throttled(0.3, 8), 0.01),
    "throttled 20 % at 10, noise 2 %": (throttled(0.2, 10), 0.02),
    "throttled 30 % at 20, noise 3 %": (throttled(0.3, 20), 0.03),
    "throttled 30 % at 30, noise 5 %": (throttled(0.3, 30), 0.05),
    "throttled 50 % at 45, noise 5 %": (throttled(0.5, 45), 0.05),
    "freed 20 % at 12, noise 2 %": (lambda i: 1.2 if i < 12 else 1.0, 0.02),
}
"""Clock -> noise-free durations, and the spread of its log-normal noise."""
CHANGE = 0.05
"""A measurement counts as one of a changing clock where the noise-free duration changed this much in it."""


class SimulatedClock:
    """Samples of a function of the iteration's number; their seconds are what elapses."""

    def __init__(self, sample: Callable[[int], float]) -> None:
        self._sample = sample
        self._calls = 0
        self._elapsed = 0.0

    def time(self, iteration: Callable[[], object]) -> float:
        seconds = self._sample(self._calls)
        self._calls += 1
        self._elapsed += seconds
        return seconds

    def now(self) -> float:
        return self._elapsed


def measured(sample: Callable[[int], float], budget_s: float) -> TimingRecord:
    return measure_latency(lambda: None, SimulatedClock(sample), budget_s=budget_s, precision=PRECISION)


def names_drift(record: TimingRecord) -> bool:
    notes = notes_for(samples_s=record.samples_s, precision=PRECISION)
    return "drift" in {note.code for note in notes}


class Rates(NamedTuple):
    covered: float
    """Share of trials whose 95 % interval holds the true median."""
    drifting: float
    """Share of trials with the warning `drift`."""
    samples: float
    """Counted samples a trial."""


def stationary_rates(clock: str, *, trials: int, budget: int) -> Rates:
    draw, truth = STATIONARY[clock]
    rng = random.Random(SEED)
    if truth is None:
        truth = stats.median([draw(rng) for _ in range(400_000)])
        assert truth is not None
    covered = drifting = samples = 0
    for _ in range(trials):
        record = measured(lambda _: draw(rng), budget * truth)
        interval = stats.median_interval(record.samples_s)
        covered += interval is not None and interval.low <= truth <= interval.high
        drifting += names_drift(record)
        samples += len(record.samples_s)
    return Rates(covered / trials, drifting / trials, samples / trials)


def true_change(shape: Shape, record: TimingRecord) -> float:
    """Largest noise-free change between two parts of the counted samples, of at least 3 samples each."""
    warm, n = len(record.warmup_s), len(record.samples_s)
    clean = [shape(i) for i in range(warm, warm + n)]
    changes = [0.0]
    for at in range(3, n - 2):
        before, after = stats.median(clean[:at]), stats.median(clean[at:])
        assert before is not None
        assert after is not None
        changes.append(abs(after / before - 1))
    return max(changes)


def changing_rate(clock: str, *, trials: int) -> tuple[float, int]:
    """Share of the measurements in which the clock changed that name it, and how many those are."""
    shape, noise = CHANGING[clock]
    rng = random.Random(SEED)
    named = changed = 0
    for _ in range(trials):
        record = measured(lambda i: shape(i) * math.exp(rng.gauss(0, noise)), BUDGET * 1.1)
        if true_change(shape, record) >= CHANGE:
            changed += 1
            named += names_drift(record)
    return (named / changed if changed else 1.0), changed


def slack(share: float, trials: int) -> float:
    """Three standard errors of a share; none for the full number of trials."""
    return 0.0 if trials >= 2000 else 3 * math.sqrt(share * (1 - share) / trials)


TRIALS = [200, pytest.param(2000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("budget", [40, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("clock", STATIONARY)
def test_a_stationary_clock_is_covered_and_not_called_drifting(clock: str, budget: int, trials: int) -> None:
    rates = stationary_rates(clock, trials=trials, budget=budget)
    print(
        f"\n{clock}, {budget} iterations, {trials} trials: covered {rates.covered:.3f}, "
        f"called drifting {rates.drifting:.3f}, {rates.samples:.0f} samples"
    )
    wanted = 1.0 if clock == "constant" else 0.92
    assert rates.covered >= wanted - slack(wanted, trials)
    assert rates.drifting <= 0.05 + slack(0.05, trials)


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("clock", CHANGING)
def test_drifting_and_throttled_clocks_are_named(clock: str, trials: int) -> None:
    share, changed = changing_rate(clock, trials=trials)
    print(f"\n{clock}: changed in {changed} of {trials} trials, named in {share:.3f} of them")
    assert changed >= trials / 10
    assert share >= 0.95 - slack(0.95, changed)


@pytest.mark.parametrize(
    ("trials", "tolerance"), [(2000, 0.3), pytest.param(40_000, 0.05, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("n", [8, 12, 27, 62])
def test_the_limits_of_steps_are_those_of_random_orders(n: int, trials: int, tolerance: float) -> None:
    rng = random.Random(n)
    heights = sorted(stats._step([rng.random() for _ in range(n)])[1] for _ in range(trials))
    for limit, alpha in zip(stats.STEP_LIMITS[n], (stats.DRIFT_ALPHA, stats.SUSPICION_ALPHA), strict=True):
        assert limit == pytest.approx(heights[math.ceil((1 - alpha) * trials) - 1], abs=tolerance)
