"""The verdict on each published number, with the likely reason of a contradiction or what is missing.

A count is reproduced if it would be printed as the published number.  A measured number is reproduced if its
95 % interval holds a value that would be.  The reason of a contradiction is one under which the count gives
the published number; where none does, it is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from longvis_bench import units
from longvis_bench.measure.flops.counter import OperatorCount
from longvis_bench.published.counts import Counts
from longvis_bench.published.numbers import Claim, claims_of
from longvis_bench.records import Row
from longvis_bench.registry.registry import Registry

Verdict = Literal["reproduced", "contradicted", "not comparable"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "contradicted", "not comparable")
COUNTED = ("params", "MACs")
"""Quantities that need no run."""
UNKNOWN_REASON = "not known"
WITHOUT_ATTENTION = "without the products of attention"
NEAR = 0.25
"""Largest distance between a published number and another convention's count, as a share of the distance
between the two counts, for the convention to be the likely reason."""


@dataclass(frozen=True)
class Checked:
    """A published number with its verdict."""

    claim: Claim
    verdict: Verdict
    ours: float | None = None
    """Counted or measured, in the claim's unit."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval of a measured value."""
    why: str = ""
    """Likely reason of a contradiction, or what is missing for a comparison."""
    conditions: str = ""
    """Of a measured value."""

    @property
    def ratio(self) -> float | None:
        """Ours / theirs."""
        return None if self.ours is None or not self.claim.value else self.ours / self.claim.value

    @property
    def record(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        claim, entry = self.claim, self.claim.entry
        return {
            "model": claim.model,
            "family": claim.variant.family,
            "resolution": entry.resolution,
            "quantity": claim.quantity,
            "unit": claim.form.unit,
            "published": claim.value,
            "printed": str(claim.printed),
            "verdict": self.verdict,
            "ours": self.ours,
            "ours_low": self.low,
            "ours_high": self.high,
            "ratio": self.ratio,
            "why": self.why or None,
            "conditions": self.conditions or None,
            "source": entry.source,
            "table": entry.table,
            "dataset": entry.dataset,
            "epochs": entry.epochs,
            "hardware": entry.hardware,
            "note": entry.note or None,
        }


def check(
    registry: Registry,
    models: Sequence[str] = (),
    *,
    rows: Sequence[Row] | None = None,
    cache: bool = True,
) -> list[Checked]:
    """Check the published parameters and MACs; say of each measured number what a comparison needs.

    Arguments:
        registry: holds the cards.
        models: names or patterns of variants; empty for all.
        rows: where given, only numbers of models that these rows have are checked.
        cache: whether counts of earlier calls are read from the cache.

    Raises:
        UnknownName: no model has a name.
        LongvisError: none of the models has a published number.
    """
    there = None if rows is None else {(row.cell.model, row.cell.resolution) for row in rows}
    claims = [
        claim
        for claim in claims_of(registry, models)
        if there is None or (claim.model, claim.entry.resolution) in there
    ]
    counted = [claim for claim in claims if claim.quantity in COUNTED]
    with Counts(cache=cache, ahead=counted, models_dirs=registry.models_dirs) as counts:
        found = [_check(claim, counts) for claim in claims]
    return [_with_other_source(one, found) for one in found]


def _check(claim: Claim, counts: Counts) -> Checked:
    if claim.quantity not in COUNTED:
        return Checked(claim, "not comparable", why=needs(claim))
    count = counts.of(claim)
    if isinstance(count, str):
        return Checked(claim, "not comparable", why=count)
    if claim.quantity == "MACs" and not count.complete:
        return Checked(claim, "not comparable", why="the count has operators without a formula")
    ours = (count.params if claim.quantity == "params" else count.macs) / claim.form.factor
    if claim.shows(ours):
        return Checked(claim, "reproduced", ours)
    return Checked(claim, "contradicted", ours, why="; ".join(_reasons(claim, ours, count)))


def needs(claim: Claim) -> str:
    """What a comparison of a measured number needs."""
    entry = claim.entry
    if claim.quantity in ("top-1", "top-5"):
        data = f" and {entry.dataset}" if entry.dataset else ""
        trained = (
            "the authors' weights" if _has_weights(claim) else "weights, which the card has no source of,"
        )
        return f"{trained}{data}"
    if claim.quantity == "runtime":
        return f"a whole training run on {entry.hardware or 'hardware that is not stated'}"
    hardware = entry.hardware or "hardware that is not stated"
    return "a GPU that the source does not name" if hardware.startswith("not stated") else hardware


def _has_weights(claim: Claim) -> bool:
    card, entry = claim.variant.card, claim.entry
    found = card.weights if card is not None else ()
    return any(w.url and (w.variant, w.dataset) == (entry.variant, entry.dataset) for w in found)


# Likely reasons of a contradiction ----------------------------------------------------------------------


def _reasons(claim: Claim, ours: float, count: OperatorCount) -> list[str]:
    """Conventions under which the count gives the published number, or about; else how it was rounded."""
    conventions = _conventions(count) if claim.quantity == "MACs" else {}
    found = []
    for how, macs in conventions.items():
        value = macs / claim.form.factor
        if claim.shows(value):
            found.append(f"counted {how}")
        elif abs(claim.value - value) <= NEAR * abs(ours - value):
            found.append(f"about what is counted {how} ({claim.write(value)} {claim.form.unit})")
    return found or list(_rounding(claim, ours))


def _conventions(count: OperatorCount) -> dict[str, float]:
    """How others count -> MACs; only those that differ from our count."""
    every = {
        WITHOUT_ATTENTION: count.macs - count.products,
        "as FLOPs, 2 per MAC": 2 * count.macs,
        "with the scan, 1 MAC per 2 of its FLOPs": count.macs + count.scan_flops / 2,
        "with the FLOPs of the scan added": count.macs + count.scan_flops,
    }
    return {how: macs for how, macs in every.items() if macs != count.macs}


def _rounding(claim: Claim, ours: float) -> Iterator[str]:
    if 0 <= ours - claim.value < claim.last_digit:
        yield "cut off instead of rounded"
    elif 0 < claim.value - ours < claim.last_digit:
        yield "rounded up"


def _with_other_source(checked: Checked, every: Sequence[Checked]) -> Checked:
    """The same, with what other sources, or other tables of the same one, print of the same quantity."""
    if checked.verdict != "contradicted":
        return checked
    others = [one for one in every if _is_same(one.claim, checked.claim) and one.verdict == "reproduced"]
    printed = Counter(f"{one.claim.where} prints {one.claim.printed}" for one in others)
    said = [f"{text}, as counted" for text in printed][:1]
    why = "; ".join(filter(None, [checked.why, *said])) or UNKNOWN_REASON
    return replace(checked, why=why)


def _is_same(one: Claim, other: Claim) -> bool:
    """Whether two numbers are of the same quantity of the same model at the same size."""
    key: Callable[[Claim], tuple[object, ...]] = lambda c: (c.model, c.entry.resolution, c.quantity)  # noqa: E731
    return key(one) == key(other)


# Texts --------------------------------------------------------------------------------------------------


def tally(found: Sequence[Checked]) -> dict[str, dict[Verdict, int]]:
    """Quantity -> verdict -> number of published numbers."""
    counts = Counter((one.claim.quantity, one.verdict) for one in found)
    quantities = dict.fromkeys(one.claim.quantity for one in found)
    return {quantity: {v: counts[quantity, v] for v in VERDICTS} for quantity in quantities}


def sentence(found: Sequence[Checked]) -> str:
    """The result in one sentence."""
    numbers = Counter(one.verdict for one in found)
    families = len({one.claim.variant.family for one in found})
    said = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in VERDICTS)
    return (
        f"{units.several(len(found), 'published number')} of "
        f"{units.several(families, 'family', 'families')}: {said}."
    )


def by_source(found: Sequence[Checked]) -> list[tuple[Checked, list[str]]]:
    """The numbers with all sources that print them, each number of a model once."""
    groups: dict[tuple[object, ...], tuple[Checked, list[str]]] = {}
    for one in found:
        claim = one.claim
        key = (claim.model, claim.entry.resolution, claim.quantity, str(claim.printed), one.why, one.verdict)
        groups.setdefault(key, (one, []))[1].append(claim.where)
    return [(one, list(dict.fromkeys(where))) for one, where in groups.values()]


def ratio_text(checked: Checked) -> str:
    """Ours / theirs with three digits."""
    return units.UNKNOWN if checked.ratio is None else units.significant(checked.ratio, 4)
