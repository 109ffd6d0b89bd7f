"""ConvNeXt, Swin and ViT: legal sizes, and the windows and position tables of a size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.sizes.plan import (
    SizePlan,
    require_multiple,
)


def swin(resolution: int, *, window_size: int | None = None, **_: Any) -> SizePlan:
    """Swin: the first window of 7, 8 and 12 that divides or covers the grid of each stage, else 7, padded."""
    require_multiple(resolution, 32, "swin")
    grids = [resolution // stride for stride in (4, 8, 16, 32)]
    if window_size is None:
        window_size = next((w for w in (7, 8, 12) if not _swin_padding(grids, w)), 7)
    return SizePlan(
        reach=f"windows of {window_size} (published: 7 at 224 px, 12 at 384 px)",
        padding_ratio=_swin_padding(grids, window_size) or None,
        arguments={"window_size": window_size},
    )


def _swin_padding(grids: Sequence[int], window_size: int) -> float:
    """Padding tokens per image token in the stage that pads most; a grid within one window never pads."""
    ratios = []
    for grid in grids:
        window = min(window_size, grid)
        ratios.append((ceil(grid / window) * window) ** 2 / grid**2 - 1)
    return max(ratios)


def vit(resolution: int, *, patch_size: int = 16, **_: Any) -> SizePlan:
    """ViT: any multiple of the patch; the position table is built for the size."""
    require_multiple(resolution, patch_size, "vit")
    return SizePlan(reach=f"position table built for {(resolution // patch_size) ** 2} tokens")


def convnext(resolution: int, **_: Any) -> SizePlan:
    """ConvNeXt: fully convolutional, so any multiple of its total stride."""
    require_multiple(resolution, 32, "convnext")
    return SizePlan(reach="fully convolutional, nothing changes")
