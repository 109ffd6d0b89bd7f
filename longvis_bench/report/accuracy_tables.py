"""Accuracies by class for a terminal: the worst classes only, so that a thousand do not flood it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longvis_bench import units
from longvis_bench.report.per_class import CLASSES, CONFUSION, ClassResult, by_class
from longvis_bench.runs.predictions import Answers
from longvis_bench.stats import wilson
from longvis_bench.text import clean

SHOWN = 10
"""Classes of a table."""
CONFUSED = 3
"""Other classes named beside each."""
LONGEST_NAME = 30
"""Columns of the terminal for a class."""


def worst_classes(every: Iterable[Answers]) -> RenderableType:
    """For each accuracy a table of its worst classes and what they were taken for."""
    parts = [part for answers in every for part in _one(answers)]
    if not parts:
        return Text()
    where = f"All classes: {CLASSES}; every confusion: {CONFUSION}, in the directory of the run."
    return Group(*parts, Text(), Text(where))


def _one(answers: Answers) -> Iterator[RenderableType]:
    found = by_class(answers)
    wrong = [one for one in found if one.correct < one.images]
    name = f"{clean(answers.row.cell.model)}, {answers.row.cell.resolution} px"
    yield Text()
    if not wrong:
        yield Text(f"{name}: every image of every class is right")
        return
    shown = wrong[:SHOWN]
    yield Text(f"{name}: {_which(len(shown), len(wrong), len(found))}")
    yield _table(shown)


def _which(shown: int, wrong: int, classes: int) -> str:
    """How many classes the table has, of how many."""
    if shown < wrong:
        return f"the worst {shown} of {classes} classes; {wrong} have wrong answers"
    if wrong < classes:
        return f"{wrong} of {classes} classes have wrong answers, the worst first"
    return f"all {classes} classes, the worst first"


def _table(shown: list[ClassResult]) -> Table:
    """What is too long for the terminal is cut off the last column first."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
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
