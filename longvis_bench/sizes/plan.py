"""Legal resolutions of each architecture, and its adaptation to them.

This is pure Python without torch.  The sweep planner, the cards and the models call the same functions, so a
planned size can be built.  A card names its function in `resolution.plan`; a card whose rule is a multiple
of some number of pixels gives `resolution.multiple_of` instead.

A plan function takes the resolution and the variant's arguments.  The resolution is pixels per side, or for a
card that states `rectangles` always (height, width).  It returns a `SizePlan`, or raises `IllegalSize` with
the legal sizes near it, or `IllegalArgument` if the arguments do not fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, prod
from typing import Any

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.resolution import AnyResolution, Resolution, canonical, sides


@dataclass(frozen=True, kw_only=True)
class SizePlan:
    """The adaptation of a model to one resolution; a row stores it."""

    reach: str
    """The adaptation in words, e.g. "windows of 8 (published: 7 at 224 px)"."""
    padding_ratio: float | None = None
    """Padding tokens per image token, in the stage that pads most; None if no stage pads."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Factory arguments that depend on the resolution (window sizes, segment lengths)."""


def near_multiples(resolution: int, multiple: int, minimum: int = 1) -> list[int]:
    """Multiples of `multiple` just below and above `resolution`, all at least `minimum`."""
    below = resolution // multiple * multiple
    return [size for size in (below, below + multiple) if size >= max(minimum, multiple)]


def require_multiple(resolution: AnyResolution, multiple: int, family: str, minimum: int = 1) -> None:
    """Raise IllegalSize unless each side is a multiple of `multiple` and at least `minimum`."""
    smallest = max(ceil(minimum / multiple) * multiple, multiple)
    is_small = min(sides(resolution)) < smallest
    if is_small or any(side % multiple for side in sides(resolution)):
        rule = f"at least {smallest} px" if is_small else f"a multiple of {multiple} px"
        legal = near_filled(resolution, multiple, minimum)
        raise IllegalSize(canonical(resolution), f"{family} needs {rule}{each(resolution)}", legal)


def require_least(resolution: AnyResolution, least: int, family: str) -> None:
    """Raise IllegalSize unless each side is at least `least`."""
    if min(sides(resolution)) < least:
        legal = near(resolution, lambda side: [least] if side < least else [])
        raise IllegalSize(
            canonical(resolution), f"{family} needs at least {least} px{each(resolution)}", legal
        )


def near(resolution: AnyResolution, legal: Callable[[int], Sequence[int]]) -> list[Resolution]:
    """Legal resolutions near an illegal one, smallest first.

    Arguments:
        resolution: the illegal one.
        legal: sides near a side; none where the side itself is legal.
    """
    if isinstance(canonical(resolution), int):
        return list(legal(sides(resolution)[0]))
    choices = [list(legal(side)) or [side] for side in sides(resolution)]
    return sorted({canonical(pair) for pair in product(choices[0], choices[1])})


def near_filled(resolution: AnyResolution, multiple: int, minimum: int = 1) -> list[Resolution]:
    """Resolutions near one, each side a multiple of `multiple` and at least `minimum`."""
    smallest = max(ceil(minimum / multiple) * multiple, multiple)

    def legal(side: int) -> list[int]:
        if side < smallest:
            return [smallest]
        return near_multiples(side, multiple, minimum) if side % multiple else []

    return near(resolution, legal)


def grids_of(resolution: AnyResolution, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns of tokens at each stride; pixels that fill no token are left out."""
    height, width = sides(resolution)
    return [(height // stride, width // stride) for stride in strides]


def tokens_of(resolution: AnyResolution, stride: int) -> int:
    """Number of tokens at a stride."""
    return prod(side // stride for side in sides(resolution))


def grid_in_words(resolution: AnyResolution, stride: int) -> str:
    """Tokens at a stride: "16" per side of a square, "20x15" for a rectangle, width first; at least 1."""
    rows, columns = (max(side // stride, 1) for side in sides(resolution))
    return str(canonical((rows, columns)))


def padding_of(grid: Sequence[int], window: Sequence[int]) -> float:
    """Padding tokens per token of a grid (rows, columns) that is padded to whole windows."""
    padded = prod(ceil(side / step) * step for side, step in zip(grid, window, strict=True))
    return padded / prod(grid) - 1


def each(resolution: AnyResolution) -> str:
    """Says of a rectangle that a rule holds for both sides; nothing for a square."""
    return "" if isinstance(canonical(resolution), int) else " per side"


MOST_LISTED = 12
"""Largest number of legal values that a message lists."""


def is_number(value: object) -> bool:
    """Whether a value is an int or a float, but no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether a value is a positive int, but no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def require_whole(**values: object) -> None:
    """Raise IllegalArgument unless all values are positive whole numbers; keywords are their names."""
    for name, value in values.items():
        if not is_whole(value):
            raise IllegalArgument(f"{name} must be a positive whole number, not {value!r}.")


def require_whole_numbers(name: str, values: object, example: str = "(1, 2, 4)") -> None:
    """Raise IllegalArgument unless the argument `name` is a non-empty sequence of positive whole numbers."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise IllegalArgument(
            f"{name} must be a list of positive whole numbers like {example}, not {values!r}."
        )
    if not all(is_whole(value) for value in values):
        raise IllegalArgument(f"{name} must hold positive whole numbers only, not {list(values)}.")


def require_fraction(name: str, value: object) -> None:
    """Raise IllegalArgument unless 0 <= value < 1."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise IllegalArgument(f"{name} must be at least 0 and below 1, not {value!r}.")


def require_true_or_false(**values: object) -> None:
    """Raise IllegalArgument unless all values are bools; keywords are their names."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise IllegalArgument(f"{name} must be True or False, not {value!r}.")


def require_divisor(name: str, value: int, what: str, width: int) -> None:
    """Raise IllegalArgument unless `value` divides `width`, which `what` describes in the message."""
    if width % value:
        legal = listed(divisors(width))
        raise IllegalArgument(f"{name} must divide {what}, which {value} does not; {legal} do.")


def require_attention_stages(
    dim: int | None, num_heads: Sequence[int], mlp_ratio: float, layer_scale: float | None
) -> None:
    """Check pyramids whose stages 3 and 4 attend, and whose channels double; `dim=None` skips the heads.

    Raises:
        IllegalArgument: a number is none, or heads do not divide their stage's width.
    """
    if not is_number(mlp_ratio) or mlp_ratio <= 0:
        raise IllegalArgument(f"mlp_ratio must be a positive number, not {mlp_ratio!r}.")
    if layer_scale is not None and not is_number(layer_scale):
        raise IllegalArgument(f"layer_scale must be a number or None, not {layer_scale!r}.")
    if dim is None:
        return
    require_whole(dim=dim)
    for stage in (2, 3):
        width = dim * 2**stage
        require_divisor(f"num_heads of stage {stage + 1}", num_heads[stage], f"its width of {width}", width)


def divisors(number: int) -> list[int]:
    """All positive divisors, in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def listed(numbers: Sequence[int]) -> str:
    """`[1, 2, 4]` -> `1, 2 and 4`; a long list is shortened in the middle."""
    texts = [str(n) for n in numbers]
    if len(texts) > MOST_LISTED:
        texts = [*texts[: MOST_LISTED - 1], "...", texts[-1]]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
