"""Where the seconds of a run went, phase by phase (`longvis report --overhead`): sums over all cells.

A cell's first process measures everything, further ones measure its latency alone.  Time of the yardstick,
which runs between the samples, stands apart from that of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from longvis_bench import units
from longvis_bench.phases import BUILD, COMPILE, IMPORT, OTHER, START, TEARDOWN, UNFINISHED, WAIT
from longvis_bench.records import ProcessRecord, Row
from longvis_bench.report.plain_table import plain_table

YARDSTICK, UNKNOWN = "yardstick", "not recorded"
MEANINGS = {
    START: "waiting for the server, which imports torch; forking",
    WAIT: "waiting for cells on other CPU devices (--devices)",
    IMPORT: "card and module of the model",
    "count": "operations, on the meta device",
    "shapes": "the tensors' peak, without data",
    COMPILE: "torch.compile, kernels of selective scans",
    BUILD: "building the model, loading its weights",
    "time": "warm-up and samples of the model's latency",
    YARDSTICK: "the yardstick between the samples",
    "energy": "the idle power, and iterations repeated for their energy",
    "memory": "the measured peak and its parts",
    "kernels": "observing which kernels run",
    "validity": "checking the outputs",
    "reach": "measuring the reach",
    "accuracy": "the held-out images",
    "graph": "the latency as a CUDA graph",
    "search": "the trials of --batch auto",
    OTHER: "loading data, starting libraries, writing rows",
    TEARDOWN: "ending the process",
    UNFINISHED: "the end of cells that did not finish",
    UNKNOWN: "further processes of older versions",
}
"""Phases in the order of the table."""


HEADINGS = ("phase", "first process", "further", "share", "what it is")


class PhaseLines(NamedTuple):
    """The breakdown in words."""

    lines: list[tuple[str, str, str, str, str]]
    """A line per phase, with a text for each of `HEADINGS`."""
    sentences: list[str]
    """The sum, the time that passed, and what the cache saved."""


def phase_lines(rows: Sequence[Row]) -> PhaseLines:
    """Seconds of each phase over all rows.

    Arguments:
        rows: those with a timing breakdown, at least one.
    """
    first, further = _first(rows), _further(rows)
    spent = [phase for phase in (*MEANINGS, *sorted(first + further)) if (first + further)[phase]]
    whole = sum((first + further).values())
    lines = [
        (
            phase,
            _seconds(first[phase]),
            _seconds(further[phase]),
            units.percent((first[phase] + further[phase]) / whole),
            MEANINGS.get(phase, ""),
        )
        for phase in dict.fromkeys(spent)
    ]
    return PhaseLines(lines, _sentences(rows, whole))


def phase_table(rows: Sequence[Row]) -> RenderableType:
    """One line per phase with its seconds, then their sum and the time that passed."""
    found = phase_lines(rows)
    table = plain_table(HEADINGS[:1], HEADINGS[1:4])
    table.add_column(HEADINGS[4], overflow="fold")
    for line in found.lines:
        table.add_row(*line)
    return Group(table, Text(), *map(Text, found.sentences))


def _seconds(seconds: float) -> str:
    return units.significant(seconds) if seconds else units.UNKNOWN


def _first(rows: Iterable[Row]) -> Counter[str]:
    """Phase -> seconds of the cells' first processes."""
    spent: Counter[str] = Counter()
    for row in rows:
        process = row.timing.processes[:1] if row.timing is not None else ()
        spent.update(_apart(row.overhead_s, process))
    return spent


def _further(rows: Iterable[Row]) -> Counter[str]:
    """Phase -> seconds of all further processes."""
    spent: Counter[str] = Counter()
    for process in _further_processes(rows):
        spent.update(_apart(process.overhead_s or {UNKNOWN: process.seconds}, (process,)))
    return spent


def _further_processes(rows: Iterable[Row]) -> list[ProcessRecord]:
    return [process for row in rows if row.timing is not None for process in row.timing.processes[1:]]


def _apart(phases: dict[str, float], process: Sequence[ProcessRecord]) -> dict[str, float]:
    """The phases with the yardstick's seconds taken out of those of timing."""
    yardstick = min(sum(sum(each.yardstick_s) for each in process), phases.get("time", 0.0))
    if not yardstick:
        return phases
    return {**phases, "time": phases["time"] - yardstick, YARDSTICK: yardstick}


def _sentences(rows: Sequence[Row], whole: float) -> list[str]:
    processes = units.several(len(rows) + len(_further_processes(rows)), "process", "processes")
    passed = _passed_s(rows)
    lines = [f"In seconds. {processes} took {units.seconds(whole)}"]
    if passed is None:
        lines[0] += "; the rows do not tell how much time passed."
    else:
        lines[0] += f"; from the first one's start to the last one's end {units.seconds(passed)} passed."
    cached = sum(bool(row.cached) for row in rows)
    if cached:
        lines.append(f"{units.several(cached, 'cell')} read counts, shapes or accuracy from the cache.")
    return lines


def _passed_s(rows: Sequence[Row]) -> float | None:
    """Seconds from the first process's start to the last one's end, to about one; None where not recorded."""
    spans = [_span(row.started, row.overhead_s) for row in rows]
    spans += [_span(process.started, process.overhead_s) for process in _further_processes(rows)]
    known = [span for span in spans if span is not None]
    if not known or len(known) < len(spans):
        return None
    return max(end for _, end in known) - min(start for start, _ in known)


def _span(started: str | None, phases: dict[str, float]) -> tuple[float, float] | None:
    """Begin and end of a process; `started` is when it begins to measure, after the phase `start`."""
    if started is None or not phases:
        return None
    try:
        begin = datetime.fromisoformat(started).timestamp() - phases.get(START, 0.0)
    except ValueError:
        return None
    return begin, begin + sum(phases.values())
