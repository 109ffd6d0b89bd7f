"""The sections of a page that are text and tables: result, conditions, memory, accuracy and time."""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.report.best import best_lines
from longvis_bench.report.breakdowns import NO_MEMORY, PEAK, memory_columns, part_name, with_memory
from longvis_bench.report.columns import BY_NAME, MEMORY_PARTS
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.html.markup import NOTHING, Markup, element, items, joined, table
from longvis_bench.report.html.whole_table import WholeTable
from longvis_bench.report.per_class import ClassResult, by_class
from longvis_bench.report.phase_table import HEADINGS, phase_lines
from longvis_bench.report.plots.choice import Point, front, points_by_size
from longvis_bench.report.plots.cost import COSTS
from longvis_bench.report.shown import legend, tally
from longvis_bench.report.significance import SEPARATES, compared
from longvis_bench.resolution import Resolution
from longvis_bench.runs.predictions import Answers
from longvis_bench.stats import wilson

ON_FRONT = 6
"""Models of a front that a sentence lists; it counts the others."""
MOST_CLASSES = 20
"""Classes up to which each has a column; of more, the worst are named."""
WORST = 3
SHADES = 5
"""Shades of the cells of accuracies per class."""
_BAR = 200
"""Width of the bar of a memory peak, in its own units."""


def section(name: str, title: str, *content: Markup) -> Markup:
    """A section with its heading, which its region is named by."""
    heading = element("h2", title, id=f"{name}-title")
    return element(
        "section", heading, joined(filter(None, content)), id=name, aria_labelledby=f"{name}-title"
    )


# Result -------------------------------------------------------------------------------------------------


def result(rows: Grouped) -> Markup:
    """A sentence per size: the best, what is not separable from it, and the Pareto front.

    Arguments:
        rows: each cell once.
    """
    best, fronts = best_lines(rows), _fronts(rows)
    found: list[Markup] = []
    for size in rows.sizes:
        where = f"{size} px"
        own = [line for line in best if line.startswith((f"{where}:", f"{where},"))]
        sentences = [*own, *([fronts[size]] if size in fronts else [])]
        if sentences:
            said = " ".join(line.removeprefix(where).lstrip(":, ") for line in sentences)
            found.append(element("li", element("strong", f"{where}:"), Markup(" "), said))
    if not found:
        return element("p", "No two rows of one size and condition can be compared.")
    return element("ul", joined(found), class_="result")


def _fronts(rows: Grouped) -> dict[Resolution, str]:
    """Size -> the front of accuracy against throughput in words, the fastest first."""
    cost = COSTS["throughput"]
    return {
        size: f"Pareto front of accuracy against throughput, from the fastest: {_on_front(found)}."
        for size, found in points_by_size(rows, cost.column).items()
        if len(found) > 1
    }


def _on_front(found: dict[str, Point]) -> str:
    names = [
        f"{label} ({units.rate(found[label].cost)} img/s, {units.percent(found[label].top1)})"
        for label in front(found, better_up=True)
    ]
    return units.listing(names, ON_FRONT)


# Conditions and warnings --------------------------------------------------------------------------------


def conditions(whole: WholeTable) -> Markup:
    """What all rows share, how intervals were computed, and the notes that the table refers to."""
    rows = whole.body.rows
    shared = whole.body.shown.shared_conditions
    first = element("p", f"{tally(rows)}. {f'All: {shared}.' if shared else ''}")
    intervals = element("p", text) if (text := legend(whole.columns, rows)) else NOTHING
    return joined([first, intervals, _notes(whole)])


def _notes(whole: WholeTable) -> Markup:
    numbered = [
        element("li", line, id=f"note-{number}") for number, line in enumerate(whole.notes.lines, start=1)
    ]
    if not numbered and not whole.notes.others:
        return element("p", "No row has a warning.")
    heading = element("h3", "Warnings and reasons, by the numbers in the table")
    return joined([heading, element("ol", joined(numbered)), items(whole.notes.others)])


# Memory -------------------------------------------------------------------------------------------------


def memory(rows: Sequence[Row]) -> Markup:
    """The parts of each peak in MiB, and each peak as a bar."""
    known = with_memory(rows)
    if not known:
        return element("p", NO_MEMORY)
    names = memory_columns(known)
    parts = [name for name in MEMORY_PARTS if name in names]
    largest = max((_bytes(row, PEAK) or 0.0 for row in known), default=0.0)
    lines = [
        [
            row.cell.model,
            str(row.cell.resolution),
            _stacked([_bytes(row, name) or 0.0 for name in parts], largest),
            *(_mib(_bytes(row, name)) for name in names),
        ]
        for row in known
    ]
    headings = ["model", "px", "peak, by parts", *(_keyed(name, parts) for name in names)]
    meanings = [f"{part_name(n)}: {BY_NAME[n].meaning.removeprefix('Part of the peak: ')}" for n in names]
    said = element("p", "In MiB. The columns between peak and tensors sum to the peak.")
    return joined([said, table(headings, lines, "Memory by parts", len(names)), items(meanings)])


def _bytes(row: Row, name: str) -> float | None:
    value = BY_NAME[name].value(row)
    return float(value) if isinstance(value, int | float) else None


def _mib(size: float | None) -> str:
    return units.UNKNOWN if size is None else f"{size / (1 << 20):.1f}"


def _keyed(name: str, parts: Sequence[str]) -> Markup:
    """The heading of a part, with the colour that it has in the bars."""
    key = NOTHING
    if name in parts:
        square = element("rect", width=10, height=10, class_=f"part-{parts.index(name)}")
        key = element("svg", square, viewBox="0 0 10 10", class_="key", aria_hidden="true")
    return Markup(key + element("span", part_name(name)))


def _stacked(sizes: Sequence[float], largest: float) -> Markup:
    """A bar of the parts; the numbers beside it say the same."""
    bars, left = [], 0.0
    for number, size in enumerate(sizes):
        width = _BAR * max(0.0, size) / largest if largest else 0.0
        if width > 0:
            place = {"x": f"{left:.2f}", "y": "0", "width": f"{width:.2f}", "height": "12"}
            bars.append(element("rect", class_=f"part-{number}", **place))
            left += width
    return element("svg", *bars, viewBox=f"0 0 {_BAR} 12", class_="bar", aria_hidden="true")


# Accuracy by class --------------------------------------------------------------------------------------


def classes(every: Sequence[Answers], rows: Grouped) -> Markup:
    """Accuracy of each class, or the worst of many classes; then which models' accuracies are separable.

    Arguments:
        every: predictions of the rows.
        rows: each cell once; they decide how a model is called.
    """
    if not every:
        return element("p", "The runs hold no predictions, so accuracies by class are not known.")
    found = [(answers, by_class(answers)) for answers in every]
    groups: dict[tuple[str, ...], list[tuple[Answers, list[ClassResult]]]] = {}
    for answers, results in found:
        groups.setdefault(tuple(sorted(one.name for one in results)), []).append((answers, results))
    tables = [_few(names, of) if len(names) <= MOST_CLASSES else _many(of) for names, of in groups.items()]
    said = compared(rows, [answers for answers, _ in found])
    heading = element("h3", "Accuracies compared")
    intro = element(
        "p",
        f"McNemar's exact test on the same images, two-sided, each pair on its own; p at most {SEPARATES} "
        "separates two models. Of many pairs some differ by chance.",
    )
    return joined([*tables, *([heading, intro, items(said)] if said else [])])


def _few(names: Sequence[str], of: Sequence[tuple[Answers, list[ClassResult]]]) -> Markup:
    """A column for each class."""
    lines = []
    for answers, results in of:
        shares = {one.name: one for one in results}
        cells = [_shaded(shares[name]) for name in names]
        lines.append([answers.row.cell.model, str(answers.row.cell.resolution), *cells])
    counts = [one.images for _, results in of for one in results]
    images = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(min(counts))
    said = element(
        "p", f"Share of each class's held-out images that are right, in %; {images} images per class."
    )
    return joined([said, table(["model", "px", *names], lines, "Accuracy by class", len(names))])


def _shaded(one: ClassResult) -> Markup:
    share = one.correct / one.images
    return element("span", f"{100 * share:.0f}", class_=f"shade shade-{int(share * SHADES - 1e-9)}")


def _many(of: Sequence[tuple[Answers, list[ClassResult]]]) -> Markup:
    """The worst classes of each row."""
    lines = []
    for answers, results in of:
        wrong = [one for one in results if one.correct < one.images][:WORST]
        said = "; ".join(map(_worst, wrong)) or "every image is right"
        lines.append([answers.row.cell.model, str(answers.row.cell.resolution), str(len(results)), said])
    return table(["model", "px", "classes", "the worst, with 95 % intervals"], lines, "Worst classes")


def _worst(one: ClassResult) -> str:
    interval = wilson(one.correct, one.images)
    ends = f" [{', '.join(map(units.percent, interval))}]" if interval else ""
    confused = f", taken for {one.taken_for[0][0]}" if one.taken_for else ""
    return f"{one.name} {units.percent(one.correct / one.images)}{ends}{confused}"


# Overhead -----------------------------------------------------------------------------------------------


def overhead(rows: Sequence[Row]) -> Markup:
    """Where the seconds of the runs went."""
    timed = [row for row in rows if row.overhead_s]
    if not timed:
        return element("p", "No row of these runs has a timing breakdown.")
    found = phase_lines(timed)
    order = (0, 4, 1, 2, 3)  # numbers stand together at the right
    lines = [[line[index] for index in order] for line in found.lines]
    headings = [HEADINGS[index] for index in order]
    said = [element("p", " ".join(found.sentences))]
    return joined([*said, table(headings, lines, "Seconds by phase", numbers=3)])
