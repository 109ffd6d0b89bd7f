"""BiFormer: which sizes and arguments are legal, and how its regions pad."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.plan import (
    SizePlan,
    is_whole,
    padding_of,
    require_divisor,
    require_fraction,
    require_least,
    require_multiple,
    require_true_or_false,
    require_whole,
    require_whole_numbers,
    tokens_of,
)

FULL = -2
"""A `topk` that means attention over all tokens."""
FULL_HEADS = 8
"""Heads of that attention, in every variant."""


def plan(
    resolution: AnyResolution,
    *,
    n_win: int = 7,
    topks: Sequence[int] = (1, 4, 16, FULL),
    auto_pad: bool = False,
    **others: Any,
) -> SizePlan:
    """BiFormer: each routed stage's side must be a multiple of the regions per side, or is padded to one."""
    check_biformer(n_win=n_win, topks=topks, auto_pad=auto_pad, **others)
    routed = [stage for stage, topk in enumerate(topks) if topk != FULL]
    tokens = tokens_of(resolution, 32)
    reach = f"{n_win} x {n_win} regions; the last stage attends over all {tokens:,} tokens"
    if not auto_pad:
        stride = max([4 * 2**stage for stage in routed], default=4)
        require_multiple(resolution, _least_multiple(n_win * stride), "biformer")
        return SizePlan(reach=reach)
    require_least(resolution, 32, "biformer")
    grids = [[ceil(side / (4 * 2**stage)) for side in sides(resolution)] for stage in routed]
    ratio = max([padding_of(grid, (n_win, n_win)) for grid in grids], default=0.0)
    return SizePlan(reach=reach, padding_ratio=ratio or None)


def _least_multiple(pixels: int) -> int:
    """The smallest multiple of the total stride, 32, that `pixels` divides."""
    multiple = pixels
    while multiple % 32:
        multiple += pixels
    return multiple


def check_biformer(
    *,
    depth: Sequence[int],
    embed_dim: Sequence[int],
    head_dim: int = 32,
    qk_dims: Sequence[int | None] | None = None,
    n_win: int = 7,
    topks: Sequence[int] = (1, 4, 16, FULL),
    mlp_ratios: Sequence[float] = (3, 3, 3, 3),
    side_dwconv: int = 5,
    before_attn_dwconv: int = 3,
    auto_pad: bool = False,
    drop_path_rate: float = 0.0,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a BiFormer."""
    require_whole_numbers("depth", depth, "(2, 2, 8, 2)")
    require_whole_numbers("embed_dim", embed_dim, "(64, 128, 256, 512)")
    for name, values in (("embed_dim", embed_dim), ("topks", topks), ("mlp_ratios", mlp_ratios)):
        if len(values) != len(depth):
            raise IllegalArgument(f"{name} and depth must be as many, not {len(values)} and {len(depth)}.")
    require_whole(n_win=n_win, head_dim=head_dim)
    for topk in topks:
        if topk != FULL and not (is_whole(topk) and topk <= n_win * n_win):
            raise IllegalArgument(
                f"topks must be 1 to {n_win * n_win} regions, or {FULL} for all tokens, not {topk!r}."
            )
    for width, topk in zip(embed_dim, topks, strict=True):
        if topk == FULL:
            require_divisor("8 heads over all tokens", FULL_HEADS, f"the width of {width}", width)
        else:
            require_divisor("head_dim", head_dim, f"each width, {width} too,", width)
    if qk_dims is not None and any(q not in (None, e) for q, e in zip(qk_dims, embed_dim, strict=True)):
        raise IllegalArgument(f"qk_dims must be those of embed_dim, not {list(qk_dims)}.")
    if side_dwconv % 2 == 0 or (before_attn_dwconv > 0 and before_attn_dwconv % 2 == 0):
        raise IllegalArgument("side_dwconv and before_attn_dwconv must be odd.")
    require_true_or_false(auto_pad=auto_pad)
    require_fraction("drop_path_rate", drop_path_rate)
