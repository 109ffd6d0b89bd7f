"""CrossFormer: which sizes and arguments are legal, and how its groups pad."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution, Rectangle, canonical
from longvis_bench.sizes.plan import (
    SizePlan,
    grids_of,
    padding_of,
    require_divisor,
    require_fraction,
    require_multiple,
    require_true_or_false,
    require_whole,
    require_whole_numbers,
)

STAGES = 4


def plan(
    resolution: AnyResolution,
    *,
    group_size: Sequence[int] = (7, 7, 7, 7),
    crs_interval: Sequence[int] = (8, 4, 2, 1),
    adaptive_interval: bool = False,
    **others: Any,
) -> SizePlan:
    """CrossFormer: multiples of 32; maps are padded to whole groups, and padding is masked."""
    check_crossformer(
        group_size=group_size, crs_interval=crs_interval, adaptive_interval=adaptive_interval, **others
    )
    require_multiple(resolution, 32, "crossformer")
    grids = grids_of(resolution, [4 * 2**stage for stage in range(STAGES)])
    if adaptive_interval and isinstance(canonical(resolution), Rectangle):
        raise IllegalArgument("adaptive_interval of crossformer is for squares; leave it out.")
    depths = others.get("depths", (2,) * STAGES)
    ratios, intervals = [], []
    for grid, group, interval, depth in zip(grids, group_size, crs_interval, depths, strict=True):
        side = min(grid)
        step = stride_of(side, group, interval, adaptive_interval)
        intervals.append(step)
        blocks = [group, group * step][: min(depth, 2)] if side > group else [side]
        ratios += [padding_of(grid, (block, block)) for block in blocks]
    groups, steps = ", ".join(map(str, group_size)), ", ".join(map(str, intervals))
    reach = f"groups of {groups} tokens per side, every second block at intervals of {steps}"
    return SizePlan(reach=reach, padding_ratio=max(ratios, default=0.0) or None)


def stride_of(side: int, group: int, interval: int, adaptive: bool) -> int:
    """Tokens between those of a long-distance group: as given, or such that a group spans the map."""
    return ceil(side / group) if adaptive else interval


def check_crossformer(
    *,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    group_size: Sequence[int] = (7, 7, 7, 7),
    crs_interval: Sequence[int] = (8, 4, 2, 1),
    patch_size: Sequence[int] = (4, 8, 16, 32),
    merge_size: Sequence[Sequence[int]] = ((2, 4), (2, 4), (2, 4)),
    adaptive_interval: bool = False,
    use_acl: bool = False,
    drop_path_rate: float = 0.0,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a CrossFormer."""
    require_whole(embed_dim=embed_dim)
    for name, values in (
        ("depths", depths),
        ("num_heads", num_heads),
        ("group_size", group_size),
        ("crs_interval", crs_interval),
    ):
        require_whole_numbers(name, values, "(7, 7, 7, 7)")
        if len(values) != STAGES:
            raise IllegalArgument(f"{name} must be {STAGES} numbers, one per stage, not {list(values)}.")
    require_whole_numbers("patch_size", patch_size, "(4, 8, 16, 32)")
    if patch_size[0] != 4:
        raise IllegalArgument(f"patch_size must begin with 4, the stride of stage 1, not {patch_size[0]}.")
    if len(merge_size) != STAGES - 1:
        raise IllegalArgument(
            f"merge_size must be {STAGES - 1} lists, one per transition, not {merge_size!r}."
        )
    if embed_dim % 16:
        raise IllegalArgument(f"embed_dim must be a multiple of 16, for the position bias, not {embed_dim}.")
    for stage, heads in enumerate(num_heads):
        width = embed_dim * 2**stage
        require_divisor(f"num_heads of stage {stage + 1}", heads, f"its width of {width}", width)
    require_true_or_false(adaptive_interval=adaptive_interval, use_acl=use_acl)
    require_fraction("drop_path_rate", drop_path_rate)
