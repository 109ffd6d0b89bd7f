"""Statistics against what is known of them: identities, published tables, and simulated clocks."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvis_bench import stats

Draw = Callable[[random.Random], float]
seconds = st.floats(1e-6, 1e3)
samples = st.lists(seconds, min_size=1, max_size=60)


def test_median() -> None:
    assert stats.median([3.0, 1.0, 2.0]) == 2.0
    assert stats.median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert stats.median([]) is None


@pytest.mark.parametrize(
    ("n", "rank"), [(5, 0), (6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (50, 18), (100, 40)]
)
def test_ranks_are_those_of_printed_tables(n: int, rank: int) -> None:
    # David and Nagaraja, Order Statistics, and every table of the sign test at 5 %.
    interval = stats.median_interval([float(i) for i in range(1, n + 1)])
    assert interval == ((rank, n + 1 - rank) if rank else None)


def test_median_interval_for_many_samples_stays_exact() -> None:
    interval = stats.median_interval([float(i) for i in range(10_000)])
    assert interval is not None
    assert interval.low == pytest.approx(4999.5 - 1.96 * 50, abs=2)
    assert interval.low + interval.high == 9999


@given(samples)
def test_the_median_lies_in_its_interval(values: list[float]) -> None:
    interval = stats.median_interval(values)
    middle = stats.median(values)
    assert middle is not None
    assert (interval is None) == (len(values) < 6)
    if interval is not None:
        assert min(values) <= interval.low <= middle <= interval.high <= max(values)


@given(samples, st.floats(0.1, 10))
def test_intervals_do_not_depend_on_order_and_scale_with_the_unit(values: list[float], factor: float) -> None:
    one, other = stats.median_interval(values), stats.median_interval([factor * v for v in reversed(values)])
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert other == pytest.approx((factor * one.low, factor * one.high))


@given(samples)
def test_a_stricter_interval_is_no_narrower(values: list[float]) -> None:
    loose, strict = stats.median_interval(values, 0.9), stats.median_interval(values, 0.99)
    if strict is not None:
        assert loose is not None
        assert strict.low <= loose.low <= loose.high <= strict.high


@pytest.mark.parametrize(("q", "needed"), [(0.5, 5), (0.9, 29), (0.99, 299), (0.1, 29)])
def test_quantiles_need_samples_enough(q: float, needed: int) -> None:
    # 29 and 299 are Wilks' numbers for 95 % / 90 % and 95 % / 99 %.
    assert stats.quantile([1.0] * (needed - 1), q) is None
    assert stats.quantile([1.0] * needed, q) == 1.0


def test_quantile_interpolates() -> None:
    assert stats.quantile([float(i) for i in range(101)], 0.9) == 90.0
    assert stats.quantile([float(i) for i in range(30)], 0.9) == pytest.approx(26.1)
    assert stats.quantile([], 0.9) is None


def test_relative_half_width() -> None:
    assert stats.relative_half_width([1.0] * 5) is None
    assert stats.relative_half_width([0.9, 1.0, 1.0, 1.0, 1.0, 1.1]) == pytest.approx(0.1)
    assert stats.relative_half_width([0.0] * 6) == 0.0
    assert stats.relative_half_width([0.0] * 5 + [1.0]) is None


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson_against_newcombe_1998_and_exact_ends(successes: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_share_and_stays_within_0_and_1(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    interval = stats.wilson(successes, n)
    assert interval is not None
    assert 0 <= interval.low <= successes / n <= interval.high <= 1
    assert interval.low < interval.high


def test_wilson_of_nothing() -> None:
    assert stats.wilson(0, 0) is None


@given(st.floats(-3, 5), st.floats(1e-3, 1e3), st.lists(st.sampled_from([256, 512, 1024, 4096]), min_size=1))
def test_growth_recovers_a_power_law(exponent: float, factor: float, sizes: list[int]) -> None:
    growth = stats.growth_exponent(sizes, [factor * size**exponent for size in sizes])
    if len(set(sizes)) < 2:
        assert growth is None
        return
    assert growth is not None
    assert growth.exponent == pytest.approx(exponent, abs=1e-6)
    assert growth.factor == pytest.approx(factor, rel=1e-4)
    assert growth.points == len(sizes)
    assert (growth.error is None) == (len(sizes) == 2)


def test_growth_of_scattered_points_has_an_error() -> None:
    growth = stats.growth_exponent([256, 512, 1024], [1.0, 5.0, 16.0])
    assert growth is not None
    assert growth.exponent == pytest.approx(2.0)
    assert growth.error == pytest.approx((math.log2(5) - 2) / math.sqrt(3))


def test_pareto_front() -> None:
    assert stats.pareto_front([]) == []
    assert stats.pareto_front([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8), (4, 0.9)]) == [0, 2]
    assert stats.pareto_front([(1, 0.5), (1, 0.5)]) == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_the_front_is_exactly_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beaten(p: tuple[int, int]) -> bool:
        return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

    front = stats.pareto_front(points)
    assert sorted(front) == [i for i, p in enumerate(points) if not beaten(p)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


# Simulated clocks --------------------------------------------------------------------------------------


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


CLOCKS: dict[str, tuple[Draw, float | None]] = {
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


def measure(draw: Draw, rng: random.Random, budget: int) -> list[float]:
    taken: list[float] = []
    while len(taken) < budget and not stats.should_stop(taken, 0.02):
        taken.append(draw(rng))
    return taken


def coverage(draw: Draw, truth: float | None, *, trials: int, budget: int) -> float:
    rng = random.Random(20251121)
    if truth is None:
        truth = stats.median([draw(rng) for _ in range(400_000)])
        assert truth is not None
    covered = 0
    for _ in range(trials):
        interval = stats.median_interval(measure(draw, rng, budget))
        covered += interval is not None and interval.low <= truth <= interval.high
    return covered / trials


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_interval_covers_the_median_under_the_stop_rule(clock: str) -> None:
    # 200 trials: 92 % less three standard errors; the slow form has the real bound.
    assert coverage(*CLOCKS[clock], trials=200, budget=60) >= 0.92 - 3 * math.sqrt(0.92 * 0.08 / 200)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [40, 300])
@pytest.mark.parametrize("clock", CLOCKS)
def test_the_interval_covers_the_median_in_2000_trials(clock: str, budget: int) -> None:
    assert coverage(*CLOCKS[clock], trials=2000, budget=budget) >= 0.92


def test_a_constant_clock_stops_at_once_and_is_always_covered() -> None:
    taken = measure(lambda _: 0.125, random.Random(0), 100)
    assert len(taken) == stats.FIRST_CHECK
    assert stats.median_interval(taken) == (0.125, 0.125)


def test_the_rule_looks_at_growing_counts_only() -> None:
    looks = [n for n in range(200) if stats.should_stop([1.0] * n, 0.02)]
    assert looks == [8, 12, 18, 27, 41, 62, 93, 140]


def test_a_clock_with_two_equal_modes_does_not_stop_in_one_of_them() -> None:
    inside = [1.0] * 20 + [1.3] * 7
    assert stats.relative_half_width(inside) == 0.0
    assert not stats.is_precise(inside, 0.02)


@given(samples, st.floats(0.001, 0.5))
def test_a_stop_keeps_its_word(values: list[float], precision: float) -> None:
    if stats.should_stop(values, precision):
        width = stats.relative_half_width(values)
        assert width is not None
        assert width <= precision * (1 + 1e-9)


# Trends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "flat"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], True),
        ([1.01, 0.99, 1.0, 1.02, 0.98], True),
        ([1.004, 1.003, 1.002, 1.001, 1.0], True),  # a trend, but a small one
        ([2.0, 1.5, 1.2, 1.1, 1.05], False),
        ([1.0, 1.05, 1.1, 1.2, 1.3], False),
        ([3.0, 1.0, 1.01, 0.99, 1.0], False),  # a slow first sample is warm-up
        ([1.0, 1.0, 3.0, 1.0, 1.0], True),  # a neighbour, not a trend
        ([1.0, 1.0], False),
        ([0.0, 0.0, 0.0], True),
    ],
)
def test_is_flat(window: list[float], flat: bool) -> None:
    assert stats.is_flat(window) is flat


def share_of_drift(draw: Callable[[random.Random, float], float], *, n: int, trials: int) -> float:
    rng = random.Random(7)
    runs = ([draw(rng, i / (n - 1)) for i in range(n)] for _ in range(trials))
    return sum(stats.drift(run) is not None for run in runs) / trials


DRIFTING: dict[str, Callable[[random.Random, float], float]] = {
    "slow rise of 10 %": lambda rng, t: (1 + 0.1 * t) * math.exp(rng.gauss(0, 0.02)),
    "throttled by 30 % at half": lambda rng, t: (1.3 if t > 0.5 else 1.0) * math.exp(rng.gauss(0, 0.03)),
    "throttled by 20 % at three quarters": lambda rng, t: (
        (1.2 if t > 0.75 else 1) * math.exp(rng.gauss(0, 0.03))
    ),
    "faster by 10 % after a quarter": lambda rng, t: (1.1 if t < 0.25 else 1) * math.exp(rng.gauss(0, 0.02)),
}


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [30, 120])
@pytest.mark.parametrize("clock", DRIFTING)
def test_drifting_and_throttled_clocks_are_named(clock: str, n: int, trials: int) -> None:
    assert share_of_drift(DRIFTING[clock], n=n, trials=trials) >= 0.95


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [8, 30, 120])
@pytest.mark.parametrize("clock", CLOCKS)
def test_stationary_clocks_are_not(clock: str, n: int, trials: int) -> None:
    draw = CLOCKS[clock][0]
    assert share_of_drift(lambda rng, _: draw(rng), n=n, trials=trials) <= 0.05


def test_drift_says_how_much_and_which_way() -> None:
    change = stats.drift([1.0] * 20 + [1.3] * 20)
    assert change == pytest.approx(0.3)
    change = stats.drift([1.3] * 30 + [1.0] * 10)
    assert change == pytest.approx(1 / 1.3 - 1)
    assert stats.drift([1.0] * 20 + [1.01] * 20) is None  # too small to matter
    assert stats.drift([1.0, 2.0, 3.0]) is None  # too few to tell
    assert stats.drift([]) is None


def test_drift_of_a_long_sample_is_quick_and_the_same() -> None:
    rng = random.Random(1)
    long = [(1 + 0.1 * i / 50_000) * math.exp(rng.gauss(0, 0.05)) for i in range(50_000)]
    assert stats.drift(long) == pytest.approx(0.05, abs=0.02)


@given(samples)
def test_trend_tests_are_total_and_blind_to_the_unit(values: list[float]) -> None:
    assert stats.is_flat(values) in (True, False)
    found = stats.drift(values)
    assert found is None or abs(found) >= stats.DRIFT_TOLERANCE
    doubled = stats.drift([2 * v for v in values])
    assert doubled == found
