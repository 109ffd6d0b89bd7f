"""`longvis status` and the missing cells of `longvis merge`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.environment import read_environment
from longvis_bench.records import Cell, Row, Status
from longvis_bench.runs.directory import RunDirectory
from longvis_bench.runs.progress import (
    PlannedCell,
    PlannedSweep,
    RunningCell,
    name_of,
    read_planned,
    states,
    write_planned,
    write_running,
)

SIZES = (64, 128, 256, 512)
ENVIRONMENT = read_environment().model_dump(mode="json")


def cell(size: int) -> Cell:
    return Cell(model="vit-n", family="vit", variant="vit-n", implementation="timm", resolution=size)


def key(size: int) -> str:
    return f"{size:016d}"


def part(number: int, parts: int = 2) -> PlannedSweep:
    cells = tuple(
        PlannedCell(key=key(size), name=name_of(cell(size)), part=1 + index % parts, seconds=1.0)
        for index, size in enumerate(SIZES)
    )
    return PlannedSweep(sweep="vit-n-sweep", part=number, parts=parts, cells=cells)


def run(path: Path, sweep: PlannedSweep, rows: dict[int, Status], *, gpu: int | None = None) -> Path:
    with RunDirectory(path) as directory:
        directory.write_run({"environment": ENVIRONMENT, "invocations": []})
        write_planned(directory, sweep)
        for size, status in rows.items():
            reason = None if status == "ok" else "interrupted" if status == "skipped" else "it failed"
            directory.append(Row(key=key(size), cell=cell(size), status=status, reason=reason, gpu_index=gpu))
    return path


def printed(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_dead_shard_is_named_with_the_command_that_finishes_it() -> None:
    one = run(Path("part-1"), part(1), {64: "ok", 256: "ok"})
    two = run(Path("part-2"), part(2), {128: "skipped"})
    shown = printed("status", one, two)
    lines = [line.split() for line in shown.splitlines()]
    assert ["part-1", "1/2", "cpu", "2", "2", "0", "0", "0"] in lines
    assert ["part-2", "2/2", "2", "0", "0", "0", "2"] in lines  # an interrupted cell is not done
    assert "No process works on part-2. To measure the 2 cells left:" in shown
    assert "longvis bench --config part-2/run.json --shard 2/2 --out part-2" in shown
    assert "part-1/run.json" not in shown


def test_failed_cells_and_absent_shards_have_their_commands() -> None:
    one = run(Path("part 1"), part(1, 3), {64: "crashed", 512: "ok"})
    shown = printed("status", one)
    assert "To run the 1 failed cell of part 1 again:" in shown
    command = next(line for line in shown.splitlines() if "--retry" in line)
    assert shlex.split(command)[-4:] == ["--out", "part 1", "--retry", "crashed"]
    assert "None of these directories has shard 2/3, 3/3" in shown
    assert "--shard 2/3 --out DIR" in shown
    (state,) = json.loads(printed("status", "--json", one))
    assert (state["planned"], state["done"], state["failed"], state["left"]) == (2, 1, {"crashed": 1}, 0)
    assert state["finish"] is None


def test_a_running_cell_counts_while_the_run_holds_its_lock() -> None:
    path = run(Path("run"), part(1, 1), {64: "ok"}, gpu=3)
    write_running(path, [RunningCell(key=key(128), name="vit-n 128 px", device="cuda:1", started=_now())])
    (state,) = states(path)
    assert (state.done, state.running, state.left, state.is_dead) == (1, (), 3, True)
    code = (
        "import sys; from pathlib import Path; from longvis_bench.runs.directory import RunDirectory\n"
        "with RunDirectory(Path('run')): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        (state,) = states(path)
        assert (state.done, len(state.running), state.left, state.is_dead) == (1, 1, 2, False)
        shown = printed("status", path)
        assert "run measures vit-n 128 px on cuda:1" in shown
        assert "No process works" not in shown
        assert ["cpu:3", "1", "0", "0"] in [line.split() for line in shown.splitlines()]
        holder.kill()
    (state,) = states(path)
    assert state.is_dead


def test_merging_names_the_missing_cells_also_those_of_absent_shards() -> None:
    one = run(Path("part-1"), part(1), {64: "ok"})
    shown = printed("merge", one, "--out", "whole")
    assert "Missing: 3 cells that the sweep planned: vit-n 128 px, fp32 (shard 2), " in shown
    assert "vit-n 256 px, fp32 (shard 1)" in shown
    (whole,) = states(Path("whole"))
    assert (len(whole.sweep.own), whole.done, whole.left) == (4, 1, 3)
    two = run(Path("part-2"), part(2), {128: "ok", 512: "ok"})
    rest = run(Path("rest"), part(1), {256: "timeout"})
    assert "Missing" not in printed("merge", one, two, rest, "--out", "all")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gone", "the run directory gone does not exist"),
        ("gone*", "no run directory matches gone*"),
        ("empty", "empty holds no run"),
        ("old", "old has no readable planned.json"),
    ],
)
def test_what_is_no_run_is_one_sentence(path: str, words: str) -> None:
    Path("empty").mkdir()
    old = run(Path("old"), part(1), {64: "ok"})
    (old / "planned.json").unlink()
    result = CliRunner().invoke(app, ["status", path])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("content", ["", "[]", '{"sweeps": 3}', '{"sweeps": [{"part": "x"}]}', "\x00"])
def test_a_damaged_plan_is_written_anew(content: str) -> None:
    path = run(Path("run"), part(1, 1), {64: "ok"})
    (path / "planned.json").write_text(content)
    assert read_planned(path) == []
    run(path, part(1, 1), {})
    assert read_planned(path) == [part(1, 1)]


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")
