"""The derived files of a run: summaries, accuracies by class and figures, written from rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longvis_bench.errors import RunDirectoryError
from longvis_bench.records import Row, TrainLength
from longvis_bench.runs.directory import RunDirectory, current


def restate(rows: Sequence[Row], length: TrainLength) -> list[Row]:
    """The same rows, with hours of training for another length: that is arithmetic, not measuring."""
    return [
        row.model_copy(update={"settings": row.settings.model_copy(update={"hours_for": length})})
        for row in rows
    ]


def write_derived(path: Path, rows: Sequence[Row] | None = None, runs: Sequence[Path] = ()) -> None:
    """Write summary.csv, summary.md, the accuracies by class and plots/ from the rows of a run directory.

    Arguments:
        path: the run's directory.
        rows: read from it where not given.
        runs: further directories in which the rows' predictions may lie.
    """
    from longvis_bench.report.accuracy_by_distance import by_distance
    from longvis_bench.report.per_class import CLASSES, CONFUSION, classes_csv, confusion_csv
    from longvis_bench.report.plots.cost import write_plots
    from longvis_bench.report.plots.distance import distance_figures
    from longvis_bench.report.significance import compare, sentences
    from longvis_bench.report.summary import summary_csv, summary_markdown
    from longvis_bench.runs.predictions import read_answers

    directory = RunDirectory(path)
    rows = current(directory.rows()) if rows is None else rows
    answers = read_answers(rows, [path, *runs])
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_plots(rows, path / "plots", distance_figures(rows, by_distance(answers)))
    except OSError as error:
        raise RunDirectoryError(f"cannot write plots to {path}: {error.strerror or error}.") from error
    directory.write("summary.csv", summary_csv(rows))
    directory.write("summary.md", summary_markdown(rows, sentences(rows, compare(answers))))
    if answers:
        directory.write(CLASSES, classes_csv(answers))
        directory.write(CONFUSION, confusion_csv(answers))
