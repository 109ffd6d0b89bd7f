"""A sweep keeps every row, resumes, retries and skips."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import longvis_bench.planning as planning_module
import longvis_bench.sweep as sweep_module
from longvis_bench.errors import RunDirectoryError
from longvis_bench.merging import merge_runs
from longvis_bench.records import Request, Row, Status
from longvis_bench.session import Session, start
from longvis_bench.store import current, read_rows

FAMILIES = Path(__file__).parent / "families"

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
        return Row(key=request.key, attempt=request.attempt, cell=request.cell, status=status, reason=None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
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
        start({"models": ("vit-n",), "resolutions": (64,)}, out=Path("results/reference/m/r")).run()


def test_run_json_replays(fake: type[FakeRunner]) -> None:
    first = session(64, 128).run()
    run = json.loads((Path("run") / "run.json").read_text())
    run["config"]["models_dirs"] = [str(FAMILIES)]
    again = start(run["config"], out=Path("again")).run()
    assert [row.key for row in again.rows] == [row.key for row in first.rows]


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
    assert counts == ((2, 2), 3, 1)
    merged = {row.cell.resolution: row.status for row in read_rows(Path("c"))}
    assert merged == {64: "ok", 128: "timeout", 256: "timeout"}
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        merge_runs([Path("a")], Path("c"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_real_sweep_in_good_order(number: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longvis_bench", "bench", "--models", "moody-hangs", "--res", "64"]
    command += ["--models-dir", str(FAMILIES), "--out", "run", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
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
