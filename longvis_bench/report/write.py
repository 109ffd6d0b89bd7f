"""The derived files of a run: summaries, accuracies by class and figures, written from rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longvis_bench.records import Row, TrainLength
from longvis_bench.runs.directory import RunDirectory, cannot_write, current

if TYPE_CHECKING:
    from longvis_bench.report.grouping import Grouped


def restate(rows: Sequence[Row], length: TrainLength) -> list[Row]:
    """The same rows with `train_hours` for another training length, which is computed without measuring."""
    return [
        row.model_copy(update={"settings": row.settings.model_copy(update={"hours_for": length})})
        for row in rows
    ]


def write_derived(path: Path, rows: Sequence[Row] | Grouped | None = None, runs: Sequence[Path] = ()) -> None:
    """Write the summaries, the accuracies per class and plots/ from the rows of a run directory.

    Arguments:
        path: the run's directory.
        rows: read from it where not given.
        runs: further directories in which the rows' predictions may lie.

    Raises:
        RunDirectoryError: it takes no more files; those written before, the tables first, are whole.
    """
    from longvis_bench.report.accuracy_by_distance import by_distance
    from longvis_bench.report.grouping import grouped
    from longvis_bench.report.latex import summary_tex
    from longvis_bench.report.per_class import CLASSES, CONFUSION, classes_csv, confusion_csv
    from longvis_bench.report.plots.distance import distance_figures
    from longvis_bench.report.plots.write import write_plots
    from longvis_bench.report.significance import compared
    from longvis_bench.report.summary import short_csv, summary_csv, summary_markdown
    from longvis_bench.runs.predictions import read_answers

    directory = RunDirectory(path)
    every = grouped(current(directory.rows()) if rows is None else rows)
    answers = read_answers(every.rows, [path, *runs])
    directory.write("summary.csv", summary_csv(every))
    directory.write("summary_short.csv", short_csv(every))
    directory.write("summary.md", summary_markdown(every, compared(every, answers)))
    directory.write("summary.tex", summary_tex(every))
    if answers:
        directory.write(CLASSES, classes_csv(answers))
        directory.write(CONFUSION, confusion_csv(answers))
    try:
        write_plots(every, path / "plots", distance_figures(every, by_distance(answers)))
    except OSError as error:
        raise cannot_write(path, error) from error
