"""How far several runs of the same cells agree.

    for i in 1 2 3 4 5 6 7 8 9 10; do longvis bench --out run-$i; done
    python scripts/repeat_runs.py run-1 run-2 ... > runs.csv

Prints one line per cell as CSV: the median of each run, the largest ratio of two of them, and how many pairs
of runs have overlapping 95 % intervals.  Then, as comments: the shares over all cells, and in how many runs
no two models with intervals apart stand in another order than in most runs.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from longvis_bench import stats
from longvis_bench.records import Row
from longvis_bench.resolution import Resolution
from longvis_bench.runs.directory import current, read_rows

Name = tuple[str, Resolution]


class Latency(NamedTuple):
    """What a run says of a cell."""

    median: float
    interval: stats.Interval
    verdict: str


def latencies(rows: Sequence[Row]) -> dict[Name, Latency]:
    """The latencies of a run, by model and pixels per side; cells without an interval are left out."""
    found = {}
    for row in rows:
        timing = row.timing
        if timing is None:
            continue
        processes = timing.by_process(clean=True) or timing.by_process()
        number = stats.across_processes(processes)
        interval = stats.latency_interval(processes, timing.others_spread)
        if number is not None and interval is not None:
            found[row.cell.model, row.cell.resolution] = Latency(number, interval, timing.verdict)
    return found


def overlap(one: stats.Interval, other: stats.Interval) -> bool:
    """Whether two intervals have a value in common."""
    return one.low <= other.high and other.low <= one.high


def pairs_of_runs(runs: Sequence[dict[Name, Latency]], name: Name) -> tuple[int, int]:
    """How many pairs of runs have overlapping intervals of a cell, and how many pairs there are."""
    known = [run[name].interval for run in runs if name in run]
    pairs = list(combinations(known, 2))
    return sum(overlap(one, other) for one, other in pairs), len(pairs)


def orders(run: dict[Name, Latency]) -> Iterator[tuple[tuple[Name, Name], bool]]:
    """Pairs of models of one size whose intervals do not overlap, and whether the first is the faster one."""
    for one, other in combinations(sorted(run), 2):
        if one[1] == other[1] and not overlap(run[one].interval, run[other].interval):
            yield (one, other), run[one].median < run[other].median


def runs_in_order(runs: Sequence[dict[Name, Latency]]) -> int:
    """Runs in which every order that their intervals state is the order stated by most runs."""
    votes: dict[tuple[Name, Name], Counter[bool]] = defaultdict(Counter)
    for run in runs:
        for pair, order in orders(run):
            votes[pair][order] += 1
    return sum(all(votes[pair].most_common(1)[0][0] == order for pair, order in orders(run)) for run in runs)


def main() -> None:
    """Print the table."""
    runs = [latencies(current(read_rows(Path(name)))) for name in sys.argv[1:]]
    names = sorted({name for run in runs for name in run}, key=lambda name: (name[1], name[0]))
    print("model,resolution," + ",".join(f"run_{i + 1}_ms" for i in range(len(runs))), end="")
    print(",largest_ratio,overlapping_pairs,pairs,half_width,verdicts")
    together, total, largest = 0, 0, 1.0
    for name in names:
        found = [run[name] for run in runs if name in run]
        medians = [latency.median for latency in found]
        ratio, (overlapping, pairs) = max(medians) / min(medians), pairs_of_runs(runs, name)
        widths = [stats.half_width(latency.interval, latency.median) or 0.0 for latency in found]
        verdicts = Counter(latency.verdict for latency in found)
        said = " ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        cells = ",".join(f"{run[name].median * 1e3:.4g}" if name in run else "" for run in runs)
        print(
            f"{name[0]},{name[1]},{cells},{ratio:.3f},{overlapping},{pairs},{stats.median(widths):.3f},{said}"
        )
        together, total, largest = together + overlapping, total + pairs, max(largest, ratio)
    print(f"# {together} of {total} pairs of runs overlap ({together / max(1, total):.1%})")
    print(f"# largest ratio of two medians of one cell: {largest:.2f}")
    print(f"# {runs_in_order(runs)} of {len(runs)} runs state no order that most runs contradict")


if __name__ == "__main__":
    main()
