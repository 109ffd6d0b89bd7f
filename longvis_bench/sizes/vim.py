"""Vim: which sizes and arguments are legal."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.resolution import AnyResolution, canonical, sides
from longvis_bench.sizes.plan import SizePlan, near, near_multiples, require_fraction, require_whole


def plan(
    resolution: AnyResolution, *, patch_size: int = 16, stride: int | None = None, **others: Any
) -> SizePlan:
    """Vim: sizes that whole patches fill; the position table is built for the size."""
    check_vim(patch_size=patch_size, stride=stride, **others)
    step = stride or patch_size
    if min(sides(resolution)) < patch_size or any((side - patch_size) % step for side in sides(resolution)):
        least = min(sides(resolution)) < patch_size
        why = (
            f"at least one patch of {patch_size} px"
            if least
            else (f"patches of {patch_size} px every {step} px that fill the image")
        )
        legal = near(resolution, partial(_near_sides, patch_size, step))
        raise IllegalSize(canonical(resolution), f"vim needs {why}", legal)
    tokens = prod(grid_of(resolution, patch_size, step))
    return SizePlan(reach=f"one sequence of {tokens:,} tokens, both ways; position table built for it")


def grid_of(resolution: AnyResolution, patch_size: int, step: int) -> tuple[int, int]:
    """Rows and columns of patches of an image."""
    rows, columns = ((side - patch_size) // step + 1 for side in sides(resolution))
    return rows, columns


def _near_sides(patch_size: int, step: int, side: int) -> list[int]:
    """Legal sides near an illegal one; none if it is legal."""
    if side < patch_size:
        return [patch_size]
    if (side - patch_size) % step == 0:
        return []
    legal = [patch_size, *(n + patch_size for n in near_multiples(side - patch_size, step))]
    return [size for size in legal if abs(size - side) < step]


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
