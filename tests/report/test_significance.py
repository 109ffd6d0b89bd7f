"""McNemar's exact test, and which rows are compared."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.records import AccuracyRecord, Cell, Row
from longvis_bench.report import significance
from longvis_bench.report.significance import compare, compared, sentences
from longvis_bench.report.write import write_derived
from longvis_bench.runs.directory import RunDirectory
from longvis_bench.runs.predictions import read_answers
from longvis_bench.stats import mcnemar

LABELS = np.arange(40) % 10


def _row(folder: Path, model: str, right: NDArray[np.bool_], **cell: int) -> Row:
    """A row whose predictions lie in the run directory."""
    made = Cell(
        **{"model": model, "family": model, "variant": model, "implementation": "timm", "resolution": 64}
        | cell
    )
    row = Row(
        key=f"{model}-{made.resolution}",
        cell=made,
        status="ok",
        accuracy=AccuracyRecord(
            correct_top1=int(right.sum()), correct_top5=None, images=len(right), dataset="digits", weights="w"
        ),
    )
    (folder / "predictions").mkdir(exist_ok=True)
    predictions = np.where(right, LABELS, (LABELS + 1) % 10)
    np.savez(folder / "predictions" / f"{row.key}.npz", labels=LABELS, predictions=predictions)
    return row


@pytest.mark.parametrize(
    ("one", "other", "p"), [(0, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (0, 6, 2 / 64), (9, 1, 22 / 1024)]
)
def test_mcnemar_by_hand(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == pytest.approx(p)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(one: int, other: int) -> None:
    n = one + other
    weights = [math.comb(n, k) for k in range(n + 1)]
    at_least = sum(weight for k, weight in enumerate(weights) if abs(2 * k - n) >= abs(one - other))
    assert mcnemar(one, other) == pytest.approx(min(1.0, at_least / 2**n))


def test_better_model_comes_first_and_only_differences_count(tmp_path: Path) -> None:
    most, fewer = np.arange(40) < 38, np.arange(40) < 30
    (pair,) = compare(read_answers([_row(tmp_path, "vit", fewer), _row(tmp_path, "swin", most)], [tmp_path]))
    assert (pair.first.cell.model, pair.second.cell.model, pair.images) == ("swin", "vit", 40)
    assert pair.p == pytest.approx(mcnemar(8, 0))
    assert pair.separable


def test_models_that_are_compared_with_none_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(significance, "COMPARED", 3)
    rows = [_row(tmp_path, f"m{right}", np.arange(40) < right) for right in (10, 20, 30, 40)]
    said = compared(rows, read_answers(rows, [tmp_path]))
    assert not any("m10" in line for line in said)
    assert said[-1] == "64 px: the 3 most accurate of 4 cells are compared, the other 1 with none"
    with RunDirectory(tmp_path) as run:
        for row in rows:
            run.append(row)
    write_derived(tmp_path)
    assert f"- {said[-1]}" in (tmp_path / "summary.md").read_text("utf-8")
    assert compared(rows[:3], read_answers(rows[:3], [tmp_path]))[-1].startswith("64 px: m20 is")  # all


def test_equal_models_are_not_separable(tmp_path: Path) -> None:
    one, other = np.arange(40) < 20, np.arange(40) >= 20
    (pair,) = compare(read_answers([_row(tmp_path, "vit", one), _row(tmp_path, "swin", other)], [tmp_path]))
    assert pair.p == 1.0
    assert not pair.separable


def test_only_the_same_images_are_compared(tmp_path: Path) -> None:
    right = np.arange(40) < 20
    rows = [_row(tmp_path, "vit", right), _row(tmp_path, "swin", right, resolution=128)]
    assert compare(read_answers(rows, [tmp_path])) == []
    for model, first in (("mambavision", 0), ("longvit", 1)):  # the same labels, but of other images
        rows.append(_row(tmp_path, model, right))
        places = {"indices": np.arange(first, first + 40)}
        predictions = np.where(right, LABELS, (LABELS + 1) % 10)
        path = tmp_path / "predictions" / f"{rows[-1].key}.npz"
        np.savez(path, labels=LABELS, predictions=predictions, **places)  # type: ignore[arg-type]
    assert compare(read_answers(rows[2:], [tmp_path])) == []
    lost = _row(tmp_path, "atlas", right)
    (tmp_path / "predictions" / f"{lost.key}.npz").write_bytes(b"torn")
    assert compare(read_answers([rows[0], lost], [tmp_path])) == []
    assert compare(read_answers([rows[0], lost], [])) == []


def test_sentences_say_who_is_better_and_from_whom_nobody_can_tell(tmp_path: Path) -> None:
    counts = {"vit": 20, "swin": 38, "atlas": 37}
    rows = [_row(tmp_path, name, np.arange(40) < right) for name, right in counts.items()]
    assert sentences(rows, compare(read_answers(rows, [tmp_path]))) == [
        "64 px: swin is better than vit (p < 0.001); not separable with n = 40 from atlas (p = 1.0)",
        "64 px: atlas is better than vit (p < 0.001)",
    ]


def test_summary_and_report_say_it(tmp_path: Path) -> None:
    rows = [_row(tmp_path, "vit", np.arange(40) < 20), _row(tmp_path, "swin", np.arange(40) < 38)]
    with RunDirectory(tmp_path) as run:
        for row in rows:
            run.append(row)
    write_derived(tmp_path)
    said = "64 px: swin is better than vit"
    assert f"- {said}" in (tmp_path / "summary.md").read_text()
    shown = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert shown.exit_code == 0
    assert said in shown.output
