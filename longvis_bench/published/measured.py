"""Measured numbers of runs beside the published ones of the same models and sizes.

An accuracy is comparable if the weights are the authors' and the images have the published classes.  A
throughput is comparable on the published GPU with the published batch and precision.  A runtime is that of a
whole training, so only its ratio within a table is compared; ratios of other hardware are shown, without a
verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from longvis_bench import units
from longvis_bench.data.protocol import FOLDER
from longvis_bench.errors import LongvisError
from longvis_bench.published.numbers import Claim
from longvis_bench.published.verdicts import COUNTED, Checked, Verdict
from longvis_bench.records import Mode, Row
from longvis_bench.registry.card import Published
from longvis_bench.report.baseline import ratios
from longvis_bench.report.columns import BY_NAME
from longvis_bench.stats.ratios import Ratio

_GPU = re.compile(r"\b(?:[AHPV]\d{2,3}|T4|L4|L40S?|B200|RTX \d{4}(?: Ti)?)\b")
_PRECISIONS = {
    "amp off": ("fp32",),
    "fp32": ("fp32",),
    "TF32": ("tf32",),
    "autocast": ("bf16", "fp16"),
    "mixed": ("bf16", "fp16"),
}
"""Words of a card's `hardware` -> the dtypes that they mean."""
_MODES: dict[str, Mode] = {"throughput": "infer", "runtime": "train"}


@dataclass(frozen=True)
class Relative:
    """How long a model takes by its table, and here, over another model of that table."""

    claim: Claim
    reference: Claim
    row: Row
    time: Ratio
    """Measured time per image over that of the reference."""

    @property
    def published(self) -> tuple[float, float, float]:
        """The published ratio of times, and its ends by the rounding of both numbers."""
        one, other = (_ends(claim) for claim in (self.claim, self.reference))
        if self.claim.quantity == "throughput":
            one, other = other, one
        return one[1] / other[1], one[0] / other[2], one[2] / other[0]

    @property
    def why(self) -> str:
        """What makes the ratios not comparable; empty if nothing does."""
        return _other_hardware(self.claim.entry, self.row)

    @property
    def verdict(self) -> Verdict:
        """Whether the measured interval and the published one, on the same hardware, have a common point."""
        if self.why:
            return "not comparable"
        _, low, high = self.published
        return "reproduced" if self.time.low <= high and low <= self.time.high else "contradicted"

    @property
    def conditions(self) -> str:
        """Of the measurement."""
        return _conditions(self.row)

    @property
    def record(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them; with the fields of `Checked.record`, and the reference."""
        value = self.published[0]
        changed = {
            "quantity": f"relative {'runtime' if self.claim.quantity == 'runtime' else 'time per image'}",
            "unit": "x",
            "published": value,
            "printed": None,
            "verdict": self.verdict,
            "ours": self.time.value,
            "ours_low": self.time.low,
            "ours_high": self.time.high,
            "ratio": self.time.value / value,
            "why": self.why or None,
            "conditions": self.conditions,
        }
        plain = Checked(self.claim, self.verdict).record
        return {**plain, **changed, "reference": self.reference.model}


def of_runs(checked: Sequence[Checked], rows: Sequence[Row]) -> list[Checked]:
    """The published numbers of the rows' models and sizes, with the measured ones where they are comparable.

    Arguments:
        checked: all published numbers, counts with their verdict.
        rows: of one or several runs.

    Raises:
        LongvisError: no row has the model and size of a published number.
    """
    found = [_measured(one, mine) for one in checked if (mine := _rows_of(one.claim, rows))]
    if not found:
        cells = dict.fromkeys(f"{row.cell.model} {row.cell.resolution} px" for row in rows)
        raise LongvisError(
            f"no card has a published number of these rows ({units.listing(list(cells), 4)}); "
            "`longvis models NAME` shows the published models and sizes."
        )
    return found


def relatives(checked: Sequence[Checked], rows: Sequence[Row]) -> list[Relative]:
    """Ratios of times within each published table, for the models that the rows have.

    The reference of a table is the model of the paper's own family, else the first one.
    """
    tables: dict[tuple[object, ...], list[Claim]] = {}
    for one in checked:
        claim, entry = one.claim, one.claim.entry
        if claim.quantity in _MODES:
            key = (entry.source, entry.table, entry.resolution, entry.epochs, claim.quantity)
            tables.setdefault(key, []).append(claim)
    return [one for claims in tables.values() for one in _of_table(claims, rows)]


def _of_table(claims: Sequence[Claim], rows: Sequence[Row]) -> Iterator[Relative]:
    mode = _MODES[claims[0].quantity]
    timed = [row for row in rows if row.cell.mode == mode and row.timing is not None and row.status == "ok"]
    there = [claim for claim in claims if _rows_of(claim, timed)]
    if len(there) < 2:
        return
    reference = next((claim for claim in there if _is_own(claim)), there[0])
    for machine in dict.fromkeys(row.machine for row in timed):
        here = [row for row in timed if row.machine == machine]
        times = ratios(here, reference.model)
        for claim in there:
            seen: set[str] = set()
            for row in _rows_of(claim, here) if claim is not reference else ():
                cell = row.cell.identity(without=("round",))
                if id(row) in times and cell not in seen:
                    seen.add(cell)
                    yield Relative(claim, reference, row, times[id(row)])


def _is_own(claim: Claim) -> bool:
    """Whether the source is the paper of the model's family."""
    paper = claim.variant.card.paper if claim.variant.card is not None else None
    return paper is not None and claim.entry.source.startswith(paper)


def _rows_of(claim: Claim, rows: Sequence[Row]) -> list[Row]:
    cell = (claim.model, claim.entry.resolution)
    return [row for row in rows if (row.cell.model, row.cell.resolution) == cell]


def _measured(one: Checked, rows: Sequence[Row]) -> Checked:
    """A number with the first measurement that is comparable, else with what differs from the first one."""
    if one.claim.quantity in (*COUNTED, "runtime"):
        return one
    compare = _throughput if one.claim.quantity == "throughput" else _accuracy
    found = [compare(one, row) for row in rows]
    return next((f for f in found if f.verdict != "not comparable"), found[0])


def _accuracy(one: Checked, row: Row) -> Checked:
    name = one.claim.quantity.replace("-", "")
    value = BY_NAME[name].value(row)
    if not isinstance(value, int | float):
        return one
    low, high = (BY_NAME[f"{name}_{end}"].value(row) for end in ("low", "high"))
    missing = _other_images(one.claim, row)
    return _with(one, row, value, low, high, missing)


def _throughput(one: Checked, row: Row) -> Checked:
    if row.cell.mode != "infer" or row.status != "ok":
        return one
    ends = ("throughput_img_s", "throughput_low_img_s", "throughput_high_img_s")
    value, low, high = (BY_NAME[name].value(row) for name in ends)
    if not isinstance(value, int | float):
        return one
    return _with(one, row, value, low, high, _other_conditions(one.claim.entry, row))


def _with(one: Checked, row: Row, value: float, low: object, high: object, missing: str) -> Checked:
    factor = 0.01 if one.claim.form.unit == "%" else 1.0
    ours, least, most = (v / factor if isinstance(v, int | float) else None for v in (value, low, high))
    assert ours is not None
    verdict: Verdict = "not comparable"
    if not missing:
        below, _, above = _ends(one.claim)
        meets = (least if least is not None else ours) <= above and below <= (
            most if most is not None else ours
        )
        verdict = "reproduced" if meets else "contradicted"
    return replace(
        one, verdict=verdict, ours=ours, low=least, high=most, why=missing, conditions=_conditions(row)
    )


def _other_images(claim: Claim, row: Row) -> str:
    """What is not the published condition of an accuracy; empty if nothing is known to differ."""
    card, entry = claim.variant.card, claim.entry
    assert row.accuracy is not None
    if not row.accuracy.dataset.startswith(FOLDER) or row.cell.num_classes != claim.classes:
        return f"measured on {row.accuracy.dataset}, published on {entry.dataset}"
    theirs = [w for w in (card.weights if card else ()) if w.url and w.variant == entry.variant]
    names = {f"timm:{w.timm}" for w in theirs if w.timm} | {PurePosixPath(w.url or "").name for w in theirs}
    if row.accuracy.weights not in names:
        return f"weights {row.accuracy.weights} are not known to be the authors'"
    return ""


def _other_conditions(entry: Published, row: Row) -> str:
    """What is not the published condition of a throughput; empty if nothing is known to differ."""
    text = entry.hardware or ""
    missing = [_other_hardware(entry, row)]
    if entry.batch is None:
        missing.append("the published batch is not stated")
    elif entry.batch != row.cell.batch_size:
        missing.append(f"batch {row.cell.batch_size} instead of {entry.batch}")
    dtypes = next((found for word, found in _PRECISIONS.items() if word in text), None)
    if dtypes is None:
        missing.append("the published precision is not stated")
    elif row.cell.dtype not in dtypes:
        missing.append(f"{row.cell.dtype} instead of {' or '.join(dtypes)}")
    return "; ".join(filter(None, missing))


def _other_hardware(entry: Published, row: Row) -> str:
    here = row.backends.get("device") or row.cell.device
    gpu = _GPU.search(entry.hardware or "")
    if gpu is None:
        return "the published hardware is not stated"
    return "" if re.search(rf"\b{gpu[0]}\b", here) else f"measured on {here}, published on {gpu[0]}"


def _ends(claim: Claim) -> tuple[float, float, float]:
    """The lowest value that is printed as the number, the number, and the highest one."""
    half = claim.last_digit / 2
    return claim.value - half, claim.value, claim.value + half


def _conditions(row: Row) -> str:
    cell = row.cell
    return f"batch {cell.batch_size}, {cell.mode}, {cell.dtype}, {row.backends.get('device') or row.machine}"
