"""Repeats of a sweep (`--repeats`): their spread, and the choice of the repeat that a table shows.

A row has the numbers of its own repeat only, so these functions compare all rows of a cell after reading.
Frames and CSV have every repeat; readable tables show one row per cell, the repeat with the median latency
(the lower of two), and every failed repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench import stats
from longvis_bench.devices import kind_of
from longvis_bench.records import Cell, Row
from longvis_bench.row_warnings import of_repeats


def with_repeats(rows: Sequence[Row]) -> list[Row]:
    """The same rows, each with the latencies of all repeats of its cell, and a warning if they disagree."""
    done: dict[tuple[str, str], list[Row]] = {}
    cells = [_cell(row) for row in rows]  # their hashes would take as long as all else if made again
    for cell, row in zip(cells, rows, strict=True):
        if _is_timed(row):
            done.setdefault(cell, []).append(row)
    return with_reference([_with(row, done.get(cell, [])) for cell, row in zip(cells, rows, strict=True)])


def with_reference(rows: Sequence[Row]) -> list[Row]:
    """The same rows, each with the fastest yardstick among the rows of its machine, device and threads."""
    fastest: dict[tuple[str, str, int], float] = {}
    for row in rows:
        for stick in row.timing.yardsticks() if row.timing else ():
            seconds = stats.median(stick)
            if seconds is not None:
                fastest[_where(row)] = min(seconds, fastest.get(_where(row), seconds))
    return [row.model_copy(update={"reference_yardstick_s": fastest.get(_where(row))}) for row in rows]


def _where(row: Row) -> tuple[str, str, int]:
    return row.machine, kind_of(row.cell.device), row.cell.threads


def once(rows: Sequence[Row]) -> list[Row]:
    """One row per cell, and every failed repeat, in the given order.

    Arguments:
        rows: rows of one or several repeats.
    """
    good: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status == "ok":
            good.setdefault(_cell(row), []).append(row)
    middle = {id(_middle(group)) for group in good.values()}
    return [row for row in rows if row.status != "ok" or id(row) in middle]


def _with(row: Row, repeats: Sequence[Row]) -> Row:
    if len(repeats) < 2 or not _is_timed(row):
        return row
    medians = tuple(_latency(other) for other in repeats)
    notes = of_repeats(medians, _widest([_samples(other) for other in repeats]))
    kept = tuple(note for note in row.notes if note.code not in {new.code for new in notes})
    return row.model_copy(update={"repeats_s": medians, "notes": (*kept, *notes)})


def _widest(repeats: Sequence[Sequence[float]]) -> float | None:
    """Width of the widest interval of a repeat as a share of its median; None if one has no interval."""
    halves = [stats.relative_half_width(samples) for samples in repeats]
    known = [half for half in halves if half is not None]
    return 2 * max(known) if len(known) == len(halves) else None


def _middle(repeats: Sequence[Row]) -> Row:
    ordered = sorted(repeats, key=_latency)
    return ordered[(len(ordered) - 1) // 2]


def _is_timed(row: Row) -> bool:
    return row.status == "ok" and bool(_samples(row))


def _samples(row: Row) -> Sequence[float]:
    return row.timing.samples_s if row.timing else ()


def _latency(row: Row) -> float:
    return stats.median(_samples(row)) or 0.0


MOST_KEPT = 1 << 14
"""Cells whose identities are kept at a time."""
_identities: dict[int, tuple[Cell, str]] = {}


def _cell(row: Row) -> tuple[str, str]:
    """Identity of a cell, equal for all its repeats; kept, as copies of a row share their cell."""
    kept = _identities.get(id(row.cell))
    if kept is None or kept[0] is not row.cell:
        if len(_identities) >= MOST_KEPT:
            _identities.clear()
        kept = _identities[id(row.cell)] = row.cell, row.cell.identity(without=("round",))
    return row.machine, kept[1]
