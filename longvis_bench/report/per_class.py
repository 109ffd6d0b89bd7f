"""Accuracy class by class, and what the worst classes are taken for: from the stored predictions.

A terminal shows the worst classes; `classes.csv` and `confusion.csv` of the run's directory hold all of them.
Of few images a share says little: every one has its 95 % Wilson interval.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from longvis_bench.records import Row
from longvis_bench.runs.predictions import Answers, Predictions
from longvis_bench.stats import wilson
from longvis_bench.text import spreadsheet_safe

CLASSES, CONFUSION = "classes.csv", "confusion.csv"


class ClassResult(NamedTuple):
    """One class of one accuracy."""

    name: str
    images: int
    correct: int
    taken_for: tuple[tuple[str, int], ...]
    """Classes that its other images were taken for, and how many: the most frequent first."""


def by_class(answers: Answers) -> list[ClassResult]:
    """Every class with held-out images, the worst first; of equal ones that with more wrong answers."""
    names = _names(answers.images)
    found = [_one(answers.images, names, label) for label in np.unique(answers.images.labels)]
    return sorted(found, key=lambda one: (one.correct / one.images, one.correct - one.images, one.name))


def _names(images: Predictions) -> tuple[str, ...]:
    """Of the classes, by label; the labels themselves where the file does not name them all."""
    highest = int(max(images.labels.max(), images.predictions.max()))
    return images.classes if len(images.classes) > highest else tuple(map(str, range(highest + 1)))


def _one(images: Predictions, names: Sequence[str], label: int) -> ClassResult:
    said = images.predictions[images.labels == label]
    others, times = np.unique(said[said != label], return_counts=True)
    order = np.argsort(-times, kind="stable")
    taken_for = tuple((names[others[place]], int(times[place])) for place in order)
    return ClassResult(names[label], len(said), int((said == label).sum()), taken_for)


def classes_csv(every: Iterable[Answers]) -> str:
    """Every class of every accuracy: images, right answers, share and interval."""
    header = ["class", "images", "correct", "top1", "top1_low", "top1_high"]
    lines = []
    for answers in every:
        for one in by_class(answers):
            interval = wilson(one.correct, one.images)
            ends = (None, None) if interval is None else interval
            share = one.correct / one.images
            lines.append([*_which(answers.row), one.name, one.images, one.correct, share, *ends])
    return _csv(header, lines)


def confusion_csv(every: Iterable[Answers]) -> str:
    """Every pair of classes that was confused, and how often; right answers and zeros are left out."""
    lines = [
        [*_which(answers.row), one.name, other, times]
        for answers in every
        for one in by_class(answers)
        for other, times in one.taken_for
    ]
    return _csv(["class", "taken_for", "images"], lines)


_WHICH = ("key", "model", "resolution", "data", "weights")


def _which(row: Row) -> list[object]:
    return [row.key, row.cell.model, row.cell.resolution, row.cell.data, row.cell.weights]


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_WHICH, *header])
    for line in lines:
        writer.writerow([spreadsheet_safe(cell) if isinstance(cell, str) else cell for cell in line])
    return text.getvalue()
