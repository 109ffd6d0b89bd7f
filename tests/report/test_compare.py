"""Two runs or two models, cell by cell: verdicts, thresholds, exit codes, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import longvis_bench as lv
from longvis_bench.cli.app import app
from longvis_bench.errors import LongvisError
from longvis_bench.records import (
    SCHEMA,
    AccuracyRecord,
    CountRecord,
    MemoryRecord,
    ProcessRecord,
    Row,
    TimingRecord,
)
from longvis_bench.report.compare import compare, read_limits
from longvis_bench.runs.directory import RunDirectory

HERE = Path(__file__).parent
SPREAD = (-0.004, 0.0, 0.004)


def timed(row: Row, latency: float, spread: Sequence[float] = SPREAD) -> TimingRecord:
    samples = tuple(latency * (1 + shift) for shift in spread for _ in range(8))
    processes = tuple(ProcessRecord(samples=8) for _ in spread)
    return TimingRecord(samples_s=samples, warmup_s=(), verdict="stable", processes=processes)


def made(
    row: Row, latency: float = 1.0, *, model: str = "vit", memory: int = 1000, macs: int = 50, **cell: int
) -> Row:
    changed = row.cell.model_copy(update={"model": model, "variant": model, "family": model, **cell})
    return row.model_copy(
        update={
            "key": f"{model}-{changed.resolution}-{changed.threads}",
            "cell": changed,
            "timing": timed(row, latency),
            "memory": MemoryRecord(peak_bytes=memory, baseline_bytes=0, source="test"),
            "count": CountRecord(params=5, macs=macs, flops=macs, scan_flops=0, coverage=1.0),
        }
    )


def saved(path: Path, *rows: Row) -> Path:
    with RunDirectory(path) as run:
        for row in rows:
            run.append(row)
    return path


def predicted(path: Path, row: Row, right: int, images: int = 100) -> Row:
    labels = np.arange(images) % 10
    answers = np.where(np.arange(images) < right, labels, (labels + 1) % 10)
    (path / "predictions").mkdir(parents=True, exist_ok=True)
    np.savez(path / "predictions" / f"{row.key}.npz", labels=labels, predictions=answers)
    found = AccuracyRecord(
        correct_top1=right, correct_top5=None, images=images, dataset="digits", weights="w"
    )
    return row.model_copy(update={"accuracy": found})


def longvis(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("after", "verdict"), [(1.1, "slower"), (0.9, "faster"), (1.0, "same"), (1.005, "same")]
)
def test_verdicts(tmp_path: Path, row: Row, after: float, verdict: str) -> None:
    one, other = saved(tmp_path / "a", made(row)), saved(tmp_path / "b", made(row, after))
    frame = lv.compare(one, other)
    assert list(frame["verdict"]) == [verdict]
    assert frame["time_ratio"][0] == pytest.approx(after)
    assert frame["time_ratio_low"][0] < after < frame["time_ratio_high"][0]


def test_a_wide_interval_is_unclear(tmp_path: Path, row: Row) -> None:
    noisy = made(row).model_copy(update={"timing": timed(row, 1.02, (-0.1, 0.0, 0.1))})
    one, other = saved(tmp_path / "a", made(row)), saved(tmp_path / "b", noisy)
    assert list(lv.compare(one, other)["verdict"]) == ["unclear"]
    assert longvis(one, other, "--fail", "slower:5%")[0] == 0
    code, out, _ = longvis(one, other, "--fail", "slower:5%", "--strict")
    assert code == 4
    assert "undecided: vit" in out


@pytest.mark.parametrize("side", ["before", "after"])
def test_other_load_on_a_side_decides_nothing(tmp_path: Path, row: Row, side: str) -> None:
    fast, slow = made(row), made(row, 1.5)
    shaken = slow if side == "after" else fast
    assert shaken.timing is not None
    shaken = shaken.model_copy(update={"timing": shaken.timing.model_copy(update={"verdict": "disturbed"})})
    one = saved(tmp_path / "a", shaken if side == "before" else fast)
    other = saved(tmp_path / "b", shaken if side == "after" else slow)
    assert list(lv.compare(one, other)["verdict"]) == ["unclear"]
    assert compare(one, other).notes == ["other load disturbed a side, so unclear: vit."]
    for limit in ("slower:5%", "slower:90%"):
        assert longvis(one, other, "--fail", limit)[0] == 0
        assert longvis(one, other, "--fail", limit, "--strict")[0] == 4


def test_repeats_in_rows_of_their_own_are_processes(tmp_path: Path, row: Row) -> None:
    def repeat(turn: int, latency: float) -> Row:
        single = TimingRecord(samples_s=(latency,) * 8, warmup_s=(), verdict="stable")
        return made(row, round=turn).model_copy(update={"key": str(turn), "timing": single})

    one = saved(tmp_path / "a", *(repeat(turn, 1 + shift) for turn, shift in enumerate(SPREAD)))
    other = saved(tmp_path / "b", *(repeat(turn, 1.2 + shift) for turn, shift in enumerate(SPREAD)))
    (pair,) = compare(one, other).pairs
    assert pair.time is not None
    assert (pair.time.basis, pair.verdict) == ("processes", "slower")


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("slower:5%", 1),
        ("slower:20%", 0),
        ("memory:2%", 1),
        ("memory:4%", 0),
        ("macs:0%", 1),
        ("macs:0.1", 0),
    ],
)
def test_thresholds_set_the_exit_code(tmp_path: Path, row: Row, limit: str, code: int) -> None:
    one = saved(tmp_path / "a", made(row))
    other = saved(tmp_path / "b", made(row, 1.1, memory=1030, macs=51))
    assert longvis(one, other, "--fail", limit)[0] == code
    assert longvis(one, other)[0] == 0
    assert longvis(other, one, "--fail", limit)[0] == 0


@pytest.mark.parametrize(("right", "code", "strict"), [(60, 1, 1), (87, 0, 4), (90, 0, 0), (100, 0, 0)])
def test_accuracy_fails_where_the_fall_is_significant(
    tmp_path: Path, row: Row, right: int, code: int, strict: int
) -> None:
    one = saved(tmp_path / "a", predicted(tmp_path / "a", made(row), 90))
    other = saved(tmp_path / "b", predicted(tmp_path / "b", made(row), right))
    assert longvis(one, other, "--fail", "top1:1%")[0] == code
    assert longvis(one, other, "--fail", "top1:1%", "--strict")[0] == strict


def test_a_cell_that_no_longer_runs_exceeds_every_threshold(tmp_path: Path, row: Row) -> None:
    broken = made(row).model_copy(update={"status": "oom", "timing": None, "memory": None})
    one, other = saved(tmp_path / "a", made(row)), saved(tmp_path / "b", broken)
    code, out, _ = longvis(one, other, "--fail", "macs:0%")
    assert code == 1
    assert "ok, then oom" in out


def test_a_cell_of_one_side_is_named_and_undecided(tmp_path: Path, row: Row) -> None:
    one = saved(tmp_path / "a", made(row), made(row, resolution=128))
    other = saved(tmp_path / "b", made(row))
    code, out, _ = longvis(one, other, "--fail", "slower:50%", "--strict")
    assert code == 4
    assert "vit 128 px" in " ".join(out.split())


def test_two_models_of_one_run(tmp_path: Path, row: Row) -> None:
    run = saved(tmp_path / "a", made(row), made(row, 2.0, model="atlas", macs=100))
    (record,) = [json.loads(line) for line in longvis(run, "--models", "vit,atlas", "--json")[1].splitlines()]
    assert (record["model_before"], record["model_after"]) == ("vit", "atlas")
    assert record["verdict"] == "slower"
    assert (record["memory_ratio"], record["macs_ratio"]) == (1, 2)


def test_many_comparisons_are_noted(tmp_path: Path, row: Row) -> None:
    rows = [made(row, resolution=size) for size in (64, 128, 256)]
    slower = [made(row, 1.5, resolution=size) for size in (64, 128, 256)]
    found = compare(saved(tmp_path / "a", *rows), saved(tmp_path / "b", *slower))
    assert found.notes == [
        "3 times are compared, each at 95 %: 0.15 equal ones would be called different by chance; "
        "3 are, 3 also after Holm's correction."
    ]


def test_the_table_fits_80_columns(tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    one = saved(tmp_path / "a", predicted(tmp_path / "a", made(row), 90))
    other = saved(tmp_path / "b", predicted(tmp_path / "b", made(row, 1.1), 80))
    out = longvis(one, other)[1]
    table = [line for line in out.splitlines() if "vit" in line or "verdict" in line]
    assert max(map(len, table)) <= 80
    assert "1.10 [1.0" in out
    assert "slower" in out


def test_bad_input_is_one_sentence(tmp_path: Path, row: Row) -> None:
    one = saved(tmp_path / "a", made(row), made(row, model="atlas"))
    other = saved(tmp_path / "b", made(row, threads=7))
    for arguments, said in [
        ((one,), "one run needs two models"),
        ((one, one), "one run needs two models"),
        ((one, "--models", "vit"), "two models"),
        ((one, "--models", "vit,atlos"), "did you mean atlas?"),
        ((one, other), "no cell in common: threads 1 and 7"),
        ((one, tmp_path / "gone"), "gone"),
        ((one, other, "--fail", "slower:much"), "--fail takes thresholds like slower:5%"),
        ((one, other, "--fail", "slower:-5%"), "--fail takes thresholds like"),
        ((one, other, "--fail", "speed:5%"), "--fail takes thresholds like"),
        ((one, other, "--strict"), "--strict needs thresholds"),
    ]:
        code, _, err = longvis(*arguments)
        assert code == 2, arguments
        assert said in err
        assert len(err.splitlines()) == 1


def refused(*arguments: object) -> str:
    """The sentence with which a command ends that got bad input."""
    code, out, err = longvis(*arguments)
    assert code == 2, (out, err)
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    return err


def test_runs_of_one_cell_each_are_compared_without_a_note_on_many(tmp_path: Path, row: Row) -> None:
    found = compare(saved(tmp_path / "a", made(row)), saved(tmp_path / "b", made(row, 1.1)))
    assert len(found.pairs) == 1
    assert found.notes == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resolution": 128}, "no cell in common: resolution 64 and 128"),
        ({"model": "atlas"}, "no cell in common: model vit and atlas"),
        ({"batch_size": 4}, "no cell in common: batch_size 1 and 4"),
    ],
)
def test_runs_of_one_cell_each_that_differ_are_refused(
    tmp_path: Path, row: Row, change: dict[str, Any], said: str
) -> None:
    one, other = saved(tmp_path / "a", made(row)), saved(tmp_path / "b", made(row, **change))
    assert said in refused(one, other)


def test_one_cell_of_a_single_model_has_nothing_to_compare_with(tmp_path: Path, row: Row) -> None:
    run = saved(tmp_path / "a", made(row))
    assert "unknown model of this run 'atlas'" in refused(run, "--models", "vit,atlas")
    assert "two models" in refused(run, "--models", "vit,vit")


def test_a_run_of_a_newer_schema_is_refused(tmp_path: Path, row: Row) -> None:
    one, other = saved(tmp_path / "a", made(row)), saved(tmp_path / "b", made(row))
    rows = other / "cells.jsonl"
    rows.write_text(rows.read_text().replace(f'"schema":{SCHEMA}', '"schema":99'))
    for arguments in ((one, other), (other, one), (other, "--models", "vit,atlas")):
        assert f"has schema 99, and this longvis reads schemas 1 to {SCHEMA}" in refused(*arguments)


def test_a_run_of_an_older_schema_is_compared(tmp_path: Path) -> None:
    """Its rows are converted as they are read."""
    for name in "ab":
        shutil.copytree(HERE.parent / "data" / "schema_v1" / "quick", tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.pairs
    assert all(pair.macs in (None, 1) for pair in found.pairs)


def test_a_run_without_rows_is_refused(tmp_path: Path, row: Row) -> None:
    one = saved(tmp_path / "a", made(row))
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(one, tmp_path / "empty")


@pytest.mark.parametrize(
    "limits", ["slower", "slower:", "slower:1000%", "slower:nan", "slower:inf%", "slower=5%", ":5%", ","]
)
def test_a_threshold_that_is_no_share_is_refused(tmp_path: Path, row: Row, limits: str) -> None:
    one, other = saved(tmp_path / "a", made(row)), saved(tmp_path / "b", made(row))
    assert "--fail takes thresholds like slower:5%" in refused(one, other, "--fail", limits)


def test_thresholds_are_read() -> None:
    assert read_limits("slower:5%, top1:0.01") == {"slower": 0.05, "top1": 0.01}
    with pytest.raises(ValueError, match="thresholds like"):
        read_limits("slower")


def test_three_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LongvisError, match="not 3"):
        compare(tmp_path, None, ["a", "b", "c"])
