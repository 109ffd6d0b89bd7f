"""Statistics of a quantity measured in several processes, by the spread between the processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, stdev

from longvis_bench.stats.samples import CONFIDENCE, Interval, median, median_interval

STUDENT_96 = (
    15.895,
    4.849,
    3.482,
    2.999,
    2.757,
    2.612,
    2.517,
    2.449,
    2.398,
    2.359,
    2.328,
    2.303,
    2.282,
    2.264,
)
"""Two-sided 96 % quantile of Student's t, by degrees of freedom from 1; the last value serves for more."""

OWN_PROCESSES = 3
"""Processes that give an interval of their own; fewer take the spread of similar cells."""


def across_processes(processes: Sequence[Sequence[float]]) -> float | None:
    """The value reported for several processes: the median of their medians; None without samples."""
    return median([_median(samples) for samples in processes if samples])


def process_spread(processes: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of the logarithms of the processes' medians; None for fewer than two processes."""
    logs = [math.log(_median(samples)) for samples in processes if samples]
    return stdev(logs) if len(logs) > 1 else None


def process_interval(processes: Sequence[Sequence[float]], others: float | None = None) -> Interval | None:
    """95 % interval of the latency over processes and time, not over the samples of one process.

    The interval is Student's t on the logarithms of the processes' medians: differences between processes
    (addresses, memory pages, the machine's speed at that moment) determine its width, not the number of
    samples within one.  The nominal confidence is 96 %, because the harness adds processes until the interval
    is narrow, and repeated evaluation lowers the coverage by about 1 %: with spreads of 0, 5, 20 and 50 %
    between processes the interval covered the true median in 93 to 97 % of simulated cells.

    Arguments:
        processes: samples of each process, all positive.
        others: `process_spread` of similar cells, used for fewer than three processes; 0.02 is 2 %.

    Returns:
        Low and high end, which enclose `across_processes`; None for fewer than three processes without
        `others`.
    """
    logs = [math.log(_median(samples)) for samples in processes if samples]
    if len(logs) >= OWN_PROCESSES:
        half = _student(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    elif logs and others is not None:
        half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * others / math.sqrt(len(logs))
    else:
        return None
    centre, number = math.fsum(logs) / len(logs), across_processes(processes)
    assert number is not None
    return Interval(min(math.exp(centre - half), number), max(math.exp(centre + half), number))


def latency_interval(processes: Sequence[Sequence[float]], others: float | None = None) -> Interval | None:
    """The interval that tables show: over the processes if there are several, else within the only one."""
    if len(processes) == 1 and others is None:
        return median_interval(processes[0])
    return process_interval(processes, others)


def latency_half_width(processes: Sequence[Sequence[float]], others: float | None = None) -> float | None:
    """Half the width of `latency_interval`, as a share of the latency; None if it is unknown."""
    return half_width(latency_interval(processes, others), across_processes(processes))


def half_width(interval: Interval | None, number: float | None) -> float | None:
    """Half the width of an interval, as a share of `number`; None if either is unknown."""
    return None if interval is None or not number else (interval.high - interval.low) / 2 / number


def vs_yardstick(
    processes: Sequence[Sequence[float]], yardsticks: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Samples of each process / median of its yardstick samples; processes without either are left out."""
    pairs = zip(processes, yardsticks, strict=False)
    return [[sample / _median(stick) for sample in samples] for samples, stick in pairs if samples and stick]


def _student(freedom: int) -> float:
    """Two-sided 96 % quantile of Student's t: 2 % of the values exceed it."""
    return STUDENT_96[min(freedom, len(STUDENT_96)) - 1]


def _median(samples: Sequence[float]) -> float:
    value = median(samples)
    assert value is not None
    return value
