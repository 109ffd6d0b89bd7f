"""A cell's latency over several fresh processes: when to add another process, and the verdict.

Samples of one process agree with each other but not with those of the next process, because addresses, pages
and the machine's speed at that moment differ.  So the sweep times a cell in at least three processes,
interleaved with those of all other cells, and adds more until the interval over processes is narrow enough or
the budget is spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from longvis_bench import row_warnings, stats, units
from longvis_bench.phases import BUILD, COMPILE, IMPORT, START
from longvis_bench.records import Cell, NoiseRecord, ProcessRecord, Row, TimingRecord

DISTURBING_LOAD = 0.25
"""A process's samples do not count if other processes kept more cores than this busy."""
DISTURBING_STEAL = 0.05
"""A process's samples do not count if the hypervisor took more than this share of the time."""
STALLED_SHARE = 0.45
"""Cores that a process kept busy / its threads; below this, threads waited for each other at barriers."""
MOST_PROCESSES = 12
"""Most processes per cell: a spread that is still wide after so many is a property of the machine."""
PATIENCE = 2.0
"""Multiple of the budget that a cell may take when disturbed processes are replaced."""
ITERATIONS = 2
"""Fewest iterations per process: the first, which never counts, and one sample."""

ENERGY_COLUMNS = ("energy_j_img", "power_w", "idle_power_w")


def disturbance(noise: NoiseRecord, cell: Cell) -> str | None:
    """What disturbed a process while it was timed, as text; None where no disturbance is known.

    Arguments:
        noise: what the watch recorded.
        cell: its device and threads; on an accelerator None, as the host's load hardly affects the device.
    """
    if cell.device != "cpu":
        return None
    if noise.load_cores is not None and noise.load_cores > DISTURBING_LOAD:
        return f"other processes kept {units.significant(noise.load_cores, 2)} cores busy"
    if noise.steal is not None and noise.steal > DISTURBING_STEAL:
        return f"the hypervisor took {units.percent(noise.steal)} of the time"
    if noise.own_cores is not None and noise.own_cores < STALLED_SHARE * cell.threads:
        own = units.significant(noise.own_cores, 2)
        return f"{units.several(cell.threads, 'thread')} kept only {own} cores busy"
    return None


def with_process(record: TimingRecord, more: Row, seconds: float) -> TimingRecord:
    """A cell's timing with one more process; a failed process adds its reason and no samples.

    Arguments:
        record: the timing so far.
        more: the row of the process.
        seconds: duration of the whole process.
    """
    timing = more.timing if more.status == "ok" else None
    if timing is None or not timing.processes:
        failed = ProcessRecord(
            samples=0,
            seconds=seconds,
            overhead_s=more.overhead_s,
            started=more.started,
            disturbed=f"{more.status}: {more.reason}",
        )
        return record.model_copy(update={"processes": (*record.processes, failed)})
    process = timing.processes[0].model_copy(update={"seconds": seconds, "overhead_s": more.overhead_s})
    return record.model_copy(
        update={
            "samples_s": (*record.samples_s, *timing.samples_s),
            "host_s": (*record.host_s, *timing.host_s),
            "processes": (*record.processes, process),
            "parts_s": {
                name: (*times, *timing.parts_s.get(name, ())) for name, times in record.parts_s.items()
            },
        }
    )


def with_seconds(row: Row) -> Row:
    """The row of a cell's first process, whose `seconds` are those of a process that only times."""
    timing = row.timing
    if timing is None or not timing.processes:
        return row
    seconds = sum(row.overhead_s.get(phase, 0.0) for phase in (START, IMPORT, COMPILE, BUILD, "time"))
    first = timing.processes[0].model_copy(update={"seconds": seconds})
    return _with(row, processes=(first, *timing.processes[1:]))


def without_energy(row: Row) -> Row:
    """The row of a cell that did not have the processors for itself, whose counter counted others, too."""
    reason = "cells ran side by side (--overlap), and the counter is that of all processors"
    reasons = {**row.null_reasons, **dict.fromkeys(ENERGY_COLUMNS, reason)}
    return row.model_copy(update={"energy": None, "null_reasons": reasons})


def is_precise(record: TimingRecord, precision: float) -> bool:
    """Whether the interval over at least three undisturbed processes is within the precision."""
    processes = record.by_process(clean=True)
    return len(processes) >= stats.OWN_PROCESSES and _is_within(processes, None, precision)


def _is_within(processes: Sequence[Sequence[float]], others: float | None, precision: float) -> bool:
    width = stats.latency_half_width(processes, others)
    return width is not None and width <= precision


def wants_another(row: Row, *, fewest: int, budget_s: float, precision: float) -> bool:
    """Whether a cell should be timed in one more process.

    Arguments:
        row: the cell's row so far.
        fewest: processes per cell, unless an iteration takes too long for the budget.
        budget_s: seconds for all timing of the cell.
        precision: wanted half-width of the interval, as a share of the median.
    """
    timing = row.timing
    if row.status != "ok" or timing is None or not timing.samples_s or fewest < 2 or row.cell.world > 1:
        return False
    done, clean = len(timing.processes) or 1, sum(not process.disturbed for process in timing.processes)
    latency = stats.median(timing.samples_s) or 0.0
    spent = sum(process.seconds for process in timing.processes)
    if ITERATIONS * latency > budget_s or done >= MOST_PROCESSES:
        return False
    if done < fewest or (clean < fewest and spent < PATIENCE * budget_s):
        return True
    return spent < budget_s and not is_precise(timing, precision)


def judged(row: Row, *, fewest: int, others: float | None) -> Row:
    """The row with its verdict over all processes.

    Arguments:
        row: with the timing of all processes.
        fewest: requested processes; with 1 a cell takes no spread from others.
        others: spread between processes of other cells, used for a cell with too few of its own.

    Returns:
        `disturbed` if every process was, or all but one; `single` for one process without the spread of
        others; else `stable` or `noisy`, by the interval that tables show.
    """
    timing = row.timing
    if timing is None or not timing.samples_s:
        return row
    processes = timing.processes
    if processes and all(process.disturbed for process in processes if process.samples):
        return _with(row, verdict="disturbed")
    clean = timing.by_process(clean=True)
    spread = others if len(clean) < stats.OWN_PROCESSES and not (fewest < 2 and len(processes) < 2) else None
    if len(clean) == 1 and spread is None:
        alone = not any(process.disturbed for process in processes if process.samples)
        return _with(row, verdict="single" if alone else "disturbed", others_spread=None)
    is_narrow = _is_within(clean, spread, row.settings.precision)
    return _with(row, verdict="stable" if is_narrow else "noisy", others_spread=spread)


def with_precision(row: Row) -> Row:
    """The row with the verdict and warnings of its settings' precision; `disturbed` and `single` stay."""
    timing = row.timing
    if timing is None or timing.verdict not in ("stable", "noisy"):
        return row
    is_narrow = _is_within(timing.by_process(clean=True), timing.others_spread, row.settings.precision)
    return _with(row, verdict="stable" if is_narrow else "noisy")


def pooled_spread(rows: Iterable[Row]) -> float | None:
    """Root mean square of the spread between processes, over cells with at least three; None without any."""
    spreads = [
        stats.process_spread(processes)
        for row in rows
        if row.timing is not None and len(processes := row.timing.by_process(clean=True)) > 2
    ]
    known = [spread for spread in spreads if spread is not None]
    return (sum(spread**2 for spread in known) / len(known)) ** 0.5 if known else None


def _with(row: Row, **changes: object) -> Row:
    assert row.timing is not None
    row = row.model_copy(update={"timing": row.timing.model_copy(update=changes)})
    return row.model_copy(update={"notes": row_warnings.with_latency(row)})
