"""All figures of some rows, and their files.

The same rows give the same files, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from matplotlib.figure import Figure

from longvis_bench.files import write_whole
from longvis_bench.records import METRICS, Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.plots.accuracy import accuracy_figure
from longvis_bench.report.plots.cost import COSTS, cost_figure
from longvis_bench.report.plots.style import DPI, Cast, style

AGAINST = ("throughput", "memory", "macs", "energy")
"""Costs that accuracy is drawn against."""
NAMES = (*COSTS, *(f"accuracy-{name}" for name in AGAINST))
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": "longvis-bench"},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": "longvis-bench"},
}
"""Format -> what matplotlib writes beside the figure: nothing that changes from one call to the next."""
KINDS = tuple(_METADATA)


def figures(rows: Sequence[Row] | Grouped) -> dict[str, Figure]:
    """The figures of the metrics asked for that have a value in some row, by name.

    Arguments:
        rows: of one or many models and sizes; failed ones too.
    """
    cast = Cast(rows)
    asked = {metric for row in cast.rows.rows for metric in row.cell.metrics} or set(METRICS)
    wanted = {name: cost for name, cost in COSTS.items() if BY_NAME[cost.column].metric in asked}
    with style():
        drawn: dict[str, Figure | None] = {name: cost_figure(cast, cost) for name, cost in wanted.items()}
        if "accuracy" in asked:
            both = [name for name in AGAINST if name in wanted]
            drawn |= {f"accuracy-{name}": accuracy_figure(cast, COSTS[name]) for name in both}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_plots(
    rows: Sequence[Row] | Grouped, folder: Path, more: Mapping[str, Figure] | None = None
) -> list[Path]:
    """Write every figure as PNG (200 dpi), SVG (text as text) and PDF; return the files.

    Arguments:
        rows: as `figures` takes them.
        folder: made if it is not there.
        more: figures of what is not in the rows, by name.

    Raises:
        OSError: the disk does not take them; no half figure is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    drawn = {**figures(rows), **(more or {})}
    for name in set(NAMES) - set(drawn):  # of an earlier report on other rows
        for kind in KINDS:
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    for name, figure in drawn.items():
        for kind in KINDS:
            written.append(folder / f"{name}.{kind}")
            with style():
                write_whole(written[-1], partial(_save, figure, kind))
    return written


def _save(figure: Figure, kind: str, file: IO[bytes]) -> None:
    figure.savefig(file, format=kind, dpi=DPI, metadata=_METADATA[kind])
