"""Times over those of a baseline: the ratio, its interval, the column's heading, and bad input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.errors import UnknownName
from longvis_bench.records import ProcessRecord, Row, TimingRecord
from longvis_bench.report.baseline import with_baseline
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.compare import compare
from longvis_bench.report.grouping import grouped
from longvis_bench.report.latex import summary_tex
from longvis_bench.report.summary import frame, summary_markdown, terminal_table
from longvis_bench.runs.directory import RunDirectory

SPREAD = (-0.004, 0.0, 0.004)


def made(row: Row, model: str, latency: float, spread: Sequence[float] = SPREAD, **cell: object) -> Row:
    changed = row.cell.model_copy(update={"model": model, "variant": model, "family": model, **cell})
    samples = tuple(latency * (1 + shift) for shift in spread for _ in range(8))
    timing = TimingRecord(
        samples_s=samples,
        warmup_s=(),
        verdict="stable",
        processes=tuple(ProcessRecord(samples=8) for _ in spread),
    )
    key = f"{model}-{changed.resolution}-{changed.mode}"
    return row.model_copy(update={"key": key, "cell": changed, "timing": timing})


def values(row: Row) -> list[object]:
    names = ("baseline", "time_vs_baseline", "time_vs_baseline_low", "time_vs_baseline_high")
    return [BY_NAME[name].value(row) for name in names]


def test_the_ratio_and_its_interval_are_those_of_compare(row: Row, tmp_path: Path) -> None:
    rows = [made(row, "vit", 2.0), made(row, "atlas", 1.0)]
    vit, atlas = with_baseline(rows, "atlas")
    with RunDirectory(tmp_path / "run") as run:
        for one in rows:
            run.append(one)
    (pair,) = compare(tmp_path / "run", models=("atlas", "vit")).pairs
    assert pair.time is not None
    assert values(vit) == ["atlas", pair.time.value, pair.time.low, pair.time.high]
    assert pair.time.value == pytest.approx(2.0)
    assert values(atlas) == ["atlas", 1.0, None, None]


def test_time_is_that_of_an_image(row: Row) -> None:
    rows = with_baseline(
        [made(row, "vit", 2.0, batch_size=4), made(row, "atlas", 1.0, batch_size=4)], "atlas"
    )
    assert values(rows[0])[1] == pytest.approx(2.0)


def test_other_conditions_are_not_compared(row: Row) -> None:
    """The baseline was not timed in training, nor at 128 px."""
    rows = [
        made(row, "atlas", 1.0),
        made(row, "vit", 2.0, mode="train"),
        made(row, "vit", 3.0, resolution=128),
    ]
    for one in with_baseline(rows, "atlas")[1:]:
        assert values(one) == ["atlas", None, None, None]


def test_machines_are_kept_apart(row: Row) -> None:
    slow = [made(row, "atlas", 10.0), made(row, "vit", 30.0)]
    fast = [made(row, "atlas", 1.0), made(row, "vit", 2.0)]
    rows = [one.model_copy(update={"machine": "slow"}) for one in slow] + fast
    assert [values(one)[1] for one in with_baseline(rows, "atlas")] == pytest.approx([1.0, 3.0, 1.0, 2.0])


def test_a_cell_that_failed_has_no_ratio(row: Row) -> None:
    failed = made(row, "vit", 1.0).model_copy(update={"status": "oom", "timing": None})
    assert values(with_baseline([made(row, "atlas", 1.0), failed], "atlas")[1])[1] is None


def test_tables_name_the_baseline(row: Row) -> None:
    rows = with_baseline([made(row, "vit", 2.0), made(row, "atlas-s", 1.0)], "atlas-s")
    console = Console(width=120, record=True, highlight=False)
    console.print(terminal_table(rows, 120))
    shown = console.export_text()
    assert "x atlas-s [95 %]" in shown
    assert "x atlas-s: time per image / that of atlas-s, all else equal." in " ".join(shown.split())
    assert "x atlas-s [95 %]" in summary_markdown(rows)
    assert "latency" in summary_tex(grouped(rows))
    assert list(frame(rows)["time_vs_baseline"]) == pytest.approx([2.0, 1.0])


def test_without_a_baseline_there_is_no_column(row: Row) -> None:
    rows = [made(row, "vit", 2.0), made(row, "atlas", 1.0)]
    assert "baseline" not in summary_markdown(rows)
    assert frame(rows)["time_vs_baseline"].isna().all()


def test_it_is_never_stored(row: Row) -> None:
    (one, _) = with_baseline([made(row, "vit", 2.0), made(row, "atlas", 1.0)], "atlas")
    assert "baseline" not in one.to_json()


def test_an_unknown_baseline_is_one_sentence(row: Row, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown baseline 'atlsa': did you mean atlas"):
        with_baseline([made(row, "atlas", 1.0)], "atlsa")
    with RunDirectory(tmp_path / "run") as run:
        run.append(made(row, "atlas", 1.0))
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--baseline", "atlsa"])
    assert result.exit_code == 2
    assert "did you mean atlas" in " ".join(result.output.split())
    command = ["bench", "--models", "vit-n", "--res", "64", "--device", "cpu", "--dry-run"]
    result = CliRunner().invoke(app, [*command, "--baseline", "vit-s"])
    assert result.exit_code == 2
    assert "unknown baseline 'vit-s'" in " ".join(result.output.split())


def test_bench_and_report_write_it(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    command = ["bench", "--models", "vit-n,convnext-n", "--res", "64", "--device", "cpu", "--quick"]
    more = ["--budget", "0.2", "--metrics", "time", "--out", out]
    result = CliRunner().invoke(app, [*command, *more, "--baseline", "vit-n"], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "x vit-n" in result.output
    summary = tmp_path / "run" / "summary.md"
    assert "x vit-n" in summary.read_text()
    assert CliRunner().invoke(app, ["report", out]).exit_code == 0
    assert "x vit-n" not in summary.read_text()
    assert CliRunner().invoke(app, ["report", out, "--baseline", "convnext-n"]).exit_code == 0
    assert "x convnext-n" in summary.read_text()
