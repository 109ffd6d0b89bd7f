"""Which resolutions each architecture takes, and what is done to it to take them.

Pure Python, no torch: the sweep planner, the cards and the models themselves ask the same functions,
so a size that is planned is a size that builds.  A card names its function as `resolution.plan`; users'
cards that need no more than a multiple of some number give `resolution.multiple_of` instead.

A plan function takes the resolution and the variant's arguments and returns a `SizePlan`, or raises
`IllegalSize` with the legal sizes near it, or `IllegalArgument` if the arguments do not fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument, IllegalSize


@dataclass(frozen=True, kw_only=True)
class SizePlan:
    """What a model does to take one resolution: the resolution contract of a row."""

    reach: str
    """One sentence for the row, e.g. "windows of 8 (published: 7 at 224 px)"."""
    padding_ratio: float | None = None
    """Tokens of padding for each token of image in the stage that pads most; None if nothing pads."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Variant arguments that follow from the resolution (window sizes, segment lengths)."""


def near_multiples(resolution: int, multiple: int, minimum: int = 1) -> list[int]:
    """Multiples of `multiple` just below and above `resolution`, all at least `minimum`."""
    below = resolution // multiple * multiple
    return [size for size in (below, below + multiple) if size >= max(minimum, multiple)]


def require_multiple(resolution: int, multiple: int, family: str, minimum: int = 1) -> None:
    """Raise IllegalSize unless `resolution` is a multiple of `multiple` and at least `minimum`."""
    smallest = max(ceil(minimum / multiple) * multiple, multiple)
    if resolution < smallest:
        raise IllegalSize(resolution, f"{family} needs at least {smallest} px", [smallest])
    if resolution % multiple:
        legal = near_multiples(resolution, multiple, minimum)
        raise IllegalSize(resolution, f"{family} needs a multiple of {multiple} px", legal)


MOST_NAMED = 12
"""Legal values named in a message."""


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def require_whole(**values: object) -> None:
    for name, value in values.items():
        if not is_whole(value):
            raise IllegalArgument(f"{name} must be a positive whole number, not {value!r}.")


def require_whole_numbers(name: str, values: object, example: str = "(1, 2, 4)") -> None:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise IllegalArgument(
            f"{name} must be a list of positive whole numbers like {example}, not {values!r}."
        )
    if not all(is_whole(value) for value in values):
        raise IllegalArgument(f"{name} must hold positive whole numbers only, not {list(values)}.")


def require_fraction(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise IllegalArgument(f"{name} must be at least 0 and below 1, not {value!r}.")


def require_true_or_false(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise IllegalArgument(f"{name} must be True or False, not {value!r}.")


def require_divisor(name: str, value: int, what: str, width: int) -> None:
    if width % value:
        legal = listed(divisors(width))
        raise IllegalArgument(f"{name} must divide {what}, which {value} does not; {legal} do.")


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def listed(numbers: Sequence[int]) -> str:
    """`[1, 2, 4]` -> `1, 2 and 4`; of many, those in the middle are left out."""
    texts = [str(n) for n in numbers]
    if len(texts) > MOST_NAMED:
        texts = [*texts[: MOST_NAMED - 1], "...", texts[-1]]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
