"""Accuracy by class, from stored predictions: counts by hand, no flooded terminal, files that hold all."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.records import AccuracyRecord, Cell, Row
from longvis_bench.report.per_class import SHOWN, by_class, classes_csv, confusion_csv, worst_classes
from longvis_bench.report.write import write_derived
from longvis_bench.runs.directory import RunDirectory
from longvis_bench.runs.predictions import Answers, Predictions, read_answers
from longvis_bench.stats import wilson

NAMES = ("ant", "bee", "cat")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
SAID = np.array([0, 1, 1, 2, 1, 1, 2, 2, 0])


def _row(key: str = "k", **cell: str) -> Row:
    made = Cell(
        **{"model": "m", "family": "m", "variant": "m", "implementation": "timm"} | cell, resolution=64
    )
    record = AccuracyRecord(correct_top1=5, correct_top5=None, images=9, dataset="pets", weights="w")
    return Row(key=key, cell=made, status="ok", accuracy=record)


def _answers(labels: NDArray[np.int64], said: NDArray[np.int64], classes: tuple[str, ...]) -> Answers:
    images = Predictions(labels=labels, predictions=said, indices=np.arange(len(labels)), classes=classes)
    return Answers(_row(), images)


def _many(classes: int, seed: int = 0) -> Answers:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 5)
    said = np.where(random.random(labels.shape) < 0.5, labels, random.integers(0, classes, labels.shape))
    return _answers(labels, said, tuple(f"class {number:04}" for number in range(classes)))


def _shown(answers: Answers, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(worst_classes([answers]))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_counts_by_hand_and_the_worst_first() -> None:
    found = by_class(_answers(LABELS, SAID, NAMES))
    assert [(one.name, one.images, one.correct) for one in found] == [
        ("ant", 4, 1),
        ("cat", 3, 2),
        ("bee", 2, 2),
    ]
    assert [one.taken_for for one in found] == [(("bee", 2), ("cat", 1)), (("ant", 1),), ()]


def test_files_hold_every_class_and_confusion() -> None:
    answers = _many(100)
    classes = list(csv.DictReader(io.StringIO(classes_csv([answers]))))
    assert len(classes) == 100
    assert sum(int(line["correct"]) for line in classes) == int(answers.images.right.sum())
    for line in classes:
        interval = wilson(int(line["correct"]), int(line["images"]))
        assert (float(line["top1_low"]), float(line["top1_high"])) == interval
    confused = list(csv.DictReader(io.StringIO(confusion_csv([answers]))))
    matrix = np.zeros((100, 100), int)
    np.add.at(matrix, (answers.images.labels, answers.images.predictions), 1)
    np.fill_diagonal(matrix, 0)
    assert {(line["class"], line["taken_for"]): int(line["images"]) for line in confused} == {
        (answers.images.classes[true], answers.images.classes[said]): int(matrix[true, said])
        for true, said in zip(*matrix.nonzero(), strict=True)
    }


@pytest.mark.parametrize("width", [80, 200])
def test_a_thousand_classes_do_not_flood_the_terminal(width: int) -> None:
    lines = _shown(_many(1000), width)
    assert len(lines) < SHOWN + 10
    assert max(map(len, lines)) <= width
    assert "m, 64 px: the worst 10 of 1000 classes" in "\n".join(lines)
    worst = by_class(_many(1000))[0]
    assert worst.name in "\n".join(lines)


def test_names_of_others_cannot_write_to_the_terminal_or_a_spreadsheet() -> None:
    answers = _answers(LABELS, SAID, ("\x1b[31m" + "x" * 80, "=1+1", "[red]"))
    lines = "\n".join(_shown(answers, 80))
    assert "\x1b" not in lines
    assert "[red]" in lines
    assert ",'=1+1," in classes_csv([answers])


def test_no_class_is_worst_where_all_is_right() -> None:
    assert "every image of every class is right" in "\n".join(_shown(_answers(LABELS, LABELS, NAMES), 80))


def test_predictions_are_kept_with_names_and_shown_again(tmp_path: Path) -> None:
    _answers(LABELS, SAID, NAMES).images.save(tmp_path / "run" / "predictions" / "k.npz")
    (answers,) = read_answers([_row()], [tmp_path / "elsewhere", tmp_path / "run"])
    assert answers.images.classes == NAMES
    assert (answers.images.labels.tolist(), answers.images.predictions.tolist()) == (
        LABELS.tolist(),
        SAID.tolist(),
    )
    with RunDirectory(tmp_path / "run") as directory:
        directory.append(_row())
    write_derived(tmp_path / "run")
    assert "ant,bee,2" in (tmp_path / "run" / "confusion.csv").read_text()
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--by-class"])
    assert done.exit_code == 0, done.output
    assert "bee (2), cat (1)" in done.output


def test_older_predictions_name_classes_by_label(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    np.savez(tmp_path / "predictions" / "k.npz", labels=LABELS, predictions=SAID)
    (answers,) = read_answers([_row()], [tmp_path])
    assert {one.name for one in by_class(answers)} == {"0", "1", "2"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", "cut", "negative", "uneven", "empty"])
def test_damaged_predictions_are_as_if_they_were_not_there(tmp_path: Path, content: bytes | str) -> None:
    (tmp_path / "predictions").mkdir()
    file = tmp_path / "predictions" / "k.npz"
    labels = {"negative": -LABELS, "uneven": LABELS[1:], "empty": LABELS[:0]}.get(str(content), LABELS)
    np.savez(file, labels=labels, predictions=labels[:0] if content == "empty" else SAID)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "cut":
        file.write_bytes(file.read_bytes()[:100])
    assert read_answers([_row()], [tmp_path]) == []
