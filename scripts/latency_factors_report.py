"""Turn the samples of `scripts/latency_factors.py` into tables.

    python scripts/latency_factors_report.py OUT_FOLDER SAMPLES.json...

Writes factors.csv (what each factor does to the latency), variance.csv (how the variance of a latency splits
into over time, between processes and within a process), yardstick.csv (how well mixes of fixed work follow
the models) and README.md with all three.
"""

from __future__ import annotations

import json
import sys
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longvis_bench.stats import process_interval

WORK = ("convolutions", "products", "stream", "small operators")


def read(paths: list[Path]) -> pd.DataFrame:
    """One line per process and cell: medians in seconds, spread within, what the system counted."""
    lines = []
    runs = [(path.name, process) for path in paths for process in json.loads(path.read_text())["processes"]]
    for run, process in runs:
        for cell, found in process["cells"].items():
            samples, counters = found["samples_s"], found["counters"]
            if len(samples["model"]) < 3:
                continue
            lines.append(
                {
                    "factor": process["factor"],
                    "round": f"{run} {process['round']}",
                    "cell": cell,
                    **{name: float(np.median(times)) for name, times in samples.items() if times},
                    "within": _spread_within(samples["model"]),
                    "forwards": len(samples["model"]),
                    **counters,
                }
            )
    return pd.DataFrame(lines)


def _spread_within(samples: list[float]) -> float:
    """Standard deviation of the logarithms of one process's samples, from their quartiles."""
    low, high = np.quantile(np.log(samples), [0.25, 0.75])
    return float(high - low) / 1.349


def factors(frame: pd.DataFrame) -> pd.DataFrame:
    """Per factor: latency against the base of the same round and cell, and its spread between processes.

    The ratio is the median over cells and rounds; its interval is over rounds (`stats.process_interval`).
    """
    base = frame[frame.factor == "base"].set_index(["round", "cell"]).model
    lines = []
    for factor, rows in frame.groupby("factor", sort=False):
        ratio = rows.set_index(["round", "cell"]).model / base
        logs = pd.Series(np.log(ratio), index=ratio.index).dropna()
        rounds = [[float(np.exp(value))] for value in logs.groupby("round").mean()]
        interval = process_interval(rounds)
        largest = rows.groupby("cell").model.agg(lambda times: times.max() / times.min())
        lines.append(
            {
                "factor": factor,
                "processes": rows["round"].nunique(),
                "times base": float(np.median(rounds)),
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "largest / smallest median": float(largest.max()),
                "page faults per forward": _per_forward(rows, "page_faults"),
                "forced switches per forward": _per_forward(rows, "context_switches"),
                "migrations per forward": _per_forward(rows, "migrations"),
            }
        )
    order = {factor: number for number, factor in enumerate(["base", *frame.factor.unique()])}
    return pd.DataFrame(lines).sort_values("factor", key=lambda names: names.map(order), ignore_index=True)


def _per_forward(rows: pd.DataFrame, counter: str) -> float | None:
    known = rows.dropna(subset=[counter])
    return float((known[counter] / known.forwards).mean()) if len(known) else None


def variance(frame: pd.DataFrame) -> pd.DataFrame:
    """Per factor: standard deviations of the log latency over time, between processes and within one.

    Over time is what all processes of a round share (the base's neighbours in time, whatever their factor);
    between processes is what is left of a process's median after its factor's mean and its round's; both are
    pooled over cells.
    """
    logs = frame.assign(log=np.log(frame.model))
    logs["centred"] = logs.log - logs.groupby(["cell", "factor"]).log.transform("mean")
    logs["shared"] = logs.groupby(["cell", "round"]).centred.transform("mean")
    count = logs.factor.nunique()
    lines = []
    for factor, rows in logs.groupby("factor", sort=False):
        rounds = rows["round"].nunique()
        left = (rows.centred - rows.shared) * np.sqrt(rounds / (rounds - 1) * count / max(1, count - 1))
        lines.append(
            {
                "factor": factor,
                "between processes": _root_mean_square(left),
                "within a process": _root_mean_square(rows.within),
            }
        )
    shared = logs.groupby(["cell", "round"]).shared.first()
    return pd.DataFrame(
        [{"factor": "over time, all factors", "between processes": _root_mean_square(shared)}, *lines]
    )


def _root_mean_square(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def yardsticks(frame: pd.DataFrame, leave_out: tuple[str, ...]) -> pd.DataFrame:
    """Per mix of fixed work: spread of model / mix between processes, beside the model's alone.

    Arguments:
        frame: processes.
        leave_out: factors that change the work itself, and not the machine's speed.
    """
    same = frame[~frame.factor.isin(leave_out)].dropna(subset=list(WORK))
    lines = [{"mix": "none: the model alone", **_residuals(same, np.zeros(len(same)))}]
    mixes = chain.from_iterable(combinations(WORK, size) for size in range(1, len(WORK) + 1))
    for mix in mixes:
        parts = sum(same[name] / same.groupby("cell")[name].transform("median") for name in mix)
        lines.append({"mix": " + ".join(mix), **_residuals(same, np.log(parts / len(mix)))})
    return pd.DataFrame(lines).sort_values("all", ignore_index=True)


def _residuals(frame: pd.DataFrame, log_work: Any) -> dict[str, float]:
    ratio = frame.assign(log=np.log(frame.model) - log_work)
    ratio["centred"] = ratio.log - ratio.groupby("cell").log.transform("median")
    by_cell = {str(cell): _root_mean_square(rows.centred) for cell, rows in ratio.groupby("cell")}
    return {**by_cell, "all": _root_mean_square(ratio.centred)}


CHANGED_WORK = (
    "one thread",
    "channels last",
    "no oneDNN",
    "no oneDNN primitive cache",
    "freed memory given back",
)


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, numbers with three digits."""
    cells = [[_text(value) for value in line] for line in table.to_numpy()]
    lines = [list(table.columns), ["---"] + ["---:"] * (len(table.columns) - 1), *cells]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None or np.isnan(value) else f"{value:.3g}"


PAGE = """\
# What moves a latency

Written by `scripts/latency_factors_report.py` from the samples of `scripts/latency_factors.py`: {processes}
processes in {rounds} rounds on intel-xeon-2c, 2 threads.

Every process times the cells {cells}.

The machine was quiet but for short commands of others, which the largest ratios show. No row has each thread
on a core of its own, as the harness has it since: that factor was mended while the experiment ran.

## Factors

Each factor is changed alone against the base (freed memory kept, threads pinned to the cores as a set,
everything else as torch has it). "times base" is the ratio of latencies within a round, over all cells,
with its 95 % interval over rounds; "largest / smallest median" is that of the worst cell. Counters are per
forward pass.

{factors}

## Variance

Standard deviations of the log latency: 0.03 is 3 %.

{variance}

## Yardstick

Standard deviation of log(model / mix) over processes, per cell: how well a mix of fixed work follows the
models where the speed of the machine, of its threads or of OpenMP differs. Processes whose factor changes
the work are left out.

{yardstick}
"""


def main() -> None:
    """Write the tables."""
    out, frame = Path(sys.argv[1]), read([Path(name) for name in sys.argv[2:]])
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "factors": factors(frame),
        "variance": variance(frame),
        "yardstick": yardsticks(frame, CHANGED_WORK),
    }
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
    page = PAGE.format(
        processes=len(frame.drop_duplicates(["round", "factor"])),
        rounds=frame["round"].nunique(),
        cells=", ".join(f"{cell} px" for cell in frame.cell.unique()),
        **{name: markdown(table) for name, table in tables.items()},
    )
    (out / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
