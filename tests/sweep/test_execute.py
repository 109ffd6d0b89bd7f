"""A sweep keeps every row, resumes, retries and skips."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import save_file

import longvis_bench.sweep.execute as sweep_module
import longvis_bench.sweep.plan as planning_module
from longvis_bench import row_warnings
from longvis_bench.errors import HarnessFault, LongvisError, RunDirectoryError
from longvis_bench.records import AccuracyRecord, ProcessRecord, Request, Row, Status, TimingRecord
from longvis_bench.registry.registry import Registry
from longvis_bench.runs.directory import cannot_write, current, latest, read_rows
from longvis_bench.runs.merge import merge_runs, read_runs, side_by_side
from longvis_bench.runs.progress import RunningCell, read_running, states
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.reporter import Silent
from longvis_bench.sweep.run_file import invocation_of, read_replay
from longvis_bench.sweep.session import Session, start
from longvis_bench.weights.resolving import WeightFile

FAMILIES = Path(__file__).parents[1] / "families"

WEIGHTS = WeightFile(path=Path("w.safetensors"), name="w.safetensors", sha256="0" * 64)

Verdict = Any  # a staticmethod of a Request that gives a Status


class FakeRunner:
    """Answers at once with the status a test wants."""

    verdict: Verdict = staticmethod(lambda request: "ok")
    asked: ClassVar[list[Request]] = []

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, request: Request, on_tick: Callable[[], object]) -> Row:
        FakeRunner.asked.append(request)
        status = FakeRunner.verdict(request)
        return Row(
            key=request.key, attempt=request.attempt, code=request.code, cell=request.cell, status=status
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, no_figures: None) -> type[FakeRunner]:
    monkeypatch.setattr(sweep_module, "Runner", FakeRunner)
    monkeypatch.setattr(FakeRunner, "asked", [])
    monkeypatch.setattr(FakeRunner, "verdict", staticmethod(lambda request: "ok"))
    return FakeRunner


def session(*sizes: int, **options: Any) -> Session:
    options = {
        "models": ("moody-fine",),
        "resolutions": sizes,
        "models_dirs": (FAMILIES,),
        "device": "cpu",
    } | options
    return start(options, out=Path("run"))


def test_every_cell_becomes_a_row(fake: type[FakeRunner]) -> None:
    outcome = session(64, 72, 128).run()
    assert [(row.cell.resolution, row.status) for row in outcome.rows] == [
        (64, "ok"),
        (72, "illegal_size"),
        (128, "ok"),
    ]
    assert outcome.exit_code == 0
    assert read_rows(Path("run")) == list(outcome.rows)


def test_the_same_command_again_measures_nothing(fake: type[FakeRunner]) -> None:
    session(64, 128).run()
    again = session(64, 128).run()
    assert again.was_complete
    assert len(fake.asked) == 2
    assert len(again.rows) == 2


def timed(request: Request, *levels: float) -> TimingRecord:
    made = tuple(ProcessRecord(samples=8, seconds=request.settings.budget_s) for _ in levels)
    taken = tuple(level for level in levels for _ in range(8))
    return TimingRecord(samples_s=taken, warmup_s=(), verdict="noisy", processes=made)


def test_another_precision_judges_the_rows_that_exist_anew(
    fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeRunner.run

    def with_timing(self: FakeRunner, request: Request, on_tick: Callable[[], object]) -> Row:
        row = answer(self, request, on_tick)
        timing = timed(request, 1.0, 1.01, 1.0)
        return row.model_copy(update={"timing": timing, "settings": request.settings})

    monkeypatch.setattr(FakeRunner, "run", with_timing)

    def verdict(precision: float) -> tuple[str, list[str]]:
        (row,) = session(64, precision=precision, metrics=("time",)).run().rows
        assert [row] == latest(read_rows(Path("run")))
        assert row.timing is not None
        assert (row.timing.verdict in Path("run/summary.csv").read_text()) is True
        return row.timing.verdict, [note.code for note in row.notes]

    assert verdict(0.01) == ("noisy", ["noisy"])
    assert verdict(0.02) == ("stable", [])
    assert verdict(0.01) == ("noisy", ["noisy"])
    assert len(fake.asked) == 1, "nothing is measured again"


def test_a_row_forgets_the_doubt_about_its_classes_when_their_order_is_said(
    fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeRunner.run
    doubt: dict[str | None, str | None]
    doubt = {None: "the class folders are numbered alphabetically", "sorted": None}
    monkeypatch.setattr(planning_module, "class_doubt", lambda config, data: doubt[config.class_order])
    monkeypatch.setattr(planning_module, "shipped_weights", lambda *_: WEIGHTS)

    def with_accuracy(self: FakeRunner, request: Request, on_tick: Callable[[], object]) -> Row:
        found = AccuracyRecord(
            correct_top1=900,
            correct_top5=None,
            images=1000,
            dataset="d",
            weights="w",
            class_doubt=request.class_doubt,
        )
        row = answer(self, request, on_tick).model_copy(update={"accuracy": found})
        return row.model_copy(update={"notes": row_warnings.of(row)})

    monkeypatch.setattr(FakeRunner, "run", with_accuracy)

    def warned(order: str | None) -> bool:
        (row,) = session(64, class_order=order).run().rows
        assert [row] == latest(read_rows(Path("run")))
        assert row.accuracy is not None
        assert (row.accuracy.class_doubt is not None) == bool(row.notes)
        assert ("class_order" in Path("run/summary.csv").read_text()) == bool(row.notes)
        return bool(row.notes)

    assert [warned(order) for order in (None, "sorted", None)] == [True, False, True]
    assert len(fake.asked) == 1


def test_a_wider_sweep_measures_what_is_missing(fake: type[FakeRunner]) -> None:
    session(64).run()
    outcome = session(64, 128).run()
    assert [request.cell.resolution for request in fake.asked] == [64, 128]
    assert len(outcome.rows) == 2


def test_larger_sizes_are_skipped_after_an_oom(fake: type[FakeRunner]) -> None:
    fake.verdict = staticmethod(lambda request: "oom" if request.cell.resolution == 128 else "ok")
    outcome = session(64, 128, 256).run()
    assert [row.status for row in outcome.rows] == ["ok", "oom", "skipped"]
    assert "128 px, oom" in (outcome.rows[2].reason or "")
    assert outcome.exit_code == 0


def test_no_skip_runs_them_all_the_same(fake: type[FakeRunner]) -> None:
    fake.verdict = staticmethod(lambda request: "oom" if request.cell.resolution == 128 else "ok")
    outcome = session(64, 128, 256, skip_after_oom=False).run()
    assert [row.status for row in outcome.rows] == ["ok", "oom", "ok"]


def test_retrying_an_oom_plans_what_was_skipped_anew(fake: type[FakeRunner]) -> None:
    fake.verdict = staticmethod(lambda request: "oom" if request.cell.resolution == 128 else "ok")
    session(64, 128, 256).run()
    fake.verdict = staticmethod(lambda request: "ok")
    outcome = session(64, 128, 256).run(retry=["oom"])
    assert [(row.status, row.attempt) for row in outcome.rows] == [("ok", 1), ("ok", 2), ("ok", 2)]
    assert len(read_rows(Path("run"))) == 5


def test_no_skip_later_runs_what_was_skipped(fake: type[FakeRunner]) -> None:
    fake.verdict = staticmethod(lambda request: "oom" if request.cell.resolution == 128 else "ok")
    session(64, 128, 256).run()
    outcome = session(64, 128, 256, skip_after_oom=False).run()
    assert [row.status for row in outcome.rows] == ["ok", "oom", "ok"]


def test_changed_code_measures_again_and_tables_show_the_new_row(
    fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    session(64).run()
    monkeypatch.setattr(planning_module, "code_hash", lambda variant: "changed")
    fake.verdict = staticmethod(lambda request: "timeout")
    session(64).run()
    assert [row.status for row in read_rows(Path("run"))] == ["ok", "timeout"]
    assert [row.status for row in current(read_rows(Path("run")))] == ["timeout"]


def test_an_absolute_model_path_is_not_stored(fake: type[FakeRunner], tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("def build(*, resolution, num_classes, in_chans=3): ...\n")
    outcome = start(
        {"models": (f"{file}:build",), "resolutions": (64,), "device": "cpu"}, out=Path("run")
    ).run()
    assert outcome.rows[0].cell.model == "net.py:build"
    assert fake.asked[0].model == f"{file}:build"
    for stored in Path("run").rglob("*.*"):
        if stored.is_file():
            assert str(tmp_path).encode() not in stored.read_bytes(), stored


def test_failures_end_with_exit_code_1(fake: type[FakeRunner]) -> None:
    for status in ("error", "crashed", "invalid", "timeout", "missing_dependency"):
        fake.verdict = staticmethod(lambda request, status=status: status)
        assert session(64).run(retry=["error", "crashed", "invalid", "timeout"]).exit_code == 1


def test_an_interrupt_keeps_its_row_and_the_next_run_goes_on(fake: type[FakeRunner]) -> None:
    def interrupt(request: Request) -> Status:
        if request.cell.resolution == 128:
            raise KeyboardInterrupt
        return "ok"

    fake.verdict = staticmethod(interrupt)
    outcome = session(64, 128, 256).run()
    assert outcome.interrupted
    assert outcome.exit_code == 130
    assert [(row.status, row.reason) for row in outcome.rows] == [("ok", None), ("skipped", "interrupted")]
    assert (Path("run") / "summary.md").exists()
    fake.verdict = staticmethod(lambda request: "ok")
    assert [row.status for row in session(64, 128, 256).run().rows] == ["ok"] * 3


def test_another_environment_is_refused(fake: type[FakeRunner]) -> None:
    session(64).run()
    run = json.loads((Path("run") / "run.json").read_text())
    run["environment"]["versions"]["torch"] = "0.0"
    (Path("run") / "run.json").write_text(json.dumps(run))
    with pytest.raises(RunDirectoryError, match=r"versions.*choose another --out"):
        session(64, 128).run()


def test_reference_runs_are_never_written_to(fake: type[FakeRunner]) -> None:
    with pytest.raises(RunDirectoryError, match="committed reference run"):
        start(
            {"models": ("vit-n",), "resolutions": (64,)}, out=Path("results/reference/m/r")
        )  # by --dry-run, too


def test_run_json_replays(fake: type[FakeRunner]) -> None:
    first = session(64, 128).run()
    config = _invocations("run")[0]["config"]
    config["models_dirs"] = [str(FAMILIES)]
    again = start(config, out=Path("again")).run()
    assert [row.key for row in again.rows] == [row.key for row in first.rows]


def _invocations(run: str) -> list[dict[str, Any]]:
    content = json.loads((Path(run) / "run.json").read_text())
    return list(content["invocations"])


def test_nothing_stored_names_a_folder(fake: type[FakeRunner], tmp_path: Path) -> None:
    session(64).run()
    for file in Path("run").rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file
            assert str(FAMILIES).encode() not in file.read_bytes(), file


def test_merging_keeps_the_later_row_and_counts(fake: type[FakeRunner]) -> None:
    options: dict[str, Any] = {"models": ("moody-fine",), "models_dirs": (FAMILIES,), "device": "cpu"}
    start(options | {"resolutions": (64, 128)}, out=Path("a")).run()
    fake.verdict = staticmethod(lambda request: "timeout")
    start(options | {"resolutions": (128, 256)}, out=Path("b")).run()
    counts = merge_runs([Path("a"), Path("b")], Path("c"))
    assert [(len(run.rows), run.replaced, run.earlier) for run in counts] == [(1, 1, 0), (2, 0, 0)]
    merged = {row.cell.resolution: row.status for row in read_rows(Path("c"))}
    assert merged == {64: "ok", 128: "timeout", 256: "timeout"}
    with pytest.raises(RunDirectoryError, match="is a run already"):
        merge_runs([Path("a")], Path("c"))


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_signals_end_a_real_sweep_in_good_order(number: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longvis_bench", "bench", "--models", "moody-hangs", "--res", "64"]
    command += ["--models-dir", str(FAMILIES), "--out", "run", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    deadline = time.monotonic() + 60
    while not _worker_is_running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    rows = read_rows(tmp_path / "run")
    assert [(row.status, row.reason) for row in rows] == [("skipped", "interrupted")]
    assert "Interrupted" in output


def _worker_is_running(parent: int) -> bool:
    import psutil

    return len(psutil.Process(parent).children(recursive=True)) >= 2


def test_changed_code_is_named_as_the_cause(fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    session(64, 128).run()
    monkeypatch.setattr(planning_module, "code_hash", lambda variant: "changed")
    listener = Listener()
    session(64, 128, 256).run(reporter=listener)
    assert listener.notes == [
        "2 cells measured again because the measuring code (--only-missing keeps the old rows) "
        "changed: moody-fine 64 px, moody-fine 128 px."
    ]


def test_changed_weights_and_conditions_are_named_as_the_cause(fake: type[FakeRunner]) -> None:
    session(64).run()
    listener = Listener()
    model = Registry([FAMILIES]).find("moody-fine").build(resolution=64, num_classes=10)
    save_file(model.state_dict(), "w.safetensors")
    session(64, weights=Path("w.safetensors"), seed=3).run(reporter=listener)
    assert listener.notes == [
        "1 cell measured again because seed (0 -> 3), the weights changed: moody-fine 64 px."
    ]
    assert len(fake.asked) == 2


def test_what_is_retried_or_new_has_not_changed(fake: type[FakeRunner]) -> None:
    fake.verdict = staticmethod(lambda request: "timeout")
    session(64).run()
    listener = Listener()
    session(64, 128).run(reporter=listener, retry=["timeout"])
    assert listener.notes == []
    assert len(fake.asked) == 3


def test_only_missing_fills_the_holes_of_an_old_run(
    fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.verdict = staticmethod(lambda request: "timeout" if request.cell.resolution == 128 else "ok")
    session(64, 128).run()
    monkeypatch.setattr(planning_module, "code_hash", lambda variant: "changed")
    fake.verdict = staticmethod(lambda request: "ok")
    outcome = session(64, 128, 256).run(only_missing=True)
    assert [request.cell.resolution for request in fake.asked] == [64, 128, 256]
    assert [row.status for row in outcome.rows] == ["ok", "timeout", "ok"]
    outcome = session(64, 128, 256).run(only_missing=True, retry=["timeout"])
    assert [row.status for row in outcome.rows] == ["ok", "ok", "ok"]
    assert [request.cell.resolution for request in fake.asked[3:]] == [128]


def test_only_missing_does_not_take_another_cells_row(fake: type[FakeRunner]) -> None:
    session(64).run()
    session(64, seed=1).run(only_missing=True)
    assert [request.cell.seed for request in fake.asked] == [0, 1]


def test_shards_are_disjoint_and_together_all(fake: type[FakeRunner]) -> None:
    options: dict[str, Any] = {
        "models": ("moody-fine", "moody-nan"),
        "resolutions": (64, 128, 256),
        "models_dirs": (FAMILIES,),
        "device": "cpu",
        "metrics": ("count",),
    }
    whole = [planned.request.key for planned in start(options).plan.cells]
    parts = [start(options, shard=(number, 4)) for number in range(1, 5)]
    keys = [[planned.request.key for planned in part.plan.cells] for part in parts]
    assert sorted(key for part in keys for key in part) == sorted(whole)
    assert [len(part) for part in keys] == [2, 2, 1, 1]
    assert len({part.path for part in parts}) == 4
    for part in parts:
        part.run()
    found = merge_runs([part.path for part in parts], Path("whole"))
    assert sum(len(run.rows) for run in found) == 6
    assert sorted(row.key for row in read_rows(Path("whole"))) == sorted(whole)
    again = start(options, out=Path("whole")).run()
    assert again.was_complete


@pytest.mark.parametrize(
    ("shard", "words"), [((5, 4), "no shard 5 of 4"), ((0, 4), "no shard"), ((3, 4), "empty")]
)
def test_shards_that_cannot_be(shard: tuple[int, int], words: str) -> None:
    options: dict[str, Any] = {"models": ("vit-n",), "resolutions": (64, 128), "device": "cpu"}
    with pytest.raises(LongvisError, match=words):
        start(options, shard=shard)


def test_a_directory_holds_parts_of_one_division_only(fake: type[FakeRunner]) -> None:
    """A task that is submitted again alone counts itself as 1/1, which would measure the whole sweep."""
    options: dict[str, Any] = {"models": ("vit-n",), "resolutions": (64, 128, 256), "device": "cpu"}
    start(options, out=Path("run"), shard=(1, 3)).run()
    with pytest.raises(RunDirectoryError, match="holds shard 1/3 of this sweep"):
        start(options, out=Path("run"), shard=(1, 1)).run()
    start(options, out=Path("run"), shard=(2, 3)).run()
    assert len(read_rows(Path("run"))) == 2
    start(options, out=Path("run")).run()
    assert len(read_rows(Path("run"))) == 3


def test_a_finished_run_runs_nothing(fake: type[FakeRunner]) -> None:
    seen: list[list[RunningCell]] = []

    def looks(request: Request) -> Status:
        seen.append(read_running(Path("run")))
        return "ok"

    fake.verdict = staticmethod(looks)
    session(64, 128).run()
    assert [[cell.name for cell in cells] for cells in seen] == [
        [f"moody-fine {size} px, fp32"] for size in (64, 128)
    ]
    assert not Path("run/running.json").exists()
    (state,) = states(Path("run"))
    assert (state.done, state.left, state.running) == (2, 0, ())


def test_every_different_command_is_kept_and_the_last_replays(fake: type[FakeRunner]) -> None:
    session(64).run()
    session(64).run()
    session(64, 128).run()
    kept = _invocations("run")
    assert [invocation["config"]["resolutions"] for invocation in kept] == [[64], [64, 128]]
    text = Path("run/run.json").read_text()
    assert read_replay(text, "run.json", {"models_dirs": (FAMILIES,)})["resolutions"] == [64, 128]


def test_a_path_that_is_not_stored_is_asked_for_on_replay(tmp_path: Path) -> None:
    inside = invocation_of(_config(weights=tmp_path / "inside" / "a.safetensors"), None)
    assert (inside.config["weights"], inside.cut) == ("inside/a.safetensors", ())
    outside = invocation_of(_config(weights=tmp_path.parent / "b.safetensors"), None)
    assert (outside.config["weights"], outside.cut) == ("b.safetensors", ("weights",))
    text = json.dumps({"schema": 2, "environment": {}, "invocations": [asdict(outside)]})
    with pytest.raises(LongvisError, match="give --weights again"):
        read_replay(text, "run.json", {})
    assert read_replay(text, "run.json", {"weights": Path("b")})["weights"] == "b.safetensors"


def _config(**options: Any) -> SweepConfig:
    return SweepConfig.model_validate(options)


def test_a_fault_of_ours_is_no_row_and_stops_nothing(fake: type[FakeRunner]) -> None:
    def fault(request: Request) -> Status:
        if request.cell.resolution == 128:
            raise HarnessFault("Traceback ...\nKeyError: 'x'")
        return "ok"

    fake.verdict = staticmethod(fault)
    listener = Listener()
    outcome = session(64, 128, 256).run(reporter=listener)
    assert [(row.cell.resolution, row.status) for row in outcome.rows] == [(64, "ok"), (256, "ok")]
    assert outcome.exit_code == 70
    assert listener.notes == ["internal error at moody-fine 128 px: KeyError: 'x'; the cell has no row."]
    fake.verdict = staticmethod(lambda request: "ok")
    assert len(session(64, 128, 256).run().rows) == 3


def test_a_full_disk_stops_the_sweep_with_the_rows_it_has(
    fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(descriptor: int, content: bytes) -> int:
        if b'"resolution":128' in content:
            real(descriptor, content[:40])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunDirectoryError, match=r"No space left.*free some space, then give the same"):
        session(64, 128, 256).run()
    monkeypatch.setattr(os, "write", real)
    assert [row.cell.resolution for row in read_rows(Path("run"))] == [64]
    assert [row.cell.resolution for row in session(64, 128, 256).run().rows] == [64, 128, 256]
    assert (Path("run") / "cells.torn").stat().st_size == 41


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "read-only; choose another --out"), (errno.EFBIG, "ulimit -f"), (errno.EDQUOT, "quota")],
)
def test_what_a_disk_refuses_is_said_with_what_to_do(number: int, words: str) -> None:
    assert words in str(cannot_write(Path("run"), OSError(number, os.strerror(number))))


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def test_without_fork_it_is_said_once(fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "can_fork", lambda: False)
    listener = Listener()
    session(64, 128).run(reporter=listener)
    assert listener.notes == [sweep_module.NO_FORK]


def test_python_callers_are_told_through_logging(
    fake: type[FakeRunner], caplog: pytest.LogCaptureFixture
) -> None:
    session(64).run()
    session(64, seed=1).run()
    assert "seed (0 -> 1)" in caplog.text


def test_runs_of_one_machine_stand_side_by_side(
    fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"models": ("moody-fine",), "models_dirs": (FAMILIES,), "device": "cpu"}
    start(options | {"resolutions": (64, 128)}, out=Path("a")).run()
    start(options | {"resolutions": (128,)}, out=Path("b")).run()
    monkeypatch.setattr(planning_module, "code_hash", lambda variant: "changed")
    start(options | {"resolutions": (64, 256)}, out=Path("c")).run()
    start(options | {"resolutions": (64, 128)}, out=Path("a")).run()
    with (Path("a") / "cells.jsonl").open("a") as file:
        file.write('{"schema": 2, "ke')
    found = read_runs([Path("a"), Path("b"), Path("c")], one_per_cell=True)
    assert [run.sentence for run in found] == [
        "a: 1 row (2 replaced by later rows of the run; 1 replaced by a run named later; "
        "an unfinished last line was skipped)",
        "b: 1 row",
        "c: 2 rows",
    ]
    shown = [(row.machine.rpartition(" ")[2], row.cell.resolution) for row in side_by_side(found)]
    assert shown == [("(a)", 128), ("(b)", 128), ("(c)", 64), ("(c)", 256)]


def test_a_full_disk_hides_no_result(fake: type[FakeRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RunDirectoryError("cannot write")

    monkeypatch.setattr("longvis_bench.sweep.session.write_derived", full)
    outcome = session(32, 64).run()
    assert [row.status for row in outcome.rows] == ["ok", "ok"]
    assert str(outcome.unwritten) == "cannot write"
    assert outcome.exit_code == 0
