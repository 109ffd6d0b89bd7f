"""MSCSA over a host: which sizes and arguments are legal, and how many tokens attend to how many."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.plan import (
    SizePlan,
    is_number,
    is_whole,
    require_fraction,
    require_multiple,
    require_true_or_false,
    require_whole,
    require_whole_numbers,
)

STAGES = 4
"""Maps of a host that the module joins: its last four, at strides 4, 8, 16 and 32."""
TOTAL_STRIDE = 32


def plan(resolution: AnyResolution, *, grid_stage: int = -1, attach: bool = True, **others: Any) -> SizePlan:
    """MSCSA: multiples of the host's total stride; the grid's tokens attend to it at three scales."""
    require_multiple(resolution, TOTAL_STRIDE, "mscsa")
    known = {key: others[key] for key in others if key in _CHECKED}
    check_mscsa(channels=(1,) * STAGES, grid_stage=grid_stage, **known)
    if not attach:
        return SizePlan(reach="the host alone, with the same head")
    stride = TOTAL_STRIDE * 2 ** (grid_stage % STAGES) // 2 ** (STAGES - 1)
    grid = [side // stride for side in sides(resolution)]
    keys = sum(prod(ceil(side / step) for side in grid) for step in (1, 2, 3))
    return SizePlan(reach=f"{prod(grid):,} tokens attend to {keys:,} of three scales")


_CHECKED = ("depth", "channel_ratio", "heads", "head_dim", "attn_ratio", "mlp_ratio", "shared", "drop_path")


def check_mscsa(
    *,
    channels: Sequence[int],
    depth: int = 1,
    channel_ratio: float = 1.0,
    heads: int = 16,
    head_dim: int = 40,
    attn_ratio: float = 2.0,
    mlp_ratio: float = 3.0,
    grid_stage: int = -2,
    shared: bool = False,
    drop_path: float = 0.0,
) -> None:
    """Raise IllegalArgument unless these make an MSCSA module."""
    require_whole_numbers("channels", channels, "(64, 128, 320, 512)")
    require_whole(depth=depth, heads=heads, head_dim=head_dim)
    for name, value in (
        ("channel_ratio", channel_ratio),
        ("attn_ratio", attn_ratio),
        ("mlp_ratio", mlp_ratio),
    ):
        if not is_number(value) or value <= 0:
            raise IllegalArgument(f"{name} must be a positive number, not {value!r}.")
    if attn_ratio * head_dim != int(attn_ratio * head_dim):
        raise IllegalArgument(
            f"attn_ratio times head_dim must be a whole number of value channels per head, which "
            f"{attn_ratio} x {head_dim} is not; {round(attn_ratio * head_dim) / head_dim:g} would be."
        )
    stages = len(channels)
    if not (is_whole(-grid_stage) if grid_stage < 0 else True) or not -stages <= grid_stage < stages:
        raise IllegalArgument(
            f"grid_stage must name one of {stages} maps, {-stages} to {stages - 1}, not {grid_stage!r}."
        )
    require_true_or_false(shared=shared)
    require_fraction("drop_path", drop_path)
