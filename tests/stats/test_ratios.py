"""Ratios of latencies: by hand, and their error rates by simulation."""

from __future__ import annotations

import math
import random

import pytest

from longvis_bench import stats
from longvis_bench.stats.ratios import USUAL_SPREAD, holm, ratio, student_p

OVER_TIME, BETWEEN, WITHIN = 0.0319, 0.0438, 0.0376
"""Standard deviations of log latencies over rounds, between and within processes, on a 2-core Xeon
(results/reference/intel-xeon-2c/latency-factors/variance.csv: over time, and "addresses not randomised")."""


def measured(
    rng: random.Random, latency: float, between: float, within: float, drift: float
) -> list[list[float]]:
    """Samples of one run, with as many processes as the harness takes for a precision of 2 %."""
    processes: list[list[float]] = []
    while len(processes) < 12:
        centre = latency * math.exp(rng.gauss(0, drift) + rng.gauss(0, between))
        processes.append([centre * math.exp(rng.gauss(0, within)) for _ in range(25)])
        width = stats.half_width(stats.process_interval(processes), stats.across_processes(processes))
        if len(processes) >= 3 and width is not None and width <= 0.02:
            break
    return processes


def share_called_different(true: float, trials: int, *noise: float) -> float:
    rng = random.Random(7)
    found = [ratio(measured(rng, true, *noise), measured(rng, 1.0, *noise)) for _ in range(trials)]
    return sum(one is not None and not one.low <= 1 <= one.high for one in found) / trials


NOISES = [(0.0, 0.02, 0.0), (0.02, 0.02, 0.0), (0.02, 0.02, 0.01), (BETWEEN, WITHIN, OVER_TIME)]


@pytest.mark.parametrize("noise", NOISES)
def test_equal_runs_are_rarely_called_different(noise: tuple[float, ...]) -> None:
    """At most 5 %; with 300 trials a rate of 5 % exceeds 8.7 % once in a thousand runs of the test."""
    assert share_called_different(1.0, 300, *noise) <= 0.087


@pytest.mark.parametrize("noise", NOISES[:2])
def test_a_change_of_5_percent_at_2_percent_noise_is_found(noise: tuple[float, ...]) -> None:
    """In at least 90 %; with 300 trials a rate of 90 % falls below 84.7 % once in a thousand."""
    assert share_called_different(1.05, 300, *noise) >= 0.847


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_equal_runs_are_called_different_in_at_most_5_percent(noise: tuple[float, ...]) -> None:
    assert share_called_different(1.0, 2000, *noise) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES[:2])
def test_a_change_of_5_percent_is_found_in_at_least_90_percent(noise: tuple[float, ...]) -> None:
    assert share_called_different(1.05, 2000, *noise) >= 0.90


def test_the_ratio_is_of_medians_of_medians() -> None:
    found = ratio([[2.0, 9.0, 2.0], [2.2], [2.1]], [[1.0], [1.1], [1.05, 0.9, 1.2]])
    assert found is not None
    assert found.value == pytest.approx(2.1 / 1.05)
    assert found.basis == "processes"
    assert found.low < 2 < found.high
    assert found.p < 0.01


def test_equal_samples_differ_by_nothing() -> None:
    found = ratio([[1.0]] * 3, [[1.0]] * 3)
    assert found is not None
    assert (found.value, found.low, found.high, found.p) == (1, 1, 1, 1)


def test_few_processes_take_the_spread_of_other_cells() -> None:
    found = ratio([[1.1] * 20], [[1.0] * 20], others=0.01)
    assert found is not None
    assert found.basis == "other cells"
    assert math.log(found.high / found.value) == pytest.approx(2.0537 * 0.01 * math.sqrt(2), rel=1e-3)


def test_one_process_per_side_does_not_know_the_spread_between_processes() -> None:
    found = ratio([[1.1] * 20], [[1.0] * 20])
    assert found is not None
    assert found.basis == "samples"
    assert found.low < 1 < found.high
    assert math.log(found.high / found.value) == pytest.approx(2.0537 * USUAL_SPREAD * math.sqrt(2), rel=1e-3)
    noisy = ratio([[1.0, 1.2] * 10], [[1.0] * 20])
    assert noisy is not None
    assert noisy.high / noisy.value > found.high / found.value


def test_a_side_without_samples_has_no_ratio() -> None:
    assert ratio([], [[1.0]]) is None
    assert ratio([[]], [[1.0]]) is None


@pytest.mark.parametrize(("freedom", "t"), list(enumerate(stats.STUDENT_96, 1)))
def test_p_values_of_the_quantiles(freedom: int, t: float) -> None:
    assert student_p(t, freedom) == pytest.approx(0.04, abs=5e-5)
    assert student_p(-t, freedom) == student_p(t, freedom)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([]) == []
