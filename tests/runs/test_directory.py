"""The run directory: append-only, torn tails, locks, schemas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvis_bench.errors import RunDirectoryError
from longvis_bench.records import SCHEMA, Cell, Row
from longvis_bench.runs.directory import (
    ROWS,
    TORN,
    RunDirectory,
    check_environment,
    fresh_directory,
    latest,
    read_rows,
    read_run,
)


def test_rows_come_back_as_they_went_in(tmp_path: Path, row: Row) -> None:
    other = row.model_copy(update={"key": "1" * 16, "reason": "ünïcode\nand | more", "status": "error"})
    with RunDirectory(tmp_path / "run") as directory:
        directory.append(row)
        directory.append(other)
    assert read_rows(tmp_path / "run") == [row, other]


@settings(max_examples=50, deadline=None)
@given(reason=st.text(), number=st.floats(allow_nan=False, allow_infinity=False), whole=st.integers(0, 2**80))
def test_any_text_and_number_survives_a_round_trip(reason: str, number: float, whole: int) -> None:
    cell = Cell(model=reason or "m", family="f", variant="v", implementation="user", resolution=1, seed=whole)
    row = Row(key="k", cell=cell, status="error", reason=reason, overhead_s={"x": number})
    line = row.to_json()
    assert "\n" not in line
    assert Row.model_validate_json(line) == row


def test_the_last_row_of_a_key_counts(row: Row) -> None:
    again = row.model_copy(update={"attempt": 2})
    other = row.model_copy(update={"key": "1" * 16})
    assert latest([row, other, again]) == [again, other]


def test_a_torn_tail_is_set_aside(tmp_path: Path, row: Row) -> None:
    with RunDirectory(tmp_path) as directory:
        directory.append(row)
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"schema": 1, "key": "half')
    assert read_rows(tmp_path) == [row]
    with RunDirectory(tmp_path) as directory:
        directory.append(row.model_copy(update={"key": "1" * 16}))
    assert [r.key for r in read_rows(tmp_path)] == [row.key, "1" * 16]
    assert "half" in (tmp_path / TORN).read_text()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path),
        pytest.raises(RunDirectoryError, match="another longvis run"),
        RunDirectory(tmp_path),
    ):
        pass
    with RunDirectory(tmp_path):
        pass


def test_a_damaged_line_is_named(tmp_path: Path, row: Row) -> None:
    (tmp_path / ROWS).write_text(row.to_json() + "\nnot json\n")
    with pytest.raises(RunDirectoryError, match="line 2 is damaged"):
        read_rows(tmp_path)


def test_another_schema_is_named(tmp_path: Path, row: Row) -> None:
    content = json.loads(row.to_json()) | {"schema": 99}
    (tmp_path / ROWS).write_text(json.dumps(content) + "\n")
    with pytest.raises(
        RunDirectoryError, match=f"schema 99, and this longvis reads schemas 1 to {SCHEMA}; use a newer"
    ):
        read_rows(tmp_path)


def test_a_row_with_a_missing_field_is_named(tmp_path: Path, row: Row) -> None:
    content = json.loads(row.to_json())
    del content["cell"]["model"]
    (tmp_path / ROWS).write_text(json.dumps(content) + "\n")
    with pytest.raises(RunDirectoryError, match=r"line 1: cell\.model"):
        read_rows(tmp_path)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="give the directory of a longvis run"):
        read_rows(tmp_path)
    assert read_run(tmp_path) is None


def test_a_foreign_run_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunDirectoryError, match=r"not a longvis run file"):
        read_run(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write to"), RunDirectory(tmp_path / "file" / "run"):
        pass


def test_a_vanished_directory(tmp_path: Path, row: Row) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        (tmp_path / "run" / ".lock").unlink()
        (tmp_path / "run").rmdir()
        with pytest.raises(RunDirectoryError, match="cannot write"):
            directory.append(row)


def test_a_full_disk(row: Row) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    directory = RunDirectory(Path("full"))
    directory.path.mkdir()
    (directory.path / ROWS).symlink_to("/dev/full")
    with pytest.raises(RunDirectoryError, match="No space left"):
        directory.append(row)


def test_environments_are_not_mixed(tmp_path: Path) -> None:
    from longvis_bench.environment import read_environment

    here = read_environment()
    there = here.model_copy(update={"versions": {"torch": "0.1"}})
    check_environment(tmp_path, {"environment": here.model_dump(mode="json")}, here)
    with pytest.raises(RunDirectoryError, match="another environment"):
        check_environment(tmp_path, {"environment": there.model_dump(mode="json")}, here)


def test_fresh_directories_are_numbered(tmp_path: Path) -> None:
    assert fresh_directory(tmp_path / "run") == tmp_path / "run"
    for number in ("run", "run-2"):
        (tmp_path / number).mkdir()
        (tmp_path / number / ROWS).touch()
    assert fresh_directory(tmp_path / "run") == tmp_path / "run-3"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 2, "seed": ' + "9" * 400 + "}", "9" * 5000])
def test_a_line_that_no_run_wrote_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / ROWS).write_text(text + "\n")
    with pytest.raises(RunDirectoryError, match="line 1 is damaged"):
        read_rows(tmp_path)
