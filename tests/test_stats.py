"""Statistics against what is known of them: identities and published tables; `test_simulated_clocks.py` has
whole measurements."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvis_bench import stats

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


def test_the_rule_goes_on_where_a_drift_is_suspected() -> None:
    rising = [1 + 0.003 * i for i in range(8)]  # sure, but too small to matter
    suspect = [1.0, 1.0, 1.0, 1.0, 1.0, 1.025, 1.025, 1.025]
    assert stats.is_precise(suspect, 0.02)
    assert stats.drift(suspect) is None
    assert not stats.should_stop(suspect, 0.02)
    assert stats.should_stop(rising, 0.02)


@pytest.mark.parametrize(("n", "stops"), [(8, False), (12, False), (18, True)])
def test_a_suspicion_prolongs_a_measurement_by_two_looks_at_most(n: int, stops: bool) -> None:
    samples = [1.0, 1.004] * n
    suspect = [*samples[: n - 3], 1.025, 1.026, 1.027]
    assert stats.is_precise(suspect, 0.02)
    assert stats.is_suspect(suspect)
    assert stats.should_stop(suspect, 0.02) == stops


def test_a_step_near_an_end_is_found() -> None:
    rng = random.Random(3)
    late = [math.exp(rng.gauss(0, 0.03)) * (1.3 if i >= 23 else 1) for i in range(27)]
    assert stats.drift(late) == pytest.approx(0.3, abs=0.06)


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


# Verdicts -----------------------------------------------------------------------------------------------


def test_a_verdict_is_that_of_the_interval_that_tables_show() -> None:
    """Outliers on either side widen the stop rule's guard, but not the 95 % interval."""
    samples = [1.0] * 7 + [1.01] * 7 + [1.3, 0.7] * 13
    width = stats.relative_half_width(samples)
    assert width is not None
    assert width < 0.02
    assert not stats.is_precise(samples, 0.02)
    assert stats.verdict(samples, 0.02) == "stable"
    assert stats.verdict(samples, width * 0.99) == "noisy"
    assert stats.verdict([1.0] * 5, 0.02) == "budget"
    assert stats.verdict([0.0, 1.0] * 3 + [0.0], 0.02) == "noisy"


@given(st.lists(st.integers(0, 9).map(float), max_size=40))
def test_trends_count_pairs_as_the_definition_does(samples: list[float]) -> None:
    pairs = [(a, b) for place, a in enumerate(samples) for b in samples[place + 1 :]]
    assert stats.concordance(samples) == sum((b > a) - (b < a) for a, b in pairs)
