"""DiNAT: which sizes and arguments are legal, and the dilations of a size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.plan import (
    SizePlan,
    is_number,
    require_divisor,
    require_fraction,
    require_least,
    require_whole,
    require_whole_numbers,
)

Dilations = Sequence[Sequence[int]] | str


def plan(
    resolution: AnyResolution,
    *,
    depths: Sequence[int],
    kernel_size: int = 7,
    dilations: Dilations | None = None,
    **others: Any,
) -> SizePlan:
    """DiNAT: a stage's shorter side must hold its largest dilated window; "global" ones span it."""
    check_dinat(depths=depths, kernel_size=kernel_size, dilations=dilations, **others)
    tokens = sides_of(min(sides(resolution)), len(depths))
    if dilations == "global":
        require_least(resolution, kernel_size * 32, "dinat")
        chosen = [
            [max(side // kernel_size, 1) if j % 2 else 1 for j in range(depth)]
            for side, depth in zip(tokens, depths, strict=True)
        ]
    else:
        chosen = [list(stage) for stage in given(dilations, depths)]
        least = next(
            size
            for size in range(kernel_size * 4, 2**20, 4)
            if _fits(sides_of(size, len(depths)), kernel_size, chosen)
        )
        require_least(resolution, least, "dinat")
    widest = ", ".join(str(max(stage)) for stage in chosen)
    how = "dilations that span the map" if dilations == "global" else "dilations as published for 224 px"
    reach = f"neighbourhoods of {kernel_size} x {kernel_size}; largest dilations {widest} ({how})"
    return SizePlan(reach=reach, arguments={"dilations": chosen})


def given(dilations: Dilations | None, depths: Sequence[int]) -> Sequence[Sequence[int]]:
    """Dilations of each block; where none are given, 1: NAT."""
    if dilations is None or isinstance(dilations, str):
        return [[1] * depth for depth in depths]
    return dilations


def sides_of(resolution: int, stages: int) -> list[int]:
    """Tokens per side of each stage; strided convolutions round up."""
    sides = [ceil(ceil(resolution / 2) / 2)]
    while len(sides) < stages:
        sides.append(ceil(sides[-1] / 2))
    return sides


def _fits(sides: Sequence[int], kernel: int, dilations: Sequence[Sequence[int]]) -> bool:
    return all(side >= kernel * max(stage) for side, stage in zip(sides, dilations, strict=True))


def check_dinat(
    *,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    kernel_size: int = 7,
    dilations: Dilations | None = None,
    mlp_ratio: float = 3,
    layer_scale: float | None = None,
    drop_path_rate: float = 0.0,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a DiNAT."""
    require_whole(embed_dim=embed_dim, kernel_size=kernel_size)
    require_whole_numbers("depths", depths, "(3, 4, 6, 5)")
    require_whole_numbers("num_heads", num_heads, "(2, 4, 8, 16)")
    if len(num_heads) != len(depths):
        raise IllegalArgument(
            f"num_heads and depths must be as many, not {len(num_heads)} and {len(depths)}."
        )
    if kernel_size % 2 == 0:
        raise IllegalArgument(f"kernel_size must be odd, not {kernel_size}.")
    if isinstance(dilations, str) and dilations != "global":
        raise IllegalArgument(f"dilations must be lists, one per stage, or global, not {dilations!r}.")
    if dilations is not None and not isinstance(dilations, str):
        if [len(stage) for stage in dilations] != list(depths):
            raise IllegalArgument(f"dilations must name one per block of depths {list(depths)}.")
        for blocks in dilations:
            require_whole_numbers("dilations", blocks, "((1, 8), (1, 4), (1, 2), (1, 1))")
    for stage, heads in enumerate(num_heads):
        width = embed_dim * 2**stage
        require_divisor(f"num_heads of stage {stage + 1}", heads, f"its width of {width}", width)
    if not is_number(mlp_ratio) or mlp_ratio <= 0:
        raise IllegalArgument(f"mlp_ratio must be a positive number, not {mlp_ratio!r}.")
    if layer_scale is not None and not is_number(layer_scale):
        raise IllegalArgument(f"layer_scale must be a number or None, not {layer_scale!r}.")
    require_fraction("drop_path_rate", drop_path_rate)
