"""Runs of older schemas are read for ever, merged, and continued by a clear rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from longvis_bench.errors import RunDirectoryError
from longvis_bench.records import SCHEMA, Row
from longvis_bench.report.summary import frame
from longvis_bench.runs import migrations as migration
from longvis_bench.runs.directory import ROWS, RunDirectory, current, read_rows, read_run
from longvis_bench.runs.merge import merge_runs

SCHEMA_1 = Path(__file__).parents[1] / "data" / "schema_v1"
QUICK = SCHEMA_1 / "quick"
SCHEMA_2 = SCHEMA_1.parent / "schema_v2"


def test_every_schema_has_its_step_and_its_line_in_the_history() -> None:
    from longvis_bench import records

    assert set(migration.ROW_STEPS) == set(migration.RUN_STEPS) == set(range(1, SCHEMA))
    for version in range(1, SCHEMA + 1):
        assert f"\n    {version}   " in (records.__doc__ or "")


def test_rows_of_schema_1_are_read_for_ever() -> None:
    assert [row.status for row in read_rows(SCHEMA_1)] == ["ok", "illegal_size", "crashed"]
    rows = read_rows(QUICK)
    assert [row.status for row in rows] == ["ok"] * 21
    assert {row.version for row in rows} == {SCHEMA}
    assert rows[0].code is None


def test_rows_of_schema_2_are_read_for_ever_as_squares() -> None:
    rows = read_rows(SCHEMA_2)
    assert [(row.cell.resolution, row.cell.height, row.cell.width) for row in rows] == [(2048,) * 3] * 2
    assert {row.version for row in rows} == {SCHEMA}
    run = read_run(SCHEMA_2)
    assert run is not None
    assert run["schema"] == SCHEMA


@pytest.mark.parametrize(("schema", "run"), [(1, QUICK), (2, SCHEMA_2)])
def test_nothing_of_an_old_row_is_lost_on_the_way(schema: int, run: Path) -> None:
    lines = (run / ROWS).read_text("utf-8").splitlines()
    for line, row in zip(lines, read_rows(run), strict=True):
        old, new = json.loads(line), json.loads(row.to_json())
        old["backends"].pop("attention", None)  # it moved, see below
        assert _within(old, new | {"schema": schema})


def _within(old: Any, new: Any) -> bool:
    """Whether everything of `old` is in `new`, at the same place and with the same value."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(name in new and _within(old[name], new[name]) for name in old)
    return bool(old == new)


def test_a_value_that_changed_would_be_noticed() -> None:
    assert not _within({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    assert not _within({"a": {"b": 1}}, {"a": {}})


def test_run_json_of_schema_1_is_read() -> None:
    run = read_run(QUICK)
    assert run is not None
    assert run["schema"] == SCHEMA
    assert run["environment"]["machine"] == "intel-xeon-2c"
    assert run["invocations"][0]["command"] == "longvis bench"
    assert run["invocations"][0]["config"]["resolutions"] == [256, 512, 1024]


def test_old_rows_make_tables_and_frames() -> None:
    table = frame(current(read_rows(QUICK)))
    assert len(table) == 21
    assert table.latency_median_s.notna().all()


def test_old_runs_are_merged_in_the_present_schema(tmp_path: Path) -> None:
    counts = merge_runs([QUICK], tmp_path / "merged")
    assert [len(run.rows) for run in counts] == [21]
    stored = [json.loads(line) for line in (tmp_path / "merged" / ROWS).read_text("utf-8").splitlines()]
    assert {row["schema"] for row in stored} == {SCHEMA}
    assert [row["key"] for row in stored] == [row.key for row in read_rows(QUICK)]


def test_an_old_run_is_continued_and_its_lines_stay_as_they_are(tmp_path: Path, row: Row) -> None:
    shutil.copytree(QUICK, tmp_path / "run")
    before = (tmp_path / "run" / ROWS).read_bytes()
    with RunDirectory(tmp_path / "run") as directory:
        directory.append(row)
    assert (tmp_path / "run" / ROWS).read_bytes().startswith(before)
    assert len(read_rows(tmp_path / "run")) == 22


@pytest.mark.parametrize(
    ("schema", "advice"),
    [(SCHEMA + 1, "use a newer longvis"), (0, "did not write"), ("1", "not"), (True, "not")],
)
def test_an_unknown_schema_is_refused_in_one_sentence(schema: object, advice: str) -> None:
    with pytest.raises(RunDirectoryError, match=advice) as caught:
        migration.migrate_row({"schema": schema}, "cells.jsonl line 3")
    assert str(caught.value).count(". ") == 0
    assert "cells.jsonl line 3" in str(caught.value)


def test_steps_are_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {1: lambda row: {**row, "trail": [1]}, 2: lambda row: {**row, "trail": [*row["trail"], 2]}}
    monkeypatch.setattr(migration, "SCHEMA", 3)
    monkeypatch.setattr(migration, "ROW_STEPS", steps)
    assert migration.migrate_row({"schema": 1}, "") == {"schema": 3, "trail": [1, 2]}
    assert migration.migrate_row({"schema": 2, "trail": []}, "") == {"schema": 3, "trail": [2]}


def test_the_attention_kernel_of_older_rows_is_null_where_it_was_wrong(tmp_path: Path) -> None:
    """Older inference rows say `math` where torch ran a fused kernel; training rows were right."""
    template = json.loads((SCHEMA_1 / ROWS).read_text("utf-8").splitlines()[0])
    backends = {"scan": "numba", "attention": "math"}
    for mode, attention in (("infer", None), ("train", "math")):
        cell = {**template["cell"], "mode": mode}
        row = {**template, "schema": SCHEMA, "cell": cell, "backends": backends}
        (tmp_path / ROWS).write_text(json.dumps(row) + "\n", "utf-8")
        (read,) = read_rows(tmp_path)
        assert read.attention == attention
        assert read.backends == {"scan": "numba"}
        assert read.null_reasons.get("attention") == (migration.HIDDEN if mode == "infer" else None)
