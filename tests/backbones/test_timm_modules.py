"""One variant of every module of timm counts at 1024 px, or its refusal names a size at which it does."""

from __future__ import annotations

import pytest
import timm

from longvis_bench.errors import IllegalSize
from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.registry.registry import Registry

SIZE = 1024
SMALL = ("atto", "femto", "pico", "nano", "xxs", "tiny", "_ti_", "xs", "small", "_s", "18", "b0", "26")
"""Parts of names of small variants, smallest first."""


def variant_of(module: str) -> str:
    """A small variant of a module of timm, by its name alone."""
    names: list[str] = timm.list_models(module=module)
    return next((name for part in SMALL for name in names if part in name), names[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [module for module in timm.list_modules() if timm.list_models(module=module)]
)
def test_every_module_counts(module: str) -> None:
    variant = Registry().find(f"timm:{variant_of(module)}")
    try:
        found, size = count_variant(variant, SIZE, 1000), SIZE
    except IllegalSize as error:
        size = min(error.legal, key=lambda one: abs(one - SIZE))
        found = count_variant(variant, size, 1000)
    print(f"{variant.name} at {size} px: {found.macs}")
    assert found.macs > 0
    assert not found.ledger.unknown
