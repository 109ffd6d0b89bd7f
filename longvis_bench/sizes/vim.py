"""Vim: which sizes and arguments are legal."""

from __future__ import annotations

from typing import Any

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.sizes.plan import SizePlan, near_multiples, require_fraction, require_whole


def plan(resolution: int, *, patch_size: int = 16, stride: int | None = None, **others: Any) -> SizePlan:
    """Vim: sizes that whole patches fill; the position table is built for the size."""
    check_vim(patch_size=patch_size, stride=stride, **others)
    step = stride or patch_size
    if resolution < patch_size:
        raise IllegalSize(resolution, f"vim needs at least one patch of {patch_size} px", [patch_size])
    if (resolution - patch_size) % step:
        legal = [patch_size, *(n + patch_size for n in near_multiples(resolution - patch_size, step))]
        near = [size for size in legal if abs(size - resolution) < step]
        raise IllegalSize(
            resolution, f"vim needs patches of {patch_size} px every {step} px that fill the image", near
        )
    side = (resolution - patch_size) // step + 1
    return SizePlan(reach=f"one sequence of {side * side:,} tokens, both ways; position table built for it")


def check_vim(
    *,
    embed_dim: int,
    depth: int,
    patch_size: int = 16,
    stride: int | None = None,
    d_state: int = 16,
    if_cls_token: bool = True,
    use_middle_cls_token: bool = True,
    final_pool_type: str = "mean",
    drop_path_rate: float = 0.0,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a Vim."""
    require_whole(embed_dim=embed_dim, depth=depth, patch_size=patch_size, d_state=d_state)
    require_whole(stride=patch_size if stride is None else stride)
    require_fraction("drop_path_rate", drop_path_rate)
    if use_middle_cls_token and not if_cls_token:
        raise IllegalArgument("use_middle_cls_token needs if_cls_token: there is no class token to place.")
    if final_pool_type not in ("mean", "none", "max"):
        raise IllegalArgument(f"final_pool_type must be mean, none or max, not {final_pool_type!r}.")
