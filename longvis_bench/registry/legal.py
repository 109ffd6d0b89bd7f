"""Which resolutions a card's numbers allow, and which are near one that a model does not take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longvis_bench.errors import IllegalArgument, IllegalSize, LongvisError
from longvis_bench.resolution import Resolution, resolution_of, sides
from longvis_bench.sizes.plan import require_multiple

if TYPE_CHECKING:
    from longvis_bench.registry.registry import Variant


def require_rule(resolution: Resolution, variant: Variant) -> None:
    """Raise IllegalSize unless the resolution keeps the numbers of the variant's card."""
    assert variant.card is not None
    rule = variant.card.resolution
    require_multiple(resolution, rule.multiple_of, variant.family, rule.minimum)
    if rule.maximum is not None and max(sides(resolution)) > rule.maximum:
        largest = rule.maximum // rule.multiple_of * rule.multiple_of
        legal = resolution_of([min(side, largest) for side in sides(resolution)])
        each = "" if isinstance(resolution, int) else " per side"
        raise IllegalSize(resolution, f"{variant.family} takes at most {largest} px{each}", [legal])


def require_same(own: object, resolution: Resolution, variant: Variant) -> None:
    """Raise IllegalArgument for a user's `img_size` that is not the resolution of the cell."""
    try:
        asked = resolution_of(own)
    except ValueError:
        asked = None
    if asked != resolution:
        right = f"give --res {asked}" if asked else "leave it out"
        raise IllegalArgument(
            f"img_size={own!r} of {variant.name} is not the {resolution} px of --res, from which it follows; "
            f"{right}."
        )


def legal_near(variant: Variant, side: int) -> list[int]:
    """The side itself if it is a legal square, else what the refusal names."""
    try:
        variant.plan(side)
    except IllegalSize as error:
        return [size for size in error.legal if isinstance(size, int)]
    except LongvisError:
        return []
    return [side]
