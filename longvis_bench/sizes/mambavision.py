"""MambaVision: legal sizes and arguments, and the padding of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.plan import (
    SizePlan,
    padding_of,
    require_attention_stages,
    require_fraction,
    require_least,
    require_whole,
    require_whole_numbers,
)


def plan(resolution: AnyResolution, *, window_size: Sequence[int] = (8, 8, 14, 7), **others: Any) -> SizePlan:
    """MambaVision: any size from 32 px; stages 3 and 4 pad their grids to whole windows."""
    check_mambavision(window_size=window_size, **others)
    require_least(resolution, 32, "mambavision")
    ratios = []
    for stride, window in ((16, window_size[2]), (32, window_size[3])):
        grid = [ceil(side / stride) for side in sides(resolution)]
        ratios.append(padding_of(grid, (window, window)))
    worst = max(ratios)
    windows = f"windows of {window_size[2]} and {window_size[3]} that neither overlap nor shift"
    pads = f", padded by {worst:.0%}" if worst else ""
    return SizePlan(reach=windows + pads, padding_ratio=worst or None)


def check_mambavision(
    *,
    window_size: Sequence[int],
    depths: Sequence[int] = (1, 1, 1, 1),
    num_heads: Sequence[int] = (1, 1, 1, 1),
    dim: int | None = None,
    in_dim: int = 1,
    mlp_ratio: float = 4,
    layer_scale: float | None = None,
    drop_path: float = 0.0,
    in_chans: int = 3,
    **_: object,
) -> None:
    """Raise IllegalArgument if MambaVision's arguments do not fit together; `dim=None` skips the heads."""
    for name, values in (("depths", depths), ("window_size", window_size), ("num_heads", num_heads)):
        require_whole_numbers(name, values, "(8, 8, 14, 7)")
        if len(values) != 4:
            raise IllegalArgument(
                f"mambavision needs {name} of four positive numbers, one per stage, not {values!r}."
            )
    require_whole(in_dim=in_dim, in_chans=in_chans)
    require_fraction("drop_path", drop_path)
    require_attention_stages(dim, num_heads, mlp_ratio, layer_scale)
