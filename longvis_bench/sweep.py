"""Run a plan: each cell once, each row kept, the same command again resumes.

A cell whose key has a final row is not run again.  After a device or host ran out of memory, larger sizes of
the same model are skipped with that reason, and planned anew when that row is retried.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from longvis_bench.errors import RunDirectoryError
from longvis_bench.planning import Plan, Planned
from longvis_bench.privacy import without_paths
from longvis_bench.records import ACCEPTED, Row, Status
from longvis_bench.runner import Runner, interrupted_row
from longvis_bench.store import RunDirectory, check_environment, latest, read_run

INTERRUPTED = "interrupted"
AFTER_OOM = "a smaller size of this model ran out of memory"


class Reporter(Protocol):
    """Told what happens, as it happens; the progress display is one."""

    def begin(self, cells: Sequence[Planned], done: Sequence[Row]) -> None:
        """A sweep starts: the cells to run, and the rows already there."""

    def start(self, planned: Planned) -> None:
        """A cell starts."""

    def tick(self) -> None:
        """Called several times a second."""

    def finish(self, row: Row) -> None:
        """A row was stored."""

    def end(self) -> None:
        """The sweep is over, however it ended."""


class Silent:
    """The reporter of Python callers."""

    def begin(self, cells: Sequence[Planned], done: Sequence[Row]) -> None:
        """See Reporter."""

    def start(self, planned: Planned) -> None:
        """See Reporter."""

    def tick(self) -> None:
        """See Reporter."""

    def finish(self, row: Row) -> None:
        """See Reporter."""

    def end(self) -> None:
        """See Reporter."""


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to."""

    rows: tuple[Row, ...]
    """One row a cell of the plan, as far as they were run."""
    path: Path
    was_complete: bool
    """Nothing had to be run."""
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """0 where every row is a result, 1 where some cell failed, 130 after an interrupt."""
        if self.interrupted:
            return 130
        return 0 if all(row.status in ACCEPTED for row in self.rows) else 1


def run_sweep(
    plan: Plan,
    path: Path,
    *,
    command: str | None = None,
    reporter: Reporter | None = None,
    retry: Collection[Status] = (),
) -> Outcome:
    """Run what is missing of a plan into a run directory.

    Arguments:
        plan: the cells.
        path: the run's directory; made where it does not exist.
        command: the command line, kept in run.json.
        reporter: told of every step.
        retry: statuses whose cells are run again.

    Raises:
        RunDirectoryError: the directory cannot be used, or holds rows of another environment.
    """
    _refuse_reference(path)
    with RunDirectory(path) as directory:
        _check_run(plan, directory, command)
        sweep = _Sweep(plan, directory, reporter or Silent(), retry)
        interrupted = sweep.run()
    return Outcome(tuple(sweep.rows()), path, not sweep.to_run, interrupted)


def _refuse_reference(path: Path) -> None:
    parts = path.resolve().parts
    if ("results", "reference") in pairwise(parts):
        raise RunDirectoryError(
            f"{path} is a committed reference run and is never written to; choose another."
        )


def _check_run(plan: Plan, directory: RunDirectory, command: str | None) -> None:
    """Refuse rows of another environment; write run.json where there is none."""
    run = read_run(directory.path)
    if run is not None:
        check_environment(directory.path, run, plan.environment)
        return
    from longvis_bench import __version__

    directory.write_run(
        {
            "longvis": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command and without_paths(command),
            "config": _storable_config(plan),
            "environment": plan.environment.model_dump(mode="json"),
        }
    )


def _storable_config(plan: Plan) -> dict[str, object]:
    """The resolved configuration; absolute paths are cut to their last part."""
    config = plan.config.model_dump(mode="json")
    if config["weights"] is not None:
        config["weights"] = without_paths(config["weights"])
    config["models"] = [without_paths(name) for name in config["models"]]
    config["models_dirs"] = [without_paths(path) for path in config["models_dirs"]]
    return config


class _Sweep:
    """One pass over a plan."""

    def __init__(
        self, plan: Plan, directory: RunDirectory, reporter: Reporter, retry: Collection[Status]
    ) -> None:
        self._plan, self._directory, self._reporter = plan, directory, reporter
        stored = {row.key: row for row in latest(directory.rows())}
        self._attempts = {key: row.attempt for key, row in stored.items()}
        retried = {row.cell.model for row in stored.values() if row.status in retry}
        skipping = plan.config.skip_after_oom
        self._rows = {key: row for key, row in stored.items() if _is_final(row, retry, retried, skipping)}
        self.to_run = [planned for planned in plan.cells if planned.request.key not in self._rows]

    def rows(self) -> list[Row]:
        """The plan's rows that are there, in the plan's order."""
        keys = [planned.request.key for planned in self._plan.cells]
        return [self._rows[key] for key in keys if key in self._rows]

    def run(self) -> bool:
        """Run what is missing; True if the user interrupted it."""
        if not self.to_run:
            return False
        self._reporter.begin(self.to_run, self.rows())
        try:
            with Runner() as runner:
                for planned in self.to_run:
                    self._keep(self._row(planned, runner))
        except KeyboardInterrupt:
            return True
        finally:
            self._reporter.end()
        return False

    def _row(self, planned: Planned, runner: Runner) -> Row:
        request = planned.request.model_copy(
            update={
                "attempt": self._attempts.get(planned.request.key, 0) + 1,
                "predictions_path": self._directory.path / "predictions" / f"{planned.request.key}.npz",
            }
        )
        self._reporter.start(planned)
        if planned.decided is not None:
            return planned.decided.model_copy(update={"attempt": request.attempt})
        after = self._ran_out_of_memory(planned)
        if after is not None:
            reason = (
                f"{AFTER_OOM} ({after.cell.resolution} px, {after.status}); --no-skip runs it all the same."
            )
            return interrupted_row(request).model_copy(update={"reason": reason})
        try:
            return runner.run(request, self._reporter.tick)
        except KeyboardInterrupt:
            self._keep(interrupted_row(request))
            raise

    def _keep(self, row: Row) -> None:
        self._directory.append(row)
        self._rows[row.key] = row
        self._reporter.finish(row)

    def _ran_out_of_memory(self, planned: Planned) -> Row | None:
        """A stored row that says this cell cannot fit: the same condition at a smaller size did not."""
        if not self._plan.config.skip_after_oom:
            return None
        for row in self.rows():
            if row.status not in ("oom", "host_oom") or row.cell.resolution >= planned.cell.resolution:
                continue
            changes = {name: getattr(planned.cell, name) for name in _FREE_AFTER_OOM}
            if row.cell.model_copy(update=changes) == planned.cell:
                return row
        return None


_FREE_AFTER_OOM = ("resolution", "round", "weights", "weights_sha256")
"""Fields in which a cell may differ from one that ran out of memory and still be the same, but larger."""


def _is_final(row: Row, retry: Collection[Status], retried: Collection[str], skipping: bool) -> bool:
    """Whether a stored row settles its cell."""
    if row.status in retry:
        return False
    if row.status != "skipped" or row.reason is None:
        return True
    if row.reason == INTERRUPTED:
        return False
    return not (row.reason.startswith(AFTER_OOM) and (row.cell.model in retried or not skipping))
