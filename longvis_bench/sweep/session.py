"""One benchmark from options to files, for `longvis bench` and `lv.bench`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from longvis_bench.devices import resolve_device
from longvis_bench.environment import read_environment
from longvis_bench.errors import RunDirectoryError, UnknownName
from longvis_bench.records import Row, Status
from longvis_bench.report.write import restate, write_derived
from longvis_bench.runs.directory import RunDirectory, current, fresh_directory
from longvis_bench.sweep.config import read_config
from longvis_bench.sweep.counts import with_counts
from longvis_bench.sweep.execute import Outcome, refuse_reference, run_sweep
from longvis_bench.sweep.hooks import Hooked
from longvis_bench.sweep.plan import Plan, make_plan
from longvis_bench.sweep.reporter import Reporter, Silent
from longvis_bench.sweep.run_file import Invocation, invocation_of
from longvis_bench.sweep.shards import Asked, read_part, take_part

RUNS = Path("results/runs")


@dataclass(frozen=True)
class Session:
    """A checked plan and the directory of its run."""

    plan: Plan
    path: Path
    invocation: Invocation
    """The command, as stored in run.json."""
    baseline: str | None = None
    """The model that tables compare all others with."""

    def run(
        self, *, reporter: Reporter | None = None, retry: Sequence[str] = (), only_missing: bool = False
    ) -> Outcome:
        """Run what is missing, then write tables and plots.

        Arguments:
            reporter: receives every event.
            retry: statuses whose cells are run again.
            only_missing: do not run cells with a row of older code.

        Raises:
            UnknownName: `retry` has an unknown status.
        """
        known: tuple[Status, ...] = get_args(Status)
        for status in retry:
            if status not in known:
                raise UnknownName("status", status, known)
        chosen = tuple(status for status in known if status in retry)
        outcome = run_sweep(
            self.plan,
            self.path,
            invocation=self.invocation,
            reporter=Hooked(reporter or Silent(), self.path),
            retry=chosen,
            only_missing=only_missing,
        )
        length = self.plan.config.hours_for
        rows = None
        if length is not None or self.baseline is not None:
            outcome = replace(outcome, rows=tuple(self._restated(outcome.rows)))
            rows = self._restated(current(RunDirectory(self.path).rows()))
        elif outcome.was_complete and not outcome.restated and (self.path / "summary.md").exists():
            return outcome
        try:
            write_derived(self.path, rows)
        except RunDirectoryError as error:  # on a full disk the caller still shows the rows
            return replace(outcome, unwritten=error)
        return outcome

    def _restated(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with what is computed for this command and not stored."""
        from longvis_bench.report.baseline import with_baseline

        length = self.plan.config.hours_for
        found = list(rows) if length is None else restate(rows, length)
        there = any(row.cell.model == self.baseline for row in found)
        return with_baseline(found, self.baseline) if self.baseline is not None and there else found


def start(
    options: Mapping[str, Any],
    *,
    out: Path | None = None,
    fresh: bool = False,
    machine: str | None = None,
    command: str | None = None,
    shard: Asked | None = None,
    baseline: str | None = None,
) -> Session:
    """Check options and plan the sweep, without writing anything.

    Arguments:
        options: fields of SweepConfig.
        out: the run's directory; by default one named after the configuration.
        fresh: use a new numbered directory instead of resuming.
        machine: name of this machine in the results.
        command: the command line, which is stored with the run.
        shard: (2, 8) is the second of eight parts of the cells; all machines divide them in the same way.
            "auto" is the part of this task of a SLURM array.
        baseline: one of the models, which tables compare all others with.

    Raises:
        LongvisError: an option is wrong, the directory is one of the committed runs, or no cell can run.
    """
    config = read_config(options)
    if out is not None:
        refuse_reference(out)
    part = None if shard is None else read_part(shard, os.environ)
    chosen = config.chosen_devices()
    device = resolve_device(config.device) if chosen is None else chosen.names[0]
    plan = make_plan(config, read_environment(machine, device))
    if chosen is not None and len(chosen.names) > 1:
        plan = with_counts(plan)  # for the order of the cells
    path = out or RUNS / plan.config.name
    if part is not None:
        number, parts = part
        path = out or path.with_name(f"{path.name}-shard-{number}-of-{parts}")
        plan = take_part(with_counts(plan), number, parts)
    invocation = invocation_of(plan.config, command, part and f"{part[0]}/{part[1]}")
    if baseline is not None:
        from longvis_bench.report.baseline import require_baseline

        require_baseline(baseline, [planned.cell.model for planned in plan.cells])
    return Session(plan, fresh_directory(path) if fresh else path, invocation, baseline)
