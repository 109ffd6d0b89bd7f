"""Accuracy per class and confusions of classes, from the stored predictions.

A terminal shows the worst classes only, so that a thousand do not flood it; `classes.csv` and `confusion.csv`
in the run's directory hold all of them.  Each share carries its 95 % Wilson interval.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.plain_table import plain_table
from longvis_bench.runs.predictions import Answers, Predictions
from longvis_bench.stats import wilson
from longvis_bench.text import clean, spreadsheet_safe

CLASSES, CONFUSION = "classes.csv", "confusion.csv"
SHOWN = 10
"""Number of classes in a table."""
CONFUSED = 3
"""Number of confused classes listed per class."""
LONGEST_NAME = 30
"""Width of a class name in characters."""


class ClassResult(NamedTuple):
    """The result of one class."""

    name: str
    images: int
    correct: int
    taken_for: tuple[tuple[str, int], ...]
    """Wrongly predicted classes and their counts, most frequent first."""


def by_class(answers: Answers) -> list[ClassResult]:
    """Every class with held-out images, worst first; equal ones by the number of wrong predictions."""
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
    taken_for = tuple((names[others[position]], int(times[position])) for position in order)
    return ClassResult(names[label], len(said), int((said == label).sum()), taken_for)


def classes_csv(every: Iterable[Answers]) -> str:
    """Images, correct predictions, share and interval of every class of every accuracy."""
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
    """Confused pairs of classes and their counts, without the diagonal and zeros."""
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


# In a terminal ------------------------------------------------------------------------------------------


def worst_classes(every: Iterable[Answers]) -> RenderableType:
    """For each accuracy a table of its worst classes and their confusions."""
    parts = [part for answers in every for part in _worst_of(answers)]
    if not parts:
        return Text()
    where = f"All classes: {CLASSES}; every confusion: {CONFUSION}, in the directory of the run."
    return Group(*parts, Text(), Text(where))


def _worst_of(answers: Answers) -> Iterator[RenderableType]:
    found = by_class(answers)
    wrong = [one for one in found if one.correct < one.images]
    name = f"{clean(answers.row.cell.model)}, {answers.row.cell.resolution} px"
    yield Text()
    if not wrong:
        yield Text(f"{name}: every image of every class is right")
        return
    shown = wrong[:SHOWN]
    yield Text(f"{name}: {_how_many(len(shown), len(wrong), len(found))}")
    yield _table(shown)


def _how_many(shown: int, wrong: int, classes: int) -> str:
    """Number of classes in the table, of all classes."""
    if shown < wrong:
        return f"the worst {shown} of {classes} classes; {wrong} have wrong answers"
    if wrong < classes:
        return f"{wrong} of {classes} classes have wrong answers, the worst first"
    return f"all {classes} classes, the worst first"


def _table(shown: list[ClassResult]) -> Table:
    """Truncate the last column first if the table is too wide for the terminal."""
    table = plain_table()
    names, shares = [clean(one.name) for one in shown], [_share(one) for one in shown]
    widest = min(LONGEST_NAME, max(map(cell_len, names)))
    table.add_column("class", overflow="ellipsis", no_wrap=True, min_width=widest, max_width=LONGEST_NAME)
    table.add_column("images", justify="right", no_wrap=True, min_width=6)
    table.add_column(" top-1 [95 %]\n    %", no_wrap=True, min_width=max(map(cell_len, shares)))
    table.add_column("taken for (images)", overflow="ellipsis", no_wrap=True)
    for one, name, share in zip(shown, names, shares, strict=True):
        table.add_row(Text(name), str(one.images), share, Text(_confusions(one)))
    return table


def _share(one: ClassResult) -> str:
    values = (one.correct / one.images, *(wilson(one.correct, one.images) or ()))
    share, *ends = (units.percent(value).removesuffix(" %") for value in values)
    return f"{share:>5} [{', '.join(ends)}]"


def _confusions(one: ClassResult) -> str:
    named = [f"{clean(name)} ({times})" for name, times in one.taken_for]
    return units.listing(named, CONFUSED)
