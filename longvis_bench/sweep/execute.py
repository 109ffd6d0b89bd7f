"""Run a plan: each cell once; all rows are kept, and the same command resumes an interrupted run.

A cell whose key has a final row is not run again.  After a cell ran out of memory, larger sizes of the same
model are skipped with that reason, and run again when that cell is retried.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from longvis_bench import row_warnings, units
from longvis_bench.errors import HarnessFault, RunDirectoryError
from longvis_bench.isolation.runner import Runner, can_fork, interrupted_row
from longvis_bench.measure.batch_search import measure_best_batch
from longvis_bench.measure.latency.processes import (
    judged,
    pooled_spread,
    wants_another,
    with_precision,
    with_process,
    with_seconds,
    without_energy,
)
from longvis_bench.measure.latency.turns import has_turns
from longvis_bench.measure.world import world_devices
from longvis_bench.phases import WAIT
from longvis_bench.records import ACCEPTED, Cell, Request, Row, Status
from longvis_bench.runs.directory import PREDICTIONS, RunDirectory, check_environment, latest, read_run
from longvis_bench.runs.progress import (
    INTERRUPTED,
    RUNNING,
    RunningCell,
    name_of,
    read_planned,
    write_planned,
    write_running,
)
from longvis_bench.sweep.crew import Beside, Crew, shared_order
from longvis_bench.sweep.devices import Slot, slots
from longvis_bench.sweep.gpu_turns import GpuTurns, note_on_kinds
from longvis_bench.sweep.plan import Plan, Planned
from longvis_bench.sweep.reporter import Reporter, Silent
from longvis_bench.sweep.run_file import Invocation, record

AFTER_OOM = "a smaller size of this model ran out of memory"
NO_FORK = "This system cannot fork: every cell starts a new interpreter, which takes some seconds."


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep."""

    rows: tuple[Row, ...]
    """One row per cell of the plan, for the cells that were run."""
    path: Path
    was_complete: bool
    """Whether nothing had to be run."""
    interrupted: bool
    faults: tuple[HarnessFault, ...] = ()
    """Internal errors of longvis; their cells have no row, and the same command runs them again."""
    restated: bool = False
    """Whether existing rows changed without a measurement, because the command asks for another precision or
    says the order of the classes."""
    unwritten: RunDirectoryError | None = None
    """The error of writing tables and figures, after all rows were written."""

    @property
    def exit_code(self) -> int:
        """0 if every row is a result, 1 if a cell failed, 130 if interrupted, 70 after an internal error."""
        if self.interrupted:
            return 130
        if self.faults:
            return 70
        return 0 if all(row.status in ACCEPTED for row in self.rows) else 1


def run_sweep(
    plan: Plan,
    path: Path,
    *,
    invocation: Invocation,
    reporter: Reporter | None = None,
    retry: Collection[Status] = (),
    only_missing: bool = False,
) -> Outcome:
    """Run the cells of a plan that have no row in a run directory.

    Arguments:
        plan: the cells.
        path: the run's directory, which is created if needed.
        invocation: the command, which is stored in run.json.
        reporter: receives every event.
        retry: statuses whose cells are run again.
        only_missing: do not run cells with a row of older code.

    Raises:
        RunDirectoryError: the directory cannot be used, or has rows of another environment.
    """
    refuse_reference(path)
    with RunDirectory(path) as directory:
        run = read_run(path)
        if run is not None:
            check_environment(path, run, plan.environment)
        _refuse_other_parts(path, plan)
        write_planned(directory, plan.listed)
        record(directory, run, invocation, plan.environment)
        sweep = _Sweep(plan, directory, reporter or Silent(), retry, only_missing)
        was_complete = sweep.is_complete
        interrupted = sweep.run()
    return Outcome(
        tuple(sweep.rows()), path, was_complete, interrupted, tuple(sweep.faults), restated=sweep.restated
    )


def _refuse_other_parts(path: Path, plan: Plan) -> None:
    """Raise if a directory has a part of the same sweep that was divided into another number of parts.

    Raises:
        RunDirectoryError: it has.
    """
    if plan.part is None:
        return
    number, parts = plan.part.part, plan.part.parts
    for other in read_planned(path):
        if other.sweep == plan.part.sweep and other.parts not in (1, parts):
            raise RunDirectoryError(
                f"{path} holds shard {other.part}/{other.parts} of this sweep, whose cells are others than "
                f"those of {number}/{parts}; give --shard {other.part}/{other.parts}, or another --out."
            )


def refuse_reference(path: Path) -> None:
    """Raise if a run would be written among the committed reference runs.

    Raises:
        RunDirectoryError: it would.
    """
    parts = path.resolve().parts
    if ("results", "reference") in pairwise(parts):
        raise RunDirectoryError(
            f"{path} is a committed reference run, which is never changed; give another --out."
        )


class _Sweep:
    """One execution of a plan."""

    def __init__(
        self,
        plan: Plan,
        directory: RunDirectory,
        reporter: Reporter,
        retry: Collection[Status],
        only_missing: bool,
    ) -> None:
        self._plan, self._directory, self._reporter = plan, directory, reporter
        chosen = plan.config.chosen_devices()
        device = plan.config.device
        self._slots = [Slot(device, device, device)] if chosen is None else slots(chosen)
        self._gpu_turns = {
            slot.name: GpuTurns(*world_devices(slot.here, plan.config.world)) for slot in self._slots
        }
        self._crew = Crew(self._slots, _open_runner)
        self._room: Path | None = None
        self._running: dict[str, RunningCell] = {}
        self._neighbours: dict[str, int] = {}
        self.faults: list[HarnessFault] = []
        stored = {row.key: row for row in latest(directory.rows())}
        self._attempts = {key: row.attempt for key, row in stored.items()}
        retried = {row.cell.model for row in stored.values() if row.status in retry}
        skipping = plan.config.skip_after_oom
        self._rows = {key: row for key, row in stored.items() if _is_final(row, retry, retried, skipping)}
        if only_missing:
            self._settle_by_cell()
        self.restated = self._restate()
        self.to_run = [planned for planned in plan.cells if planned.request.key not in self._rows]
        self._changes = _changes(self.to_run, stored)
        self._out_of_memory: dict[str, dict[str, Row]] = {}
        for row in self.rows():
            self._learn(row)

    def _settle_by_cell(self) -> None:
        """Accept rows of the same cell whose keys differ in the code's hash; a run has one environment."""
        by_cell = {row.cell.identity(): row for row in self._rows.values()}
        for planned in self._plan.cells:
            row = by_cell.get(planned.cell.identity())
            if row is not None:
                self._rows.setdefault(planned.request.key, row)

    def _restate(self) -> bool:
        """Append existing rows anew where this command changes what they warn of; whether there are any."""
        before = dict(self._rows)
        for planned in self._plan.cells:
            row = self._rows.get(planned.request.key)
            if row is not None:
                self._rows[planned.request.key] = as_asked(row, planned.request)
        changed = [row for key, row in self._rows.items() if row is not before[key]]
        for row in changed:
            self._directory.append(row)
        return bool(changed)

    def rows(self) -> list[Row]:
        """The existing rows of the plan, in the plan's order."""
        keys = [planned.request.key for planned in self._plan.cells]
        return [self._rows[key] for key in keys if key in self._rows]

    @property
    def is_complete(self) -> bool:
        """Whether no cell has to be run or timed again."""
        return not self.to_run and not self._wanting()

    def run(self) -> bool:
        """Run what is missing; return whether the user interrupted it."""
        if self.is_complete:
            return False
        try:
            for sentence in filter(None, [note_on_kinds(self._plan.config.device), *self._changes]):
                self._reporter.note(sentence)
            self._reporter.begin(self.to_run, self.rows())
            if not can_fork():
                self._reporter.note(NO_FORK)
            with self._room_to_time():
                self._pass(self._ordered(), self._run_one)
                while wanting := self._wanting():
                    self._pass(wanting, self._time_again)
            self._judge()
        except KeyboardInterrupt:
            return True
        finally:
            self._reporter.end()
            self._directory.remove(RUNNING)
        return False

    @contextmanager
    def _room_to_time(self) -> Iterator[None]:
        """While inside, cells on several CPU devices time one after the other, unless told to overlap."""
        config = self._plan.config
        if len(self._slots) == 1 or self._slots[0].here != "cpu" or config.overlap or not has_turns():
            yield
            return
        with TemporaryDirectory(prefix="longvis-turns-", ignore_cleanup_errors=True) as folder:
            self._room = Path(folder)
            yield

    def _ordered(self) -> list[Planned]:
        """The cells to run, in the order in which they start."""
        if len(self._slots) == 1:
            return self.to_run
        seconds = dict(zip((cell.request.key for cell in self._plan.cells), self._plan.seconds, strict=True))
        measured = {row.cell.model for row in self.rows()}
        return shared_order(self.to_run, [seconds[cell.request.key] for cell in self.to_run], measured)

    def _pass(self, cells: Sequence[Planned], work: Callable[[Planned, Runner, Slot], object]) -> None:
        """Work on each cell once, with new servers, because forks of one server share its addresses."""
        if len(self._slots) > 1:
            self._crew.work_off(cells, work, self._reporter.tick)
            return
        with _open_runner(self._slots[0]) as runner:
            for planned in cells:
                work(planned, runner, self._slots[0])

    @contextmanager
    def _on(self, planned: Planned, slot: Slot) -> Iterator[Callable[[], object]]:
        """While inside, the cell has the device, and `longvis status` shows it as running.

        Yields:
            What to call several times a second.
        """
        key = planned.request.key
        started = datetime.now(UTC).isoformat(timespec="seconds")
        cell = RunningCell(key=key, name=name_of(planned.cell), device=slot.name, started=started)
        reporter = self._reporter if len(self._slots) == 1 else Beside(self._reporter, self._crew)
        with self._gpu_turns[slot.name].turn(reporter):
            with self._crew.mutex:
                self._running[key] = cell
                for running in self._running:
                    self._neighbours[running] = max(self._neighbours.get(running, 0), len(self._running) - 1)
                write_running(self._directory.path, self._running.values())
            try:
                yield reporter.tick
            finally:
                with self._crew.mutex:
                    del self._running[key]  # the file says so when the next cell starts

    def _run_one(self, planned: Planned, runner: Runner, slot: Slot) -> None:
        try:
            self._keep(self._row(planned, runner, slot))
        except HarnessFault as fault:
            self._fail(fault, f"internal error at {_named(planned.cell)}: {fault}; the cell has no row.")

    def _fail(self, fault: HarnessFault, sentence: str) -> None:
        with self._crew.mutex:
            self.faults.append(fault)
            self._reporter.note(sentence)

    def _request(self, planned: Planned, slot: Slot) -> Request:
        request = planned.request
        return request.model_copy(
            update={
                "device": slot.device,
                "turns": self._room,
                "attempt": self._attempts.get(request.key, 0) + 1,
                "predictions_path": self._directory.path / PREDICTIONS / f"{request.key}.npz",
                "process_budget_s": request.settings.budget_s / self._plan.config.repeats,
            }
        )

    def _row(self, planned: Planned, runner: Runner, slot: Slot) -> Row:
        request = self._request(planned, slot)
        with self._crew.mutex:
            self._reporter.start(planned)
            after = self._ran_out_of_memory(planned)
        if planned.decided is not None:
            return planned.decided.model_copy(update={"attempt": request.attempt})
        if after is not None:
            reason = f"{AFTER_OOM} ({after.cell.resolution} px, {after.status}); --no-skip runs it anyway."
            return interrupted_row(request).model_copy(update={"reason": reason})
        try:
            with self._on(planned, slot) as tick:
                if request.cell.batch_auto:
                    return self._placed(measure_best_batch(runner.run, request, tick), slot)
                return self._placed(runner.run(request, tick), slot)
        except KeyboardInterrupt:
            self._keep(interrupted_row(request))
            raise

    def _placed(self, row: Row, slot: Slot) -> Row:
        """A row with what only this process knows of its device: the index, and how many ran beside it."""
        index = row.gpu_index if slot.gpu_index is None else slot.gpu_index
        beside = self._neighbours.get(row.key, 0)
        row = row.model_copy(update={"gpu_index": index, "neighbours": beside})
        shared = row.energy is not None and beside and slot.here == "cpu" and self._room is None
        return without_energy(row) if shared else row

    def _keep(self, row: Row) -> None:
        with self._crew.mutex:
            self._store(with_seconds(row))
            self._reporter.finish(self._rows[row.key])

    def _store(self, row: Row) -> None:
        row = judged(row, fewest=self._plan.config.repeats, others=None)
        self._directory.append(row)
        self._rows[row.key] = row
        self._learn(row)

    def _wanting(self) -> list[Planned]:
        """Cells that should be timed in one more process; rows of older code are not changed."""
        config = self._plan.config
        found = []
        for planned in self._plan.cells:
            row = self._rows.get(planned.request.key)
            if row is None or row.key != planned.request.key or row.code != planned.request.code:
                continue
            budget, precision = planned.request.settings.budget_s, planned.request.settings.precision
            if wants_another(row, fewest=config.repeats, budget_s=budget, precision=precision):
                found.append(planned)
        return found

    def _time_again(self, planned: Planned, runner: Runner, slot: Slot) -> None:
        """Add a process to a cell's row; if it fails, the row stays and records the failed process."""
        row = self._rows[planned.request.key]
        assert row.timing is not None
        request = self._request(planned, slot).model_copy(
            update={"cell": row.cell, "attempt": row.attempt, "time_only": True, "predictions_path": None}
        )
        with self._on(planned, slot) as tick:
            start = monotonic()
            try:
                more = runner.run(request, tick)
            except HarnessFault as fault:
                sentence = f"internal error at {_named(planned.cell)}: {fault}; its row is kept as it was."
                self._fail(fault, sentence)
                more = row.model_copy(
                    update={"status": "error", "reason": str(fault), "timing": None, "overhead_s": {}}
                )
            seconds = monotonic() - start - more.overhead_s.get(WAIT, 0.0)
        timing = with_process(row.timing, more, seconds)
        beside = max(row.neighbours, self._neighbours.get(row.key, 0))
        with self._crew.mutex:
            self._store(row.model_copy(update={"timing": timing, "neighbours": beside}))
            self._reporter.refine(self._rows[row.key])

    def _judge(self) -> None:
        """Judge cells with too few processes by the spread between processes of the other cells."""
        others = pooled_spread(self.rows())
        for planned in self._plan.cells:
            row = self._rows.get(planned.request.key)
            if row is None or row.code != planned.request.code:
                continue
            final = judged(row, fewest=self._plan.config.repeats, others=others)
            if final != row:
                self._directory.append(final)
                self._rows[row.key] = final

    def _ran_out_of_memory(self, planned: Planned) -> Row | None:
        """The row of the same conditions at a smaller size that ran out of memory; None if there is none."""
        if not self._plan.config.skip_after_oom:
            return None
        found = self._out_of_memory.get(planned.cell.identity(without=_FREE_AFTER_OOM), {}).values()
        smaller = [row for row in found if row.cell.resolution < planned.cell.resolution]
        return min(smaller, key=lambda row: row.cell.resolution, default=None)

    def _learn(self, row: Row) -> None:
        """Remember where memory did not suffice, so that no cell has to look through all rows."""
        alike = self._out_of_memory.setdefault(row.cell.identity(without=_FREE_AFTER_OOM), {})
        if row.status in ("oom", "host_oom"):
            alike[row.key] = row
        else:
            alike.pop(row.key, None)


def _open_runner(slot: Slot) -> Runner:
    """What runs the cells of a device."""
    if not slot.variables and not slot.processors:
        return Runner()
    return Runner(variables=slot.variables, processors=slot.processors)


def as_asked(row: Row, request: Request) -> Row:
    """An existing row with the precision and the doubt about the order of classes of a new command.

    Neither changes what was measured; both change what the row warns of, and the precision its verdict.

    Returns:
        The same object where nothing differs.
    """
    settings, accuracy = row.settings, row.accuracy
    if row.timing is not None and settings.precision != request.settings.precision:
        settings = settings.model_copy(update={"precision": request.settings.precision})
    if accuracy is not None and accuracy.class_doubt != request.class_doubt:
        accuracy = accuracy.model_copy(update={"class_doubt": request.class_doubt})
    if settings is row.settings and accuracy is row.accuracy:
        return row
    row = row.model_copy(update={"settings": settings, "accuracy": accuracy})
    row = with_precision(row)
    return row.model_copy(update={"notes": row_warnings.renewed(row, {row_warnings.CLASS_ORDER.code})})


_FREE_AFTER_OOM = ("resolution", "round", "weights", "weights_sha256")
"""Fields that are ignored when a cell is compared with a smaller one that ran out of memory."""


def _changes(to_run: Sequence[Planned], stored: Mapping[str, Row]) -> list[str]:
    """One sentence per cause on cells that were measured before under another key."""
    before = {_condition(row.cell): row for row in stored.values()}
    causes: dict[str, list[str]] = {}
    for planned in to_run:
        row = before.get(_condition(planned.cell))
        if row is not None and planned.request.key not in stored:
            causes.setdefault(_cause(planned, row), []).append(_named(planned.cell))
    return [
        f"{units.several(len(names), 'cell')} measured again because {cause} changed: "
        f"{units.listing(names, 4)}."
        for cause, names in causes.items()
    ]


def _condition(cell: Cell) -> tuple[object, ...]:
    """The conditions by which a reader of a table identifies a cell."""
    return tuple(getattr(cell, name) for name in _CONDITION)


_CONDITION = ("model", "resolution", "batch_size", "mode", "dtype", "device", "round")


def _cause(planned: Planned, row: Row) -> str:
    """Differences between a planned cell and a stored row: `the code`, `threads (1 -> 2), the weights`."""
    old, new = row.cell.model_dump(mode="json"), planned.cell.model_dump(mode="json")
    differing = [name for name in new if new[name] != old[name]]
    causes = [f"{name} ({old[name]} -> {new[name]})" for name in differing if not name.startswith("weights")]
    if any(name.startswith("weights") for name in differing):
        causes.append("the weights")
    if row.code != planned.request.code:
        causes.append("the measuring code" + ("" if differing else " (--only-missing keeps the old rows)"))
    return ", ".join(causes) or "the environment"


def _named(cell: Cell) -> str:
    return f"{cell.model} {cell.resolution} px"


def _is_final(row: Row, retry: Collection[Status], retried: Collection[str], skipping: bool) -> bool:
    """Whether a cell with this stored row is not run again."""
    if row.status in retry:
        return False
    if row.status != "skipped" or row.reason is None:
        return True
    if row.reason == INTERRUPTED:
        return False
    return not (row.reason.startswith(AFTER_OOM) and (row.cell.model in retried or not skipping))
