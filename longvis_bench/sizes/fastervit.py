"""FasterViT: legal sizes, and the windows of a size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.sizes.plan import (
    SizePlan,
    require_multiple,
)


def whole_windows(grid: int, *, smallest: int = 7, most: int = 8) -> int:
    """Smallest window of at least `smallest` tokens that divides `grid` into at most `most` per side."""
    fits = (w for w in range(min(smallest, grid), grid + 1) if grid % w == 0 and grid // w <= most)
    return next(fits)


def plan(resolution: int, *, window_size: Sequence[int] | None = None, **_: Any) -> SizePlan:
    """FasterViT in its any-resolution form: windows grow with the image, which limits the carrier tokens.

    With the published window of 7, the carrier tokens' position bias grows with the fourth power of the
    resolution (24 GiB for FasterViT-4 at 4096 px); a limit of 8 windows per side keeps it constant.  32 px
    are illegal, because stage 4 then has one token, and the package divides by zero for its position.
    """
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
