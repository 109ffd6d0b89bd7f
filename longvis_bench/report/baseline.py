"""Times per image over those of one model, the baseline, under the same conditions.

The intervals are those of `longvis compare`: over processes, where there are enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench.errors import UnknownName
from longvis_bench.records import Row
from longvis_bench.report.compare import cells_of, processes, usual_spread
from longvis_bench.stats.ratios import Ratio, ratio


def require_baseline(model: str, known: Sequence[str]) -> None:
    """Raise UnknownName, with near misses, if there are no rows of the baseline."""
    if model not in known:
        raise UnknownName("baseline", model, dict.fromkeys(known))


def with_baseline(rows: Sequence[Row], model: str) -> list[Row]:
    """The same rows, each with its time per image over that of the baseline on the same machine.

    Arguments:
        rows: of one or several runs.
        model: the baseline, as the rows name it.

    Raises:
        UnknownName: no row is of this model.
    """
    require_baseline(model, [row.cell.model for row in rows])
    found: dict[int, Ratio] = {}
    for machine in dict.fromkeys(row.machine for row in rows):
        found |= ratios([row for row in rows if row.machine == machine], model)
    return [row.model_copy(update={"baseline": (model, found.get(id(row)))}) for row in rows]


def ratios(rows: Sequence[Row], model: str) -> dict[int, Ratio]:
    """Times per image over those of a model.

    Arguments:
        rows: of one machine.
        model: its time is the denominator.

    Returns:
        Identity of a row (`id`) -> ratio, for all rows whose cell and the model's were timed; repeats of a
        cell have the same.
    """
    models = dict.fromkeys(row.cell.model for row in rows)
    cells = {name: cells_of([r for r in rows if r.cell.model == name], across_models=True) for name in models}
    others = usual_spread([found for mine in cells.values() for found in mine.values()])
    found: dict[int, Ratio] = {}
    for name, mine in cells.items():
        for key, repeats in mine.items():
            one = _ratio(repeats, cells.get(model, {}).get(key, []), others, itself=name == model)
            found |= {} if one is None else {id(row): one for row in repeats}
    return found


def _ratio(
    rows: Sequence[Row], baseline: Sequence[Row], others: float | None, *, itself: bool
) -> Ratio | None:
    one = ratio(processes(rows), processes(baseline), others)
    return Ratio(1.0, 1.0, 1.0, 1.0, one.basis) if one is not None and itself else one
