"""FasterViT: legal sizes, and the windows of a size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, gcd
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import (
    SizePlan,
    grids_of,
    padding_of,
    require_attention_stages,
    require_fraction,
    require_multiple,
    require_true_or_false,
    require_whole,
    require_whole_numbers,
)

STAGES = 4
SMALLEST, MOST = 7, 8
"""Least tokens per side of a window, and most windows per side."""


def whole_windows(grid: int, *, smallest: int = SMALLEST, most: int = MOST) -> int:
    """Smallest window of at least `smallest` tokens that divides `grid` into at most `most` per side."""
    fits = (w for w in range(min(smallest, grid), grid + 1) if grid % w == 0 and grid // w <= most)
    return next(fits)


def _window(grid: Sequence[int]) -> int:
    """The window of a stage: whole ones where they fill both sides, at most 8 along the longer one."""
    rows, columns = grid
    if rows == columns:
        return whole_windows(rows)
    longest, common = max(grid), gcd(rows, columns)
    fits = (w for w in range(2, common + 1) if common % w == 0 and w >= min(SMALLEST, common))
    padded = max(ceil(longest / MOST), min(SMALLEST, longest))
    return next((w for w in fits if longest // w <= MOST), padded)


def plan(resolution: AnyResolution, *, window_size: Sequence[int] | None = None, **others: Any) -> SizePlan:
    """FasterViT in its any-resolution form: windows grow with the image, which limits the carrier tokens.

    The published window of 7 is legal at any size.  Its carrier tokens then grow with the image, and their
    attention with the fourth power of the resolution; a limit of 8 windows per side keeps both constant.  32
    px are illegal, because stage 4 then has one token, for whose position the authors' code divides by zero.
    """
    check_fastervit(window_size=(7, 7, 7, 7) if window_size is None else window_size, **others)
    require_multiple(resolution, 32, "fastervit", 64)
    grids = grids_of(resolution, (16, 32))
    if window_size is None:
        window_size = (7, 7, *map(_window, grids))
    worst = max(padding_of(grid, (w, w)) for grid, w in zip(grids, window_size[2:], strict=True))
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
