"""What the verdicts of docs/claims.md tell, in words.

Each finding computes its numbers from the cards and the counts, and checks its premise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from longvis_bench import units
from longvis_bench.measure.flops.counter import OperatorCount, count_variant
from longvis_bench.published.numbers import Claim
from longvis_bench.published.verdicts import WITHOUT_ATTENTION, Checked, by_source
from longvis_bench.registry.registry import Registry
from longvis_bench.sizes.atlas import ATLAS_PATCH, atlas_scales

ATLAS = "arXiv:2503.12355"
CONVNEXT = "arXiv:2201.03545"
APART = 1.015
"""Sources disagree if their numbers differ by this factor."""
CAP_H = 24
"""The cap of Table 6 of the Atlas paper, in hours."""


class Facts:
    """The checked numbers by model and table.

    Arguments:
        found: all of the built-in cards.
        registry: holds the cards.
    """

    def __init__(self, found: Sequence[Checked], registry: Registry) -> None:
        self.found = found
        self.registry = registry

    def printed(self, model: str, quantity: str, px: int, table: str, source: str = ATLAS) -> Decimal:
        """The only published number of a model at a size in a table."""
        (one,) = [
            claim.printed
            for claim in (checked.claim for checked in self.found)
            if (claim.model, claim.quantity, claim.entry.resolution) == (model, quantity, px)
            and (claim.entry.source, claim.entry.table) == (source, table)
        ]
        return one

    def table(self, quantity: str, table: str, px: int | None = None, source: str = ATLAS) -> list[Claim]:
        """All numbers of a quantity in a table."""
        claims = [checked.claim for checked in self.found]
        return [
            claim
            for claim in claims
            if (claim.quantity, claim.entry.source, claim.entry.table) == (quantity, source, table)
            and (px is None or claim.entry.resolution == px)
        ]

    def count(self, model: str, px: int) -> OperatorCount:
        """Our count with 1000 classes."""
        return count_variant(self.registry.find(model), px, 1000).operators()


def macs_are_called_flops(facts: Facts) -> str:
    """No source means two operations per multiply-add."""
    macs = [one for one in facts.found if one.claim.quantity == "MACs" and one.ours is not None]
    right = sum(one.verdict == "reproduced" for one in macs)
    doubled = [one for one in macs if one.ours is not None and one.claim.shows(2 * one.ours)]
    assert not doubled
    return f"""
        **MACs are called FLOPs.** The sources head this column FLOPs, and all of them print multiply-adds:
        of {len(macs)} numbers {right} are the MACs that we count, and none is what we count as FLOPs, 2 per
        MAC.
    """


def attention_is_left_out(facts: Facts) -> str:
    """Tools that count modules do not see products that a function makes."""
    left_out = [one for one in facts.found if WITHOUT_ATTENTION in one.why]
    tables: dict[str, list[str]] = defaultdict(list)
    for one, where in by_source(left_out):
        claim = one.claim
        assert one.ours is not None
        said = f"{claim.model} {claim.printed} G (counted {claim.write(one.ours)})"
        tables[" and ".join(where)].append(said)
    assert tables
    said = "; ".join(f"{', '.join(texts)} in {where}" for where, texts in tables.items())
    shares = [(px, (c := facts.count("vit-b", px)).products / c.macs) for px in (224, 1024, 4096)]
    grow = ", ".join(f"{units.percent(share)} at {px} px" for px, share in shares)
    return f"""
        **Attention is left out.** Counters that add up layers miss the two matrix products of attention,
        which have no weights. {len(left_out)} numbers are, or are about, what we count without them: {said}.
        At 224 px that is little, but of vit-b's MACs these products are {grow}.
    """


def sources_disagree(facts: Facts) -> str:
    """Numbers of one model that are far apart, and that no convention or rounding explains."""
    groups: dict[tuple[str, int | None, str], list[Checked]] = defaultdict(list)
    for one in facts.found:
        if one.ours is not None and (one.verdict == "reproduced" or not _is_explained(one)):
            groups[one.claim.model, one.claim.entry.resolution, one.claim.quantity].append(one)
    lines = [_disagreement(group) for group in groups.values() if _are_apart(group)]
    assert lines
    return "**Sources disagree on one network.** " + " ".join(lines)


def _is_explained(one: Checked) -> bool:
    return WITHOUT_ATTENTION in one.why or one.why.startswith(("cut off", "rounded up"))


def _are_apart(group: Sequence[Checked]) -> bool:
    values = [one.claim.value for one in group]
    return max(values) > APART * min(values)


def _disagreement(group: Sequence[Checked]) -> str:
    claim, ours = group[0].claim, group[0].ours
    assert ours is not None
    said = ", ".join(
        f"{one.claim.printed} {claim.form.unit} ({' and '.join(where)})" for one, where in by_source(group)
    )
    what = "MACs" if claim.quantity == "MACs" else "parameters"
    counted = f"{units.significant(ours, 5)} {claim.form.unit}"
    return f"{claim.model} at {claim.entry.resolution} px, {what}: {said}; counted {counted}."


def a_number_of_another_row(facts: Facts) -> str:
    """CrossFormer++-S has the MACs of CrossFormer-S."""
    ours, theirs = (
        next(
            one
            for one in facts.found
            if one.claim.model == model and one.claim.quantity == "MACs" and one.ours is not None
        )
        for model in ("crossformer-pp-s", "crossformer-s")
    )
    assert (ours.verdict, theirs.verdict) == ("contradicted", "reproduced")
    assert ours.claim.printed == theirs.claim.printed
    assert ours.ours is not None
    return f"""
        **A number of another row.** CrossFormer++-S is printed with {ours.claim.printed} G
        ({ours.claim.where}), the number of CrossFormer-S, for which it is right; we count
        {ours.claim.write(ours.ours)} G.
    """


def rounding(facts: Facts) -> str:
    """How many numbers are printed without rounding to the nearest."""
    cut, up = (
        [one for one, _ in by_source(facts.found) if one.why.startswith(how)]
        for how in ("cut off", "rounded up")
    )
    assert cut
    return f"""
        **Not rounded to the nearest.** {len(cut)} contradicted numbers are ours cut off, {len(up)} are ours
        rounded up; who compares tables to the last digit compares habits of printing.
    """


def atlas_contradicts_itself(facts: Facts) -> str:
    """The gains of the abstract, the text and Table 2."""
    sizes = (1024, 2048, 4096)
    gains = [
        facts.printed("atlas-s", "top-1", px, "Table 2")
        - facts.printed("mambavision-s", "top-1", px, "Table 2")
        for px in sizes
    ]
    assert list(map(str, gains)) == ["3.62", "16.50", "32.48"]
    over_b = facts.printed("atlas-b", "top-1", 1024, "Table 1") - facts.printed(
        "mambavision-b", "top-1", 1024, "Table 1"
    )
    assert str(over_b) == "6.18"
    return f"""
        **The Atlas paper contradicts itself** ({ATLAS}). By how many points Atlas-S beats MambaVision-S at
        1024, 2048 and 4096 px: 5, 16 and 32 in the abstract, {", ".join(map(str, gains))} by Table 2, 34 at
        4096 px in the introduction, 32.84 in section 5.1. Over MambaVision-B at 1024 px: 6.1 in the
        introduction, 6.05 in section 5.1, {over_b} by Table 1.
    """


def atlas_windows(facts: Facts) -> str:
    """Windows that are paired in raster order attend to coarse windows elsewhere."""
    shares = {px: mispaired(px) for px in (1024, 2048, 4096)}
    assert shares[1024] == 0
    return f"""
        **Windows of the Atlas code** ({ATLAS}, equation 2, against YalaLab/atlas). By the equation a fine
        window attends to the coarse window that contains it; the authors' code pairs windows in raster
        order. At 1024 px the two are the same, as there is one coarse window. Of the finest windows
        {units.percent(shares[2048])} at 2048 px and {units.percent(shares[4096])} at 4096 px attend to one
        that does not contain them. `window_order` chooses; the default is the equation's.
    """


def mispaired(px: int) -> float:
    """Share of the finest windows that raster order pairs with a window of the next scale elsewhere.

    Arguments:
        px: pixels per side.
    """
    fine, coarse, *_ = atlas_scales(px // ATLAS_PATCH, px // ATLAS_PATCH)
    (rows, columns), (coarse_rows, coarse_columns) = fine.windows, coarse.windows
    per_coarse = rows * columns // (coarse_rows * coarse_columns)
    wrong = 0
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        inside = (row * coarse_rows // rows) * coarse_columns + column * coarse_columns // columns
        wrong += index // per_coarse != inside
    return wrong / (rows * columns)


def convnext_against_swin(facts: Facts) -> str:
    """A ratio of runtimes that no other table shows."""
    hours = [facts.printed(model, "runtime", 1024, "Table 1") for model in ("convnext-b", "swin-b")]
    rates = [
        facts.printed(model, "throughput", 224, "Table 12", CONVNEXT) for model in ("convnext-b", "swin-b")
    ]
    one, other = (facts.count(model, 1024).macs for model in ("convnext-b", "swin-b"))
    slower, faster = float(hours[0] / hours[1]), float(rates[0] / rates[1])
    assert slower > 2.5
    assert faster > 1.4
    return f"""
        **The Atlas paper's ConvNeXt is slow** ({ATLAS}, Table 1). Training takes {hours[0]} h for
        ConvNeXt-B and {hours[1]} h for Swin-B at 1024 px, {units.significant(slower)} times as long. We
        count {units.count(one)} MACs for convnext-b and {units.count(other)} for swin-b there, and on one
        A100 ConvNeXt-B is {units.significant(faster)} times as fast as Swin-B in inference at 224 px
        ({CONVNEXT}, Table 12: {rates[0]} against {rates[1]} images per second). The paper does not explain
        it, and its Table 6 prints ConvNext-B/16, a patch size that ConvNeXt does not have. `longvis bench
        --preset atlas-table1` on an H100, then `longvis claims RUN`, would decide it; that has not been
        run.
    """


def runtimes_over_the_cap(facts: Facts) -> str:
    """Extrapolations that are printed as runtimes."""
    over = [claim for claim in facts.table("runtime", "Table 6") if claim.value > CAP_H]
    assert over
    named = ", ".join(f"{claim.model} {claim.printed} h" for claim in over)
    return f"""
        **Extrapolated runtimes** ({ATLAS}, Table 6). Runs were capped at {CAP_H} h, and yet the table has
        at 2048 px {named}: these were not measured, and have no accuracy.
    """


def order_depends_on_epochs(facts: Facts) -> str:
    """The lead of Atlas is one after 50 epochs."""
    short, long = (
        sorted(facts.table("top-1", table, 1024), key=lambda claim: -claim.value)
        for table in ("Table 6", "Table 1")
    )
    common = {claim.model for claim in short} & {claim.model for claim in long}
    orders = [[claim.model for claim in claims if claim.model in common] for claims in (short, long)]
    assert orders[0] != orders[1]
    best = [f"{claims[0].model} {claims[0].printed} %" for claims in (short, long)]
    return f"""
        **The order depends on the epochs** ({ATLAS}, 1024 px). After 50 epochs (Table 6):
        {", ".join(orders[0])}; the first has {best[0].split()[1]} %. After 320 (Table 1):
        {", ".join(orders[1])}; {best[1].split()[1]} %.
    """


FINDINGS = (
    macs_are_called_flops,
    attention_is_left_out,
    sources_disagree,
    a_number_of_another_row,
    rounding,
    atlas_contradicts_itself,
    atlas_windows,
    convnext_against_swin,
    runtimes_over_the_cap,
    order_depends_on_epochs,
)
