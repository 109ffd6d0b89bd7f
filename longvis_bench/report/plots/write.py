"""All figures of some rows, and their files.

The same rows give the same SVG, byte for byte.
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

AGAINST = ("throughput", "macs")
"""Costs that accuracy is drawn against."""
NAMES = (*COSTS, *(f"accuracy-{name}" for name in AGAINST))


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
    """Write every figure as PNG (200 dpi) and SVG (text as text); return the files.

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
        for kind in ("png", "svg"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    for name, figure in drawn.items():
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        with style():
            write_whole(png, partial(_as_png, figure))
            write_whole(svg, partial(_as_svg, figure))
        written += [png, svg]
    return written


def _as_png(figure: Figure, file: IO[bytes]) -> None:
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


def _as_svg(figure: Figure, file: IO[bytes]) -> None:
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "longvis-bench"})
