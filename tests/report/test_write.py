"""Derived files: tables before figures, whole or not at all, and no slower than the rows are many."""

from __future__ import annotations

import csv
import errno
import io
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from longvis_bench.errors import RunDirectoryError
from longvis_bench.records import Row
from longvis_bench.report import summary
from longvis_bench.report.columns import SHORT
from longvis_bench.report.plots import write as plots
from longvis_bench.report.summary import terminal_table
from longvis_bench.report.write import write_derived
from longvis_bench.runs.directory import ROWS as FILE
from longvis_bench.runs.directory import current, read_rows

ROWS = read_rows(Path(__file__).parents[1] / "golden_tables" / "rows.jsonl")


def many(number: int) -> list[Row]:
    """So many rows of models of their own at three sizes, with accuracies, failures and warnings."""
    return [
        row.model_copy(
            update={
                "key": f"{n}-{row.cell.resolution}",
                "cell": row.cell.model_copy(update={"model": f"timm:net_{n}", "variant": f"net_{n}"}),
            }
        )
        for n in range(number // 3)
        for row in (ROWS[n % 7], ROWS[7 + n % 7], ROWS[14 + n % 7])
    ]


def write_rows(path: Path, rows: list[Row]) -> None:
    path.mkdir()
    (path / FILE).write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_while_figures_are_drawn_leaves_whole_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_rows(run, ROWS)
    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(RunDirectoryError, match=r"No space left on device.*rows written so far are kept"):
        write_derived(run)
    assert (run / "summary.md").read_text("utf-8").startswith("# Summary")
    assert (run / "summary.csv").is_file()
    assert not list((run / "plots").iterdir()), "no half figure, no hidden one"


def test_the_short_csv_has_the_columns_of_the_tables(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_rows(run, ROWS)
    write_derived(run)
    with (run / "summary_short.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    with (run / "summary.csv").open(encoding="utf-8") as file:
        whole = list(csv.DictReader(file))
    assert [{name: line[name] for name in SHORT} for line in whole] == lines
    assert len(SHORT) < 25


def seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def test_tables_take_time_in_proportion_to_the_rows() -> None:
    def tables(rows: list[Row]) -> None:
        console = Console(width=120, file=io.StringIO())
        console.print(terminal_table(rows, 120))

    small, large = many(120), many(960)
    tables(small)
    assert seconds(lambda: tables(large)) < 8 * 2.5 * seconds(lambda: tables(small))


def test_figures_cost_the_same_however_many_the_models_are() -> None:
    """What grows is reading values; drawing is bounded (before, 1,000 rows took 27 s and 100 took 2.6 s)."""
    small, large = many(150), many(1500)
    plots.figures(small)
    assert seconds(lambda: plots.figures(large)) < 4 * seconds(lambda: plots.figures(small))


def test_a_long_table_shows_the_fastest_and_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MOST_ROWS", 30)
    rows = many(60)
    console = Console(width=120, file=io.StringIO())
    console.print(terminal_table(rows, 120))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert f"{len(rows)} cells:" in text
    assert "30 rows are not shown; summary.csv and summary.md hold all." in text


def test_a_table_of_more_sizes_than_lines_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MOST_ROWS", 10)
    first = many(3)[0]
    rows = [
        first.model_copy(
            update={"key": str(size), "cell": first.cell.model_copy(update={"resolution": 32 * size})}
        )
        for size in range(1, 26)
    ]
    console = Console(width=120, file=io.StringIO())
    console.print(terminal_table(rows, 120))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "15 rows are not shown; summary.csv and summary.md hold all." in text
    assert " 320  " in text
    assert " 352  " not in text


@pytest.mark.slow
def test_ten_thousand_rows_in_under_twenty_seconds_and_a_gibibyte(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_rows(run, many(10_000))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "longvis_bench", "report", str(run)], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert after.ru_maxrss * 1024 < 1 << 30
    assert len(current(read_rows(run))) == 9999
