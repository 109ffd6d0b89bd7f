"""Two runs, or two models, cell by cell: ratios of time, memory and operations, and accuracy.

A ratio is that of the second side (`after`) to the first (`before`): above 1 the second is slower or larger.
Cells belong together if they differ at most in the repeat, the weights and the metrics that were measured,
and in the model where two models are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from longvis_bench import units
from longvis_bench.errors import LongvisError, UnknownName
from longvis_bench.records import Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import CONDITIONS, Grouped, in_words, is_disturbed
from longvis_bench.report.significance import SEPARATES
from longvis_bench.resolution import columns
from longvis_bench.runs.directory import current, read_rows
from longvis_bench.runs.predictions import read_predictions
from longvis_bench.stats import mcnemar, process_spread
from longvis_bench.stats.ratios import ENOUGH, USUAL_SPREAD, Ratio, holm, ratio

Verdict = Literal["faster", "slower", "same", "unclear"]
SAME = 0.05
"""Times are the same if the whole interval of their ratio is within this share of 1."""
LIMITS = ("slower", "memory", "macs", "top1")
"""What `--fail` takes a threshold for."""
UNCLEAR = 4
"""Exit code where a threshold is undecided, under `--strict`."""
_MODEL = ("model", "family", "variant", "implementation", "arguments")
_APART = ("round", "weights", "weights_sha256", "normalisation", "metrics")


@dataclass(frozen=True)
class Side:
    """The rows of one side by cell; those of one cell are its repeats."""

    name: str
    path: Path
    cells: dict[str, list[Row]]


@dataclass(frozen=True)
class Accuracies:
    """Top-1 of both sides, and McNemar's test if both stored predictions for the same images."""

    before: float
    after: float
    p: float | None

    @property
    def significant(self) -> bool:
        """Whether the difference is significant; unknown counts as not."""
        return self.p is not None and self.p <= SEPARATES


@dataclass(frozen=True)
class Pair:
    """One cell on both sides."""

    before: Row
    after: Row
    time: Ratio | None
    """Time per image."""
    memory: float | None
    macs: float | None
    accuracies: Accuracies | None

    @property
    def verdict(self) -> Verdict | None:
        """On the time per image; None if a side has none, and unclear if other load disturbed one."""
        if self.time is None:
            return None
        if self.disturbed:
            return "unclear"
        if self.time.low > 1:
            return "slower"
        if self.time.high < 1:
            return "faster"
        return "same" if self.time.low >= 1 / (1 + SAME) and self.time.high <= 1 + SAME else "unclear"

    @property
    def disturbed(self) -> bool:
        """Whether other load disturbed all processes of a side."""
        return is_disturbed(self.before) or is_disturbed(self.after)

    @property
    def failed(self) -> bool:
        """Whether a cell that ran before did not run after."""
        return self.before.status == "ok" and self.after.status != "ok"


@dataclass(frozen=True)
class Check:
    """A threshold of `--fail` on one cell: exceeded, or undecided."""

    pair: Pair
    limit: str
    sentence: str
    exceeded: bool


@dataclass(frozen=True)
class Comparison:
    """All pairs, and the cells that only one side has."""

    before: Side
    after: Side
    pairs: list[Pair]
    only_before: list[Row] = field(default_factory=list)
    only_after: list[Row] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """How far the verdicts can be trusted: many comparisons, few processes, cells of one side."""
        timed = [pair for pair in self.pairs if pair.time is not None]
        return [
            *_many(timed),
            *_few_processes(timed),
            *_disturbed(timed),
            *_alone(self.only_before, self.before.name),
            *_alone(self.only_after, self.after.name),
        ]


def compare(before: Path, after: Path | None = None, models: Sequence[str] = ()) -> Comparison:
    """Compare two runs, or two models.

    Arguments:
        before: a run directory.
        after: another one; by default the same, which needs two models.
        models: two names, the first of `before` and the second of `after`; or one name of both runs.

    Raises:
        LongvisError: one run without two models, models that a run does not have, or no common cell.
        RunDirectoryError: a run cannot be read.
    """
    if len(models) == 1 and after is not None:
        models = (models[0], models[0])
    if models and len(models) != 2:
        raise LongvisError(f"--models takes two models to compare, like vit-s,atlas-s, not {len(models)}.")
    if not models and (after is None or after.resolve() == before.resolve()):
        raise LongvisError("one run needs two models to compare: add another run, or --models NAME,NAME.")
    paths = (before, before if after is None else after)
    names = tuple(models) if len(set(models)) == 2 else (str(before), str(after))
    sides = [
        _side(path, name, model)
        for path, name, model in zip(paths, names, models or (None, None), strict=True)
    ]
    return _paired(*sides)


def processes(rows: Sequence[Row]) -> list[list[float]]:
    """Seconds per image in each undisturbed process of all repeats of a cell."""
    return [
        [sample / (row.cell.batch_size * row.cell.world) for sample in samples]
        for row in rows
        if row.status == "ok" and row.timing is not None
        for samples in row.timing.by_process(clean=True)
    ]


def read_limits(text: str) -> dict[str, float]:
    """`slower:5%,memory:2%` -> {"slower": 0.05, "memory": 0.02}.

    Raises:
        ValueError: a part has another form; the message shows a valid one.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        try:
            found[name] = units.read_share(share)
        except ValueError:
            found[name] = -1.0
        if name not in LIMITS or not 0 <= found[name] < 10:
            raise ValueError("thresholds like slower:5%,memory:2%,macs:0%,top1:1%")
    return found


def check(comparison: Comparison, limits: dict[str, float]) -> list[Check]:
    """The thresholds that cells exceed, and those that are undecided.

    A cell that ran before and does not run after exceeds them all.  `slower` is exceeded if the cell is
    slower by its interval and the ratio is over the threshold, and undecided if only the interval reaches
    over it.  `top1` is exceeded if it falls by more than the threshold and McNemar's test is significant.
    A quantity that `before` has and `after` has not is undecided, as are cells that only `before` has.
    """
    found = []
    for pair in comparison.pairs:
        if pair.failed and limits:
            found.append(Check(pair, "status", f"{pair.after.status} instead of ok", True))
            continue
        found += [one for name, share in limits.items() if (one := _check(pair, name, share)) is not None]
    return found


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One plain mapping per pair; None for what is not known.  Times are seconds per image, memory bytes."""
    timed = [pair.time.p for pair in comparison.pairs if pair.time is not None]
    survives = iter(holm(timed))
    return [_record(pair, next(survives) if pair.time is not None else None) for pair in comparison.pairs]


def sentences(comparison: Comparison) -> list[str]:
    """The cells by verdict."""
    verdicts = [pair.verdict or "not timed" for pair in comparison.pairs]
    parts = [f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)]
    cells = units.several(len(verdicts), "cell")
    return [f"{comparison.after.name} against {comparison.before.name}: {cells}, {', '.join(parts)}."]


# Pairs --------------------------------------------------------------------------------------------------


def _side(path: Path, name: str, model: str | None) -> Side:
    rows = current(read_rows(path))
    if model is not None:
        known = {row.cell.model for row in rows}
        if model not in known:
            raise UnknownName("model of this run", model, known)
        rows = [row for row in rows if row.cell.model == model]
    return Side(name, path, cells_of(rows, across_models=model is not None))


def cells_of(rows: Sequence[Row], *, across_models: bool) -> dict[str, list[Row]]:
    """Rows by cell; those of one cell are its repeats.

    Arguments:
        rows: of one run, each key once.
        across_models: cells of different models have the same key if all else is equal.
    """
    apart = (*_APART, *(_MODEL if across_models else ()))
    cells: dict[str, list[Row]] = {}
    for row in rows:
        searched = ("batch_size",) if row.cell.batch_auto else ()
        cells.setdefault(row.cell.identity(without=(*apart, *searched)), []).append(row)
    return {key: _one_of(found) for key, found in cells.items()}


def usual_spread(cells: Iterable[Sequence[Row]]) -> float | None:
    """Spread between processes, the root mean square over the cells that were timed in enough of them."""
    timed = [processes(rows) for rows in cells]
    spreads = [process_spread(samples) for samples in timed if len(samples) >= ENOUGH]
    known = [spread for spread in spreads if spread is not None]
    return (sum(spread**2 for spread in known) / len(known)) ** 0.5 if known else None


def _one_of(rows: list[Row]) -> list[Row]:
    """The repeats of the last measured weights, if a run has a cell with several."""
    return [row for row in rows if row.cell.weights_sha256 == rows[-1].cell.weights_sha256]


def _paired(before: Side, after: Side) -> Comparison:
    common = [key for key in before.cells if key in after.cells]
    if not common:
        raise LongvisError(
            f"{before.name} and {after.name} have no cell in common: {_difference(before, after)}."
        )
    others = usual_spread([*before.cells.values(), *after.cells.values()])
    pairs = [_pair(before, after, key, others) for key in common]
    order = {id(row): place for place, row in enumerate(Grouped([p.before for p in pairs]).rows)}
    return Comparison(
        before,
        after,
        sorted(pairs, key=lambda pair: order[id(pair.before)]),
        [rows[0] for key, rows in before.cells.items() if key not in after.cells],
        [rows[0] for key, rows in after.cells.items() if key not in before.cells],
    )


def _difference(before: Side, after: Side) -> str:
    """The conditions of which the sides share no value, e.g. "threads 2 and 4"."""
    differing = []
    for name in ("model", "resolution", *(c for c in CONDITIONS if c not in ("round", "machine"))):
        one, other = ({_condition(name, rows[0]) for rows in s.cells.values()} for s in (before, after))
        if one and other and not one & other and (name != "model" or before.path != after.path):
            differing.append(f"{name} {_values(one)} and {_values(other)}")
    return "; ".join(differing) or "no combination of model, size and conditions is in both"


def _condition(name: str, row: Row) -> object:
    return str(row.cell.resolution) if name == "resolution" else BY_NAME[name].value(row)


def _values(values: set[Any]) -> str:
    return units.listing(sorted(map(units.plain, values)), 3)


def _pair(before: Side, after: Side, key: str, others: float | None) -> Pair:
    one, other = before.cells[key], after.cells[key]
    first, second = _shown(one), _shown(other)
    return Pair(
        first,
        second,
        ratio(processes(other), processes(one), others),
        _exact(first, second, "peak_memory_bytes"),
        _exact(first, second, "macs"),
        _accuracies(first, second, before.path, after.path),
    )


def _shown(rows: Sequence[Row]) -> Row:
    """The first repeat that is ok, which has memory and accuracy; else the first."""
    return next((row for row in rows if row.status == "ok"), rows[0])


def _exact(before: Row, after: Row, column: str) -> float | None:
    one, other = (BY_NAME[column].value(row) for row in (before, after))
    known = isinstance(one, int | float) and isinstance(other, int | float) and one > 0
    return float(other) / float(one) if known else None  # type: ignore[arg-type]


def _accuracies(before: Row, after: Row, first: Path, second: Path) -> Accuracies | None:
    if before.accuracy is None or after.accuracy is None:
        return None
    shares = [row.accuracy.correct_top1 / row.accuracy.images for row in (before, after) if row.accuracy]
    one, other = read_predictions(before, [first]), read_predictions(after, [second])
    p = None
    if one is not None and other is not None and one.same_images(other):
        p = mcnemar(int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum()))
    return Accuracies(shares[0], shares[1], p)


# Thresholds ---------------------------------------------------------------------------------------------


def _check(pair: Pair, name: str, share: float) -> Check | None:
    if name == "slower":
        return _check_time(pair, share)
    if name == "top1":
        return _check_top1(pair, share)
    found = pair.memory if name == "memory" else pair.macs
    if found is None:
        column = "peak_memory_bytes" if name == "memory" else "macs"
        return _missing(pair, name) if BY_NAME[column].value(pair.before) is not None else None
    if found <= 1 + share:
        return None
    return Check(pair, name, f"{name} x {units.significant(found, 4)}, limit {units.percent(share)}", True)


def _check_time(pair: Pair, share: float) -> Check | None:
    if pair.time is None:
        return _missing(pair, "slower") if pair.before.timing is not None else None
    said = f"time {ratio_text(pair.time)}, limit {units.percent(share)}"
    if pair.verdict == "slower" and pair.time.value > 1 + share:
        return Check(pair, "slower", said, True)
    undecided = pair.disturbed or pair.time.high > 1 + share
    return Check(pair, "slower", said, False) if undecided else None


def _check_top1(pair: Pair, share: float) -> Check | None:
    found = pair.accuracies
    if found is None:
        return _missing(pair, "top1") if pair.before.accuracy is not None else None
    if found.before - found.after <= share:
        return None
    return Check(
        pair, "top1", f"top-1 {accuracy_text(found)}, limit {units.percent(share)}", found.significant
    )


def _missing(pair: Pair, name: str) -> Check:
    return Check(pair, name, f"{name} is not known on both sides", False)


# Texts --------------------------------------------------------------------------------------------------


def ratio_text(found: Ratio | None) -> str:
    """`1.05 [1.02, 1.08]`."""
    if found is None:
        return units.UNKNOWN
    return "{} [{}, {}]".format(*(units.significant(v, 3) for v in (found.value, found.low, found.high)))


def exact_text(found: float | None) -> str:
    """A ratio of exact numbers; `=` for equal ones."""
    return units.UNKNOWN if found is None else "=" if found == 1 else units.significant(found, 4)


def accuracy_text(found: Accuracies | None) -> str:
    """The difference in points, and the p-value of McNemar's test."""
    if found is None:
        return units.UNKNOWN
    chance = units.chance(found.p) if found.p is not None else "other images"
    return f"{100 * (found.after - found.before):+.1f} points ({chance})"


def conditions(comparison: Comparison) -> dict[int, str]:
    """Index of a pair -> the conditions in which the pairs vary, in words."""
    every = Grouped([pair.before for pair in comparison.pairs])
    names = [name for name in every.varying if name not in ("round", "machine")]
    words = [
        [in_words(name, BY_NAME[name].value(pair.before)) for name in names] for pair in comparison.pairs
    ]
    return {index: ", ".join(filter(None, found)) for index, found in enumerate(words)}


def label(pair: Pair) -> str:
    """The model, or both where they differ."""
    one, other = pair.before.cell.model, pair.after.cell.model
    return one if one == other else f"{other} / {one}"


def _many(timed: Sequence[Pair]) -> list[str]:
    differing = [pair.verdict in ("faster", "slower") for pair in timed]
    if len(timed) < 2:
        return []
    expected = units.significant(0.05 * len(timed), 2)
    kept = sum(holm([pair.time.p for pair in timed if pair.time is not None]))
    return [
        f"{len(timed)} times are compared, each at 95 %: {expected} equal ones "
        f"would be called different by chance; {sum(differing)} are, {kept} also after Holm's correction."
    ]


def _disturbed(timed: Sequence[Pair]) -> list[str]:
    names = list(dict.fromkeys(label(pair) for pair in timed if pair.disturbed))
    return [f"other load disturbed a side, so unclear: {units.listing(names, 3)}."] if names else []


def _few_processes(timed: Sequence[Pair]) -> list[str]:
    bases = [pair.time.basis for pair in timed if pair.time is not None]
    said = {
        "other cells": f"fewer than {ENOUGH} processes on a side, so other cells give the spread",
        "samples": f"fewer than {ENOUGH} processes on a side and an unknown spread, so the interval assumes "
        f"{units.percent(USUAL_SPREAD)} between processes",
    }
    return [
        f"{units.several(bases.count(basis), 'cell')}: {text}; bench with --repeats {ENOUGH} measures it."
        for basis, text in said.items()
        if basis in bases
    ]


def _alone(rows: Sequence[Row], name: str) -> list[str]:
    if not rows:
        return []
    cells = [f"{row.cell.model} {row.cell.resolution} px" for row in rows]
    return [f"only in {name}: {units.listing(list(dict.fromkeys(cells)), 5)}."]


def _record(pair: Pair, holm_significant: bool | None) -> dict[str, Any]:
    time, accuracy = pair.time, pair.accuracies
    return {
        "model_before": pair.before.cell.model,
        "model_after": pair.after.cell.model,
        **columns(pair.before.cell.resolution),
        **{name: BY_NAME[name].value(pair.before) for name in CONDITIONS if name not in ("round", "machine")},
        "status_before": pair.before.status,
        "status_after": pair.after.status,
        "verdict": pair.verdict,
        "time_ratio": time and time.value,
        "time_ratio_low": time and time.low,
        "time_ratio_high": time and time.high,
        "time_p": time and time.p,
        "holm_significant": holm_significant,
        "interval_from": time and time.basis,
        "memory_ratio": pair.memory,
        "macs_ratio": pair.macs,
        "top1_before": accuracy and accuracy.before,
        "top1_after": accuracy and accuracy.after,
        "top1_p": accuracy and accuracy.p,
    }
