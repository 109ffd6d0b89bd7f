"""The ratio of two latencies, with its interval over processes, and Holm's correction for many ratios.

References:
    - unequal variances: B. L. Welch, Biometrika 34 (1947) 28.
    - p-values of t: M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    - many comparisons: S. Holm, Scand. J. Statist. 6 (1979) 65.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import Literal

from longvis_bench.stats.processes import STUDENT_96, across_processes
from longvis_bench.stats.samples import median, relative_half_width

ENOUGH = 3
"""Fewest processes per side whose own spread gives the interval."""
USUAL_SPREAD = 0.06
"""Spread between processes assumed where none was measured: the median over the factors of
results/reference/intel-xeon-2c/latency-factors (standard deviation of the log latency)."""
ALPHA = 0.04
"""Two-sided error of an interval.  It is below 5 % because the harness adds processes until an interval is
narrow, which favours spreads that are small by chance; `tests/stats/test_ratios.py` has the error rates."""

Basis = Literal["processes", "other cells", "samples"]


@dataclass(frozen=True)
class Ratio:
    """One latency / another."""

    value: float
    """Ratio of the reported medians."""
    low: float
    high: float
    """Ends of the 95 % interval, which encloses `value`."""
    p: float
    """Two-sided p-value of equal latencies."""
    basis: Basis
    """What the spread between processes was estimated from: the processes of both sides, other cells of the
    same runs, or an assumed spread beside the samples of the only process."""


def ratio(
    numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]], others: float | None = None
) -> Ratio | None:
    """Ratio of the median latencies of two cells, with a 95 % interval over processes.

    With three processes and more per side the interval is a t interval for unequal variances on the
    logarithms of the processes' medians, with the degrees of freedom of the side with fewer processes.  With
    fewer, `others` is the standard deviation between processes, and the normal distribution gives the
    interval; without it, `USUAL_SPREAD` is assumed, and the uncertainty within the processes, by order
    statistics of their samples, is added.

    Arguments:
        numerator: samples of each process, in seconds, all positive.
        denominator: the same of the other cell.
        others: spread between processes of similar cells, as a share.

    Returns:
        The ratio; None if a side has no samples.
    """
    sides = [[samples for samples in side if samples] for side in (numerator, denominator)]
    tops, bottoms = ([math.log(median(samples) or math.nan) for samples in side] for side in sides)
    if not tops or not bottoms:
        return None
    value = (across_processes(sides[0]) or math.nan) / (across_processes(sides[1]) or math.nan)
    centre = fmean(tops) - fmean(bottoms)
    if min(len(tops), len(bottoms)) >= ENOUGH:
        error, freedom = _welch(tops, bottoms)
        return _ratio(value, centre, error, freedom, "processes")
    if others is not None:
        return _ratio(
            value, centre, others * math.sqrt(1 / len(tops) + 1 / len(bottoms)), None, "other cells"
        )
    error = math.hypot(*(_error(side) for side in sides))
    return _ratio(value, centre, error, None, "samples")


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which of several p-values are significant after Holm's correction.

    Arguments:
        p_values: of all comparisons that were made.
        alpha: probability of a false one among all.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    found = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) > alpha:
            break
        found[index] = True
    return found


def student_p(t: float, freedom: int) -> float:
    """Two-sided p-value of Student's t, by the finite series for whole degrees of freedom."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - within)


def _welch(one: Sequence[float], other: Sequence[float]) -> tuple[float, int]:
    """Standard error of the difference of two means, and the smaller side's degrees of freedom.

    Welch's own degrees of freedom are larger: with them 8 % of equal runs were called different, because the
    harness stops adding processes where their spread happens to be small.
    """
    error = math.sqrt(sum(variance(side) / len(side) for side in (one, other)))
    return error, min(len(one), len(other)) - 1


def _error(side: Sequence[Sequence[float]]) -> float:
    """Standard error of the logarithm of a side's latency, with the assumed spread between processes."""
    widths = [relative_half_width(samples) or 0.0 for samples in side]
    within = max(widths) / NormalDist().inv_cdf(0.975)
    return math.hypot(USUAL_SPREAD, within) / math.sqrt(len(side))


def _ratio(value: float, centre: float, error: float, freedom: int | None, basis: Basis) -> Ratio:
    half = error * _quantile(freedom)
    low, high = min(value, math.exp(centre - half)), max(value, math.exp(centre + half))
    return Ratio(value, low, high, _p(centre, error, freedom), basis)


def _quantile(freedom: int | None) -> float:
    """The quantile that |t| exceeds with probability `ALPHA`; of the normal distribution for None."""
    if freedom is None:
        return NormalDist().inv_cdf(1 - ALPHA / 2)
    return STUDENT_96[min(freedom, len(STUDENT_96)) - 1]


def _p(centre: float, error: float, freedom: int | None) -> float:
    if error == 0:
        return 1.0 if centre == 0 else 0.0
    if freedom is None:
        return 2 * NormalDist().cdf(-abs(centre) / error)
    return student_p(centre / error, freedom)
