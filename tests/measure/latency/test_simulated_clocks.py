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
from longvis_bench.measure.latency.timing import measure_latency
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

BUDGET = 66
"""Seconds that a changing clock's budget pays for; an iteration takes 1 s before the change."""
NEVER = 1e-9
"""A precision out of reach: the whole budget is measured."""


def rising(by: float) -> Shape:
    """By a share an iteration."""
    return lambda i: 1 + by * i


def settling(by: float, over: float) -> Shape:
    return lambda i: 1 + by * (1 - math.exp(-i / over))


def throttled(by: float, at: int) -> Shape:
    return lambda i: 1 + by if i >= at else 1.0


def freed(by: float, at: int) -> Shape:
    return lambda i: 1 + by if i < at else 1.0


CHANGING: dict[str, tuple[Shape, float, float]] = {
    "rises 1 % an iteration, noise 0.5 %": (rising(0.01), 0.005, PRECISION),
    "rises 1 % an iteration, noise 1 %": (rising(0.01), 0.01, PRECISION),
    "rises 1 % an iteration, noise 2 %": (rising(0.01), 0.02, PRECISION),
    "rises 2 % an iteration, noise 5 %": (rising(0.02), 0.05, PRECISION),
    "heats up by 20 %, noise 2 %": (settling(0.2, 10), 0.02, PRECISION),
    "throttled 10 % at 7, noise 1 %": (throttled(0.1, 7), 0.01, PRECISION),
    "throttled 10 % at 8, noise 1 %": (throttled(0.1, 8), 0.01, PRECISION),
    "throttled 10 % at 8, noise 2 %": (throttled(0.1, 8), 0.02, PRECISION),
    "throttled 30 % at 8, noise 3 %": (throttled(0.3, 8), 0.03, PRECISION),
    "freed 10 % at 8, noise 1 %": (freed(0.1, 8), 0.01, PRECISION),
    "rises 5 % over the budget, noise 1 %": (rising(0.05 / 60), 0.01, NEVER),
    "rises 5 % over the budget, noise 2 %": (rising(0.05 / 60), 0.02, NEVER),
    "rises 10 % over the budget, noise 3 %": (rising(0.1 / 60), 0.03, NEVER),
    "throttled 5 % at 10, noise 1 %": (throttled(0.05, 10), 0.01, NEVER),
    "throttled 5 % at 30, noise 2 %": (throttled(0.05, 30), 0.02, NEVER),
    "throttled 10 % at 20, noise 3 %": (throttled(0.1, 20), 0.03, NEVER),
    "throttled 10 % at 50, noise 3 %": (throttled(0.1, 50), 0.03, NEVER),
    "throttled 10 % at 30, noise 5 %": (throttled(0.1, 30), 0.05, NEVER),
    "freed 5 % at 30, noise 2 %": (freed(0.05, 30), 0.02, NEVER),
}
"""Clock -> noise-free durations, the spread of its log-normal noise, and the precision asked for.

With the stop rule on, a clock changes while even the shortest measurement, of 8 counted samples, is running:
a measurement that ends before the change has nothing to tell of it.  Slow drifts and late changes are looked
at over the whole budget."""


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


def measured(sample: Callable[[int], float], budget_s: float, precision: float = PRECISION) -> TimingRecord:
    return measure_latency(lambda: None, SimulatedClock(sample), budget_s=budget_s, precision=precision)


def names_drift(record: TimingRecord) -> bool:
    return stats.drift(record.samples_s) is not None


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


def changing_rate(clock: str, *, trials: int) -> float:
    """Share of all trials that name the change."""
    shape, noise, precision = CHANGING[clock]
    rng = random.Random(SEED)
    named = 0
    for _ in range(trials):
        record = measured(lambda i: shape(i) * math.exp(rng.gauss(0, noise)), BUDGET, precision)
        named += names_drift(record)
    return named / trials


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


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("clock", CHANGING)
def test_drifting_and_throttled_clocks_are_named(clock: str, trials: int) -> None:
    share = changing_rate(clock, trials=trials)
    print(f"\n{clock}: named in {share:.3f} of {trials} trials")
    assert share >= 0.95 - slack(0.95, trials)


@pytest.mark.parametrize(
    ("trials", "tolerance"), [(2000, 0.3), pytest.param(40_000, 0.05, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("n", [8, 12, 27, 62])
def test_the_limits_of_steps_are_those_of_random_orders(n: int, trials: int, tolerance: float) -> None:
    rng = random.Random(n)
    heights = sorted(stats.largest_step([rng.random() for _ in range(n)])[1] for _ in range(trials))
    for limit, alpha in zip(stats.STEP_LIMITS[n], (stats.DRIFT_ALPHA, stats.SUSPICION_ALPHA), strict=True):
        assert limit == pytest.approx(heights[math.ceil((1 - alpha) * trials) - 1], abs=tolerance)
