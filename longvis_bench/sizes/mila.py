"""MILA: which sizes and arguments are legal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import (
    SizePlan,
    is_number,
    require_divisor,
    require_fraction,
    require_multiple,
    require_whole,
    require_whole_numbers,
)


def plan(resolution: AnyResolution, **arguments: Any) -> SizePlan:
    """MILA: multiples of 32; rotary positions follow from the size, nothing else does."""
    check_mila(**arguments)
    require_multiple(resolution, 32, "mila")
    return SizePlan(reach="linear attention over the whole map in every block; rotary positions")


def check_mila(
    *,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a MILA."""
    require_whole(embed_dim=embed_dim)
    require_whole_numbers("depths", depths, "(2, 4, 8, 4)")
    require_whole_numbers("num_heads", num_heads, "(2, 4, 8, 16)")
    if len(num_heads) != len(depths):
        raise IllegalArgument(
            f"num_heads and depths must be as many, not {len(num_heads)} and {len(depths)}."
        )
    if embed_dim % 4:
        raise IllegalArgument(
            f"embed_dim must be a multiple of 4, pairs for rows and for columns, not {embed_dim}."
        )
    for stage, heads in enumerate(num_heads):
        width = embed_dim * 2**stage
        require_divisor(f"num_heads of stage {stage + 1}", heads, f"its width of {width}", width)
    if not is_number(mlp_ratio) or mlp_ratio <= 0:
        raise IllegalArgument(f"mlp_ratio must be a positive number, not {mlp_ratio!r}.")
    require_fraction("drop_path_rate", drop_path_rate)
