"""FasterViT: legal sizes, and the windows of a size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.sizes.plan import (
    SizePlan,
    require_attention_stages,
    require_fraction,
    require_multiple,
    require_true_or_false,
    require_whole,
    require_whole_numbers,
)

STAGES = 4


def whole_windows(grid: int, *, smallest: int = 7, most: int = 8) -> int:
    """Smallest window of at least `smallest` tokens that divides `grid` into at most `most` per side."""
    fits = (w for w in range(min(smallest, grid), grid + 1) if grid % w == 0 and grid // w <= most)
    return next(fits)


def plan(resolution: int, *, window_size: Sequence[int] | None = None, **others: Any) -> SizePlan:
    """FasterViT in its any-resolution form: windows grow with the image, which limits the carrier tokens.

    The published window of 7 is legal at any size.  Its carrier tokens then grow with the image, and their
    attention with the fourth power of the resolution; a limit of 8 windows per side keeps both constant.  32
    px are illegal, because stage 4 then has one token, for whose position the authors' code divides by zero.
    """
    check_fastervit(window_size=(7, 7, 7, 7) if window_size is None else window_size, **others)
    require_multiple(resolution, 32, "fastervit", 64)
    third, fourth = resolution // 16, resolution // 32
    if window_size is None:
        window_size = (7, 7, whole_windows(third), whole_windows(fourth))
    grids = ((third, window_size[2]), (fourth, window_size[3]))
    worst = max((ceil(grid / w) * w) ** 2 / grid**2 - 1 for grid, w in grids)
    return SizePlan(
        reach=f"windows of {window_size[2]} and {window_size[3]} in stages 3 and 4 (published: 7 at 224 px)",
        padding_ratio=worst or None,
        arguments={"window_size": list(window_size)},
    )


def check_fastervit(
    *,
    window_size: Sequence[int],
    depths: Sequence[int] = (1, 1, 1, 1),
    num_heads: Sequence[int] = (1, 1, 1, 1),
    dim: int | None = None,
    in_dim: int = 1,
    ct_size: int = 1,
    mlp_ratio: float = 4,
    layer_scale: float | None = None,
    do_propagation: bool = False,
    drop_path: float = 0.0,
    in_chans: int = 3,
    **_: object,
) -> None:
    """Raise IllegalArgument if FasterViT's arguments do not fit together; `dim=None` skips the heads."""
    for name, values in (("depths", depths), ("window_size", window_size), ("num_heads", num_heads)):
        require_whole_numbers(name, values, "(7, 7, 7, 7)")
        if len(values) != STAGES:
            raise IllegalArgument(
                f"fastervit needs {name} of four positive numbers, one per stage, not {list(values)}."
            )
    if min(window_size[2:]) < 2:
        raise IllegalArgument(
            f"fastervit needs windows of at least 2 tokens in stages 3 and 4, not {list(window_size)}: "
            "in a window of one there is no position."
        )
    require_whole(in_dim=in_dim, in_chans=in_chans, ct_size=ct_size)
    if ct_size > window_size[2]:
        raise IllegalArgument(
            f"ct_size, the carrier tokens per window side, must not exceed stage 3's window of "
            f"{window_size[2]}, which {ct_size} does."
        )
    require_fraction("drop_path", drop_path)
    require_true_or_false(do_propagation=do_propagation)
    require_attention_stages(dim, num_heads, mlp_ratio, layer_scale)
