"""Hold predicted memory against measured peaks, and write the table of docs/predicted-memory.md.

    longvis bench --models atlas-n,... --res 512,1024,2048 --mode infer,train --metrics memory \\
        --device cpu --timeout 120 --memory-limit 20GiB --out RUN
    python scripts/predicted_memory.py RUN...

Rows of all runs are taken: those that failed are named below the table.  Measured is `peak_memory_bytes`,
predicted what `longvis fit` says of the same cell, device and dtype.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from longvis_bench import units
from longvis_bench.advice.need import CPU_ERROR, CPU_ERROR_MIB, Device, need_of
from longvis_bench.measure.memory.tensor_peak import planned_trace
from longvis_bench.records import Row
from longvis_bench.registry.registry import Registry
from longvis_bench.report.grouping import in_order
from longvis_bench.runs.merge import read_runs, side_by_side

PAGE = Path(__file__).parents[1] / "docs" / "predicted-memory.md"
MIB = 1 << 20


class Pair(NamedTuple):
    """One cell, in bytes."""

    row: Row
    measured: int
    predicted: int

    @property
    def error(self) -> float:
        """Share of the measured peak by which the prediction is off."""
        return self.predicted / self.measured - 1

    @property
    def holds(self) -> bool:
        """Whether it keeps the bound."""
        return abs(self.error) <= CPU_ERROR or abs(self.predicted - self.measured) <= CPU_ERROR_MIB * MIB


def predicted(row: Row) -> int:
    """What `fit` predicts as the peak of a row's cell."""
    variant = Registry().find(row.cell.model)
    trace = planned_trace(variant, row.cell)
    return need_of(trace, Device(row.cell.device, 1 << 62), train=row.cell.mode == "train").peak_bytes


def pairs(rows: Sequence[Row]) -> Iterator[Pair]:
    """Every row that has a measured peak, with its prediction."""
    for row in in_order(rows):
        if row.status == "ok" and row.memory is not None:
            yield Pair(row, row.memory.peak_bytes, predicted(row))


def page(found: Sequence[Pair], left_out: Sequence[Row]) -> str:
    """The page, as Markdown."""
    errors = [abs(pair.error) for pair in found]
    worst = max((pair for pair in found), key=lambda pair: abs(pair.predicted - pair.measured))
    first = found[0].row
    broken = [pair for pair in found if not pair.holds]
    lines = [
        "# Predicted and measured memory",
        "",
        f"`longvis fit` against `longvis bench` on {first.machine}: {len(found)} cells, batch "
        f"{first.cell.batch_size}, {first.cell.dtype}, {first.cell.device}. Written by "
        "`scripts/predicted_memory.py`; a test predicts rows of it again.",
        "",
        f"- Median error: {units.percent(median(errors))}.",
        f"- Largest error in bytes: {units.size(abs(worst.predicted - worst.measured))} "
        f"({worst.row.cell.model}, {worst.row.cell.resolution} px, {worst.row.cell.mode}, "
        f"{units.percent(abs(worst.error))}).",
        f"- Beyond {units.percent(CPU_ERROR)} and {CPU_ERROR_MIB} MiB: {len(broken)} of {len(found)}.",
        "- On CUDA nothing has been measured yet: there these are predictions only.",
        "",
        "| model | px | mode | measured MiB | predicted MiB | error % |",
        "|---|---:|---|---:|---:|---:|",
        *(_line(pair) for pair in found),
    ]
    if left_out:
        named = "; ".join(
            f"{row.cell.model} {row.cell.resolution} px {row.cell.mode} ({row.status})" for row in left_out
        )
        lines += ["", f"Left out, over 2 minutes or 20 GiB: {named}."]
    return "\n".join([*lines, ""])


def _line(pair: Pair) -> str:
    cell = pair.row.cell
    numbers = f"{pair.measured / MIB:.1f} | {pair.predicted / MIB:.1f} | {100 * pair.error:+.1f}"
    return f"| {cell.model} | {cell.resolution} | {cell.mode} | {numbers} |"


def main(runs: Sequence[str]) -> None:
    """Write the page."""
    rows = side_by_side(read_runs([Path(run) for run in runs], one_per_cell=True))
    found = list(pairs(rows))
    left_out = [row for row in in_order(rows) if row.status != "ok"]
    PAGE.write_text(page(found, left_out), encoding="utf-8")
    print(f"{PAGE}: {len(found)} cells")


if __name__ == "__main__":
    main(sys.argv[1:])
