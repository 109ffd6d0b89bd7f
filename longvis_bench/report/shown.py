"""Content of both readable tables: columns, the text of each value, and footnotes.

Texts from rows are hostile until cleaned: they hold whatever a model or a driver printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len

from longvis_bench import units
from longvis_bench.records import Row, RowWarning
from longvis_bench.report.columns import BY_NAME, Column, null_reason
from longvis_bench.report.footnotes import Footnote, Footnotes, Remark, remark
from longvis_bench.report.grouping import Grouped
from longvis_bench.row_warnings import KINDS
from longvis_bench.text import clean


@dataclass(frozen=True)
class Shown:
    """A column of a readable table."""

    column: str
    heading: str
    interval: tuple[str, str] | None = None
    """Columns with the low and the high end of the interval."""
    replaces: str | None = None
    """Heading of the narrower column that this one replaces if the terminal is wide enough."""

    @property
    def declared(self) -> Column:
        """The column it shows."""
        return BY_NAME[self.column]


MODEL = Shown("model", "model")
SIZE = Shown("resolution", "size")
STATUS = Shown("status", "status")
BASELINE = Shown("time_vs_baseline", "x baseline")
"""Its heading in a table names the model."""
NUMBERS = (
    Shown("throughput_img_s", "img/s"),
    BASELINE,
    Shown(
        "time_vs_baseline",
        "x baseline [95 %]",
        ("time_vs_baseline_low", "time_vs_baseline_high"),
        "x baseline",
    ),
    Shown("peak_memory_bytes", "memory"),
    Shown("macs", "MACs"),
    Shown("top1", "top-1"),
    Shown("latency_median_s", "latency"),
    Shown("params", "params"),
    Shown("top1", "top-1 [95 %]", ("top1_low", "top1_high"), "top-1"),
    Shown("latency_median_s", "latency [95 %]", ("latency_low_s", "latency_high_s"), "latency"),
    Shown("round_spread", "between repeats"),
    Shown("train_hours", "training"),
    Shown("verdict", "verdict"),
    Shown("samples", "samples"),
    Shown("scan_flops", "scan FLOPs"),
    Shown("mfu", "MFU"),
    Shown("top5", "top-5"),
    Shown("latency_p90_s", "p90"),
    Shown("padding_ratio", "padding"),
    Shown("flops_coverage", "FLOP coverage"),
    Shown("validity", "validity"),
)
"""Columns by importance: a narrow terminal shows as many as fit."""
ACCURACY = (
    Shown("top1", "top-1"),
    Shown("images", "images"),
    Shown("top1", "top-1 [95 %]", ("top1_low", "top1_high"), "top-1"),
    Shown("top5", "top-5"),
    Shown("top5", "top-5 [95 %]", ("top5_low", "top5_high"), "top-5"),
    Shown("trained_resolution", "trained at"),
    Shown("weights", "weights"),
)
"""The same for evaluations."""
ORDER = (
    "top-1",
    "top-1 [95 %]",
    "top-5",
    "top-5 [95 %]",
    "images",
    "trained at",
    "weights",
    "img/s",
    "x baseline",
    "x baseline [95 %]",
    "latency",
    "latency [95 %]",
    "between repeats",
    "p90",
    "training",
    "verdict",
    "samples",
    "memory",
    "MACs",
    "scan FLOPs",
    "params",
    "MFU",
    "padding",
    "FLOP coverage",
    "validity",
)
"""Order of the columns from left to right."""
SUMMARY = (
    "top-1 [95 %]",
    "img/s",
    "x baseline [95 %]",
    "latency [95 %]",
    "between repeats",
    "training",
    "verdict",
    "memory",
    "MACs",
    "scan FLOPs",
    "params",
    "MFU",
)
OPTIONAL = {
    *("x baseline", "x baseline [95 %]"),
    *("training", "between repeats", "scan FLOPs", "MFU", "p90", "padding", "FLOP coverage"),
    *("top-5", "top-5 [95 %]", "images", "trained at", "weights"),
}
"""Columns that are shown only if some row has an informative value."""
TELLING = ("top-1", "latency", "memory", "MACs", "validity")
"""For each metric, the column whose reason is given if no row has a value of the metric."""
_DULL = {"scan_flops": 0, "flops_coverage": 1.0, "padding_ratio": 0.0}

COMMON_ROWS, COMMON_SHARE = 4, 1 / 3
"""A warning on the latency of at least so many rows, and of over so large a share of those timed, is said
once below the table: where nearly every row carries a mark, readers stop looking at marks."""
DRIFT_MATTERS = 0.05
"""A drift that large is marked on its row all the same."""

Marks = dict[Shown, dict[int, tuple[int, ...]]]
"""Column -> index of a row -> numbers of its footnotes; rows without any are left out."""


class Body:
    """The rows of a readable table, with each column's texts and remarks, each computed once.

    Arguments:
        rows: rows of one or several runs; the table has one row per cell, whatever its repeats.
    """

    def __init__(self, rows: Grouped) -> None:
        self.shown = rows.shown
        self.rows = rows.shown.rows
        self._texts: dict[Shown, list[str]] = {}
        self._scales: dict[Shown, units.Scale | None] = {}
        self._remarks: dict[Shown, dict[int, list[Remark]]] = {}

    @property
    def conditions(self) -> list[Shown]:
        """A column for each condition that varies."""
        return [Shown(name, name.removesuffix("_size").replace("_", " ")) for name in self.shown.varying]

    # Texts

    def texts(self, shown: Shown) -> list[str]:
        """The texts of a column: numbers in its shared unit, else each with its own."""
        if shown not in self._texts:
            scale = self.scale(shown)
            self._texts[shown] = [_text(shown, row, scale) for row in self.rows]
        return self._texts[shown]

    def heading(self, shown: Shown) -> list[str]:
        """The heading of a column, with the unit if the whole column shares one."""
        unit = self._unit(shown)
        heading = shown.heading
        if shown.column == BASELINE.column:
            heading = heading.replace("baseline", _baseline(self.rows))
        return [heading, unit] if unit else [heading]

    def scale(self, shown: Shown) -> units.Scale | None:
        """The unit that the whole column can share, if any."""
        if shown not in self._scales:
            values = [shown.declared.value(row) for row in self.rows] if shown.declared.scales else []
            known = [float(value) for value in values if isinstance(value, int | float)]
            scales = shown.declared.scales
            self._scales[shown] = units.shared_scale(known, scales) if scales else None
        return self._scales[shown]

    def width(self, shown: Shown) -> int:
        """Width of a column in characters, without marks."""
        return max(map(cell_len, self.texts(shown)), default=0)

    def says_something(self, shown: Shown) -> bool:
        """Whether the column belongs into the table.

        It does not where no row has a value, or all values are what readers assume anyway.
        """
        value = shown.declared.value
        return any(value(row) not in (None, _DULL.get(shown.column)) for row in self.rows)

    def _unit(self, shown: Shown) -> str:
        if shown.column == "resolution":
            return "px"
        scale = self.scale(shown)
        return scale.unit if scale else ""

    # Remarks

    def marks(self, columns: Sequence[Shown], *, by_row: bool = False) -> tuple[Marks, Footnotes]:
        """The footnotes of each value, and the footnotes; numbered along columns, or along rows."""
        by_column = {shown.column: shown for shown in columns}
        remarks: dict[Shown, dict[int, list[Remark]]] = {
            shown: {index: list(found) for index, found in self._own_remarks(shown).items()}
            for shown in columns
        }
        for index, note, said in self._warnings:
            if note.code not in self._common:
                remarks[_column_of(note.code, by_column)].setdefault(index, []).append(said)
        order = [(shown, index) for shown in columns for index in sorted(remarks[shown])]
        if by_row:
            order.sort(key=lambda cell: cell[1])
        notes, marks = Footnotes(), Marks()
        for shown, index in order:
            numbers = (notes.mark(one) for one in remarks[shown][index])
            marks.setdefault(shown, {})[index] = tuple(dict.fromkeys(numbers))
        for code, every in self._common.items():
            self._add_common(code, every, marks.setdefault(_column_of(code, by_column), {}), notes)
        for line in self._without_value:
            notes.add(line, numbered=False)
        return marks, notes

    def _own_remarks(self, shown: Shown) -> dict[int, list[Remark]]:
        """Reasons of a status other than ok, and of missing values that the user requested."""
        if shown not in self._remarks:
            found = ((index, _own_remark(shown, row)) for index, row in enumerate(self.rows))
            self._remarks[shown] = {index: [said] for index, said in found if said is not None}
        return self._remarks[shown]

    @cached_property
    def _without_value(self) -> list[Footnote]:
        """One line for each metric that was asked for and has no value in any row: the most common reason."""
        telling = [shown for name in TELLING for shown in NUMBERS if shown.heading == name]
        lines = []
        for shown in telling:
            said = [one for found in self._own_remarks(shown).values() for one in found]
            if said and not self.says_something(shown):
                lines.append(_most_common(said, len(self.rows)))
        return lines

    @cached_property
    def _warnings(self) -> list[tuple[int, RowWarning, Remark]]:
        return [
            (index, note, remark(note.code.replace("_", " "), note.message, row, note.advice, key=""))
            for index, row in enumerate(self.rows)
            for note in row.notes
        ]

    @cached_property
    def _common(self) -> dict[str, list[tuple[int, Remark]]]:
        """Warnings on the latency of so many rows that none is marked: code -> all, the worst first."""
        timed = sum(row.timing is not None for row in self.rows)
        on_time = [code for code, kind in KINDS.items() if kind.column == "latency_median_s"]
        counts = Counter(note.code for _, note, _ in self._warnings)
        common = [c for c in on_time if counts[c] >= COMMON_ROWS and counts[c] > COMMON_SHARE * timed]
        return {
            code: sorted(
                ((index, said) for index, note, said in self._warnings if note.code == code),
                key=lambda found: -_drift(found[1].row) if code == "drift" else 0,
            )
            for code in common
        }

    def _add_common(
        self,
        code: str,
        said: Sequence[tuple[int, Remark]],
        marks: dict[int, tuple[int, ...]],
        notes: Footnotes,
    ) -> None:
        """One line for a warning on many rows; it has a number if some of the rows are marked."""
        timed = units.several(sum(row.timing is not None for row in self.rows), "timed cell")
        matter = [index for index, one in said if code == "drift" and _drift(one.row) > DRIFT_MATTERS]
        marked = f"; the mark is on changes over {units.percent(DRIFT_MATTERS)}" if matter else ""
        line = Footnote(said[0][1], f"{len(said)} of {timed}{marked}: ")
        for _, one in said:
            line.add(one)
        number = notes.add(line, numbered=bool(matter))
        for index in matter:
            marks[index] = (*marks.get(index, ()), number)


def _most_common(said: Sequence[Remark], rows: int) -> Footnote:
    """A footnote of the remarks that most rows share; it says of how many where others have another one."""
    (most, number), *others = Counter(one.line for one in said).most_common()
    alike = [one for one in said if one.line == most]
    line = Footnote(alike[0], f"{number} of {units.several(rows, 'row')}: " if others else "")
    for one in alike:
        line.add(one)
    return line


def _column_of(code: str, columns: dict[str, Shown]) -> Shown:
    """The column that shows a warning's mark; the model column if that column is not shown."""
    kind = KINDS.get(code)
    return columns.get(kind.column, columns["model"]) if kind else columns["model"]


def _drift(row: Row) -> float:
    found = BY_NAME["latency_drift"].value(row)
    return abs(found) if isinstance(found, float) else 0.0


def _own_remark(shown: Shown, row: Row) -> Remark | None:
    if shown.column == "status" and row.status != "ok" and row.reason:
        return remark(row.status, row.reason, row)
    if _needs_reason(shown, row):
        heading = shown.heading.partition(" [")[0]
        return remark(f"no {heading}", null_reason(shown.declared, row) or "", row)
    return None


def _needs_reason(shown: Shown, row: Row) -> bool:
    """Whether a requested column lacks a value whose absence the status does not explain already."""
    column = shown.declared
    if column.metric not in row.cell.metrics or shown.heading in OPTIONAL or column.value(row) is not None:
        return False
    return row.status == "ok" or column.name in row.null_reasons or column.metric in row.null_reasons


def _text(shown: Shown, row: Row, scale: units.Scale | None) -> str:
    if shown == SIZE:
        return str(row.cell.resolution)
    value = _in_scale(shown.declared, row, scale)
    if shown.interval is None or value == units.UNKNOWN:
        return value
    low, high = (_in_scale(BY_NAME[name], row, scale) for name in shown.interval)
    return value if units.UNKNOWN in (low, high) else f"{value} [{low}, {high}]"


def _in_scale(column: Column, row: Row, scale: units.Scale | None) -> str:
    value = column.value(row)
    if value is None or scale is None or isinstance(value, str):
        return clean(column.format(value))
    if column.scales == units.SHARES:
        return units.percent(value).removesuffix(" %")
    return units.significant(value / scale.factor)


def legend(columns: Sequence[Shown], rows: Sequence[Row]) -> str:
    """How the intervals were computed, and which of several repeats is shown."""
    methods = {"top1": ["of top-1 by Wilson's score"], "top5": ["of top-5 by the same"]}
    methods["latency_median_s"] = _latency_methods(rows)
    methods[BASELINE.column] = ["of the ratio over processes by Welch's t"]
    there = [method for shown in columns if shown.interval for method in methods[shown.column]]
    lines = [f"[95 %]: interval {' and '.join(there)}."] if there else []
    if any(shown.column == BASELINE.column for shown in columns):
        lines.append(f"x {_baseline(rows)}: time per image / that of {_baseline(rows)}, all else equal.")
    if any(row.timing is not None and row.timing.host_s for row in rows):
        lines.append(
            "Latency and rank are by time between two events on the GPU, waiting for the host included; "
            "graph_latency_s in summary.csv is without that wait."
        )
    if any(row.repeats_s for row in rows):
        lines.append(
            "A cell measured several times is shown once, by the repeat of median latency; "
            "between repeats: (largest - smallest) / median of their latencies."
        )
    return " ".join(lines)


def _baseline(rows: Sequence[Row]) -> str:
    """The model that times are divided by."""
    return next((clean(row.baseline[0]) for row in rows if row.baseline), "")


def _latency_methods(rows: Sequence[Row]) -> list[str]:
    """How the intervals of the latencies were computed: over processes, or within the only one."""
    timings = [row.timing for row in rows if row.timing is not None]
    over = [len(t.by_process(clean=True)) > 1 or t.others_spread is not None for t in timings]
    methods = ["of the latency over processes by Student's t"] if any(over) else []
    return methods if timings and all(over) else [*methods, "of the median by order statistics"]


def tally(rows: Sequence[Row]) -> str:
    """Number of cells by status, e.g. "21 cells: 19 ok, 1 oom, 1 timeout"."""
    counts = Counter(row.status for row in rows)
    parts = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    return f"{units.several(len(rows), 'cell')}: {parts}"
