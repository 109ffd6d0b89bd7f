"""Parameters and MACs that stand in the cards are those that are counted."""

from __future__ import annotations

import pytest

from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.registry.card import COUNTED_AT
from longvis_bench.registry.registry import Registry

BUILT_IN = [name for name in Registry().variants() if Registry().find(name).origin == "built-in"]
TOUR = [name for name in BUILT_IN if (card := Registry().find(name).card) is not None and card.tour]
QUICK = [
    name for name in BUILT_IN if name.endswith("-n") or (name in TOUR and name.endswith(("-0", "-t", "-s")))
]


def stated_and_counted(name: str) -> tuple[tuple[int | None, int | None], tuple[int, int]]:
    variant = Registry().find(name)
    assert variant.card is not None
    entry = variant.card.variants[name]
    count = count_variant(variant, COUNTED_AT.resolution, COUNTED_AT.classes)
    return (entry.params, entry.macs), (count.params, count.macs)


@pytest.mark.parametrize("name", QUICK)
def test_small_variants_are_counted_as_their_card_says(name: str) -> None:
    stated, counted = stated_and_counted(name)
    assert stated == counted, "run python scripts/card_counts.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in QUICK])
def test_large_variants_are_counted_as_their_card_says(name: str) -> None:
    stated, counted = stated_and_counted(name)
    assert stated == counted, "run python scripts/card_counts.py"
