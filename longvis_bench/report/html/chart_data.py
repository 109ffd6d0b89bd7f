"""What the figures of a page draw: one plain value per row, and the units that axes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import Grouped, is_disturbed, number
from longvis_bench.report.html.markup import shown
from longvis_bench.report.plots.cost import COSTS, Cost
from longvis_bench.report.plots.style import Cast, Look
from longvis_bench.resolution import Resolution, side

SHAPES = {
    "o": "M-.9,0A.9,.9,0,1,1,.9,0A.9,.9,0,1,1,-.9,0Z",
    "s": "M-.8,-.8L.8,-.8L.8,.8L-.8,.8Z",
    "^": "M0,-1L1,.8L-1,.8Z",
    "v": "M0,1L1,-.8L-1,-.8Z",
    "<": "M-1,0L.8,-1L.8,1Z",
    ">": "M1,0L-.8,-1L-.8,1Z",
    "D": "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "d": "M0,-1.15L.7,0L0,1.15L-.7,0Z",
    "P": "M-.35,-1L.35,-1L.35,-.35L1,-.35L1,.35L.35,.35L.35,1L-.35,1L-.35,.35L-1,.35L-1,-.35L-.35,-.35Z",
    "X": "M-1,-.5L-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "*": "M0,-1L.25,-.34L.95,-.31L.4,.13L.59,.81L0,.42L-.59,.81L-.4,.13L-.95,-.31L-.25,-.34Z",
}
"""matplotlib's marker -> its outline within -1..1, so that a model looks alike in all figures."""
PERCENT = 100


@dataclass(frozen=True)
class Measure:
    """A quantity in the unit of its axis."""

    name: str
    cost: Cost
    scale: units.Scale

    @property
    def title(self) -> str:
        """Title of its axis."""
        return f"{self.cost.axis} ({self.scale.unit})" if self.scale.unit else self.cost.axis


def measures(rows: Grouped) -> dict[str, Measure]:
    """The costs that some row has, by their names in figures' files."""
    found = {}
    for name, cost in COSTS.items():
        values = sorted(v for row in rows.rows if (v := number(row, cost.column)) is not None and v > 0)
        if values:
            scales = BY_NAME[cost.column].scales
            scale = units.shared_scale(values, scales) or units.shared_scale(_middle(values), scales)
            found[name] = Measure(name, cost, scale or scales[-1])
    return found


def _middle(values: Sequence[float]) -> Sequence[float]:
    """One value of the middle, whose unit serves all where none fits all."""
    return values[len(values) // 2 :][:1]


def on_axis(resolution: Resolution) -> int:
    """Where a resolution stands on the axis of sizes: whole pixels of `resolution.side`."""
    return round(side(resolution))


def chart_rows(cast: Cast, known: dict[str, Measure]) -> list[dict[str, Any]]:
    """One mapping per row, in the rows' order; a value is None where the row has none that counts.

    Arguments:
        cast: rows, each cell once, and the looks of their series.
        known: `measures` of the same rows.
    """
    names = cast.rows.names
    return [_row(row, cast, names[row.key], known) for row in cast.rows.rows]


def _row(row: Row, cast: Cast, label: str, known: dict[str, Measure]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "series": shown(label),
        "size": on_axis(row.cell.resolution),
        "status": row.status,
        "disturbed": is_disturbed(row),
        **_look(cast.looks[label]),
    }
    for name, measure in known.items():
        values[name] = _scaled(row, measure.cost.column, measure)
        for end, column in zip(("low", "high"), measure.cost.interval or (), strict=False):
            values[f"{name}_{end}"] = _scaled(row, column, measure)
    for name in ("top1", "top1_low", "top1_high"):
        value = number(row, name)
        values[name] = None if value is None else PERCENT * value
    return values


def _scaled(row: Row, column: str, measure: Measure) -> float | None:
    value = number(row, column)
    return None if value is None or value <= 0 else value / measure.scale.factor


def _look(look: Look) -> dict[str, str]:
    return {"colour": look.colour, "shape": SHAPES[look.marker]}
