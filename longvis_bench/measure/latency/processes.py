"""A cell's latency over several fresh processes: whether another is worth while, and the verdict.

Samples of one process agree with each other and not with those of the next: addresses, pages and the
machine's speed at that moment differ.  So a cell is timed in at least three processes, interleaved with those
of all other cells, and more are added until the interval over processes is narrow or the budget is spent.
"""

from __future__ import annotations

from collections.abc import Iterable

from longvis_bench import row_warnings, stats, units
from longvis_bench.phases import BUILD, COMPILE, IMPORT, START
from longvis_bench.records import Cell, NoiseRecord, ProcessRecord, Row, TimingRecord

DISTURBING_LOAD = 0.25
"""Cores that others keep busy from which on samples do not count."""
DISTURBING_STEAL = 0.05
"""Share of the time that the hypervisor takes from which on samples do not count."""
STALLED_SHARE = 0.45
"""Cores this process kept busy / its threads, under which threads waited for one another in barriers."""
MOST_PROCESSES = 12
"""A spread that this many processes leave wide is a fact about the machine."""
PATIENCE = 2.0
"""Budgets that a cell may take where processes were disturbed and it is measured again."""
ITERATIONS = 2
"""Iterations that a process takes at least: one that never counts, one that does."""


def disturbance(noise: NoiseRecord, cell: Cell) -> str | None:
    """What disturbed a process while it was timed, in words; None for nothing that is known.

    Arguments:
        noise: what was watched.
        cell: on an accelerator the host's load tells little of the device.
    """
    if cell.device != "cpu":
        return None
    if noise.load_cores is not None and noise.load_cores > DISTURBING_LOAD:
        return f"other processes kept {noise.load_cores:.2g} cores busy"
    if noise.steal is not None and noise.steal > DISTURBING_STEAL:
        return f"the hypervisor took {units.percent(noise.steal)} of the time"
    if noise.own_cores is not None and noise.own_cores < STALLED_SHARE * cell.threads:
        return f"{units.several(cell.threads, 'thread')} kept only {noise.own_cores:.2g} cores busy"
    return None


def with_process(record: TimingRecord, more: Row, seconds: float) -> TimingRecord:
    """A cell's timing with one more process; one that failed gives no samples and says why.

    Arguments:
        record: so far.
        more: what the process gave.
        seconds: all of its time.
    """
    timing = more.timing if more.status == "ok" else None
    if timing is None or not timing.processes:
        failed = ProcessRecord(samples=0, seconds=seconds, disturbed=f"{more.status}: {more.reason}")
        return record.model_copy(update={"processes": (*record.processes, failed)})
    process = timing.processes[0].model_copy(update={"seconds": seconds})
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
    """The row of a cell's first process, with the seconds that a process of timing alone would have taken."""
    timing = row.timing
    if timing is None or not timing.processes:
        return row
    seconds = sum(row.overhead_s.get(phase, 0.0) for phase in (START, IMPORT, COMPILE, BUILD, "time"))
    first = timing.processes[0].model_copy(update={"seconds": seconds})
    return _with(row, processes=(first, *timing.processes[1:]))


def is_precise(record: TimingRecord, precision: float) -> bool:
    """Whether the interval over at least three undisturbed processes is within the precision."""
    processes = record.by_process(clean=True)
    width = stats.half_width(stats.process_interval(processes), stats.across_processes(processes))
    return width is not None and width <= precision


def wants_another(row: Row, *, fewest: int, budget_s: float, precision: float) -> bool:
    """Whether a cell should be timed in one more process.

    Arguments:
        row: as it stands.
        fewest: processes that every cell gets whose iterations are short enough.
        budget_s: seconds for all timing of the cell.
        precision: wanted half-width of the interval, as a share of the median.
    """
    timing = row.timing
    if row.status != "ok" or timing is None or not timing.samples_s or fewest < 2:
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
        row: with everything that was timed.
        fewest: processes asked for; 1 is a first look, unless earlier commands timed the cell in more.
        others: spread between processes of other cells, for a cell with too few of its own.
    """
    timing = row.timing
    if timing is None or not timing.samples_s:
        return row
    processes = timing.processes
    if processes and all(process.disturbed for process in processes if process.samples):
        return _with(row, verdict="disturbed")
    if fewest < 2 and len(processes) < 2:
        return _with(row, verdict="single")
    if len(timing.by_process(clean=True)) > 2:
        return _with(
            row,
            verdict="stable" if is_precise(timing, row.settings.precision) else "noisy",
            others_spread=None,
        )
    return _with(row, verdict="noisy", others_spread=others)


def pooled_spread(rows: Iterable[Row]) -> float | None:
    """Spread between processes, root mean square over cells that have at least three; None without any."""
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
