"""Rounds of a repeated sweep (`--repeats`): how far apart they are, and which one a table shows.

A row knows its own round only, so this looks at all rows of a cell when they are read.  Nothing is dropped:
frames and CSV hold every round; the readable tables show a cell once, by the round whose latency is in the
middle (the lower one of two), and each round that failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench import stats
from longvis_bench.records import Row
from longvis_bench.row_warnings import of_repeats


def with_rounds(rows: Sequence[Row]) -> list[Row]:
    """The same rows, each with the latencies of all rounds of its cell, and a warning if they disagree."""
    done: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if _is_timed(row):
            done.setdefault(_cell(row), []).append(row)
    return with_reference([_with(row, done.get(_cell(row), [])) for row in rows])


def with_reference(rows: Sequence[Row]) -> list[Row]:
    """The same rows, each with the fastest yardstick of its machine and threads among them."""
    fastest: dict[tuple[str, str, int], float] = {}
    for row in rows:
        for stick in row.timing.yardsticks() if row.timing else ():
            seconds = stats.median(stick)
            if seconds is not None:
                fastest[_where(row)] = min(seconds, fastest.get(_where(row), seconds))
    return [row.model_copy(update={"reference_yardstick_s": fastest.get(_where(row))}) for row in rows]


def _where(row: Row) -> tuple[str, str, int]:
    return row.machine, row.cell.device, row.cell.threads


def once(rows: Sequence[Row]) -> list[Row]:
    """One row a cell, and every failed round, in the order given.

    Arguments:
        rows: of one round, or of several.
    """
    good: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status == "ok":
            good.setdefault(_cell(row), []).append(row)
    middle = {id(_middle(group)) for group in good.values()}
    return [row for row in rows if row.status != "ok" or id(row) in middle]


def _with(row: Row, rounds: Sequence[Row]) -> Row:
    if len(rounds) < 2 or not _is_timed(row):
        return row
    medians = tuple(_latency(other) for other in rounds)
    notes = of_repeats(medians, _widest([_samples(other) for other in rounds]))
    kept = tuple(note for note in row.notes if note.code not in {new.code for new in notes})
    return row.model_copy(update={"repeats_s": medians, "notes": (*kept, *notes)})


def _widest(rounds: Sequence[Sequence[float]]) -> float | None:
    """Width of the widest interval of a round, as a share of its median; None where one has no interval."""
    halves = [stats.relative_half_width(samples) for samples in rounds]
    known = [half for half in halves if half is not None]
    return 2 * max(known) if len(known) == len(halves) else None


def _middle(rounds: Sequence[Row]) -> Row:
    ordered = sorted(rounds, key=_latency)
    return ordered[(len(ordered) - 1) // 2]


def _is_timed(row: Row) -> bool:
    return row.status == "ok" and bool(_samples(row))


def _samples(row: Row) -> Sequence[float]:
    return row.timing.samples_s if row.timing else ()


def _latency(row: Row) -> float:
    return stats.median(_samples(row)) or 0.0


def _cell(row: Row) -> tuple[str, str]:
    """The same for all rounds of a cell."""
    return row.machine, row.cell.identity(without=("round",))
