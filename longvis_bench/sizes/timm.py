"""Families that run through timm: which sizes are legal, and the windows and position tables of a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.resolution import AnyResolution, canonical, sides
from longvis_bench.sizes.plan import (
    SizePlan,
    each,
    grid_in_words,
    grids_of,
    is_whole,
    near_filled,
    padding_of,
    require_least,
    require_multiple,
    tokens_of,
)

SMALLEST = 32
"""Pixels that leave a pyramid of total stride 32 one token."""


def swin(resolution: AnyResolution, *, window_size: int | None = None, **_: Any) -> SizePlan:
    """Swin: the first window of 7, 8 and 12 that divides or covers the grid of each stage, else 7, padded."""
    require_multiple(resolution, 32, "swin")
    grids = grids_of(resolution, (4, 8, 16, 32))
    if window_size is None:
        window_size = next((w for w in (7, 8, 12) if not _swin_padding(grids, w)), 7)
    return SizePlan(
        reach=f"windows of {window_size} (published: 7 at 224 px, 12 at 384 px)",
        padding_ratio=_swin_padding(grids, window_size) or None,
        arguments={"window_size": window_size},
    )


def _swin_padding(grids: Sequence[tuple[int, int]], window_size: int) -> float:
    """Padding tokens per image token in the stage that pads most; a side within one window never pads."""
    return max(padding_of(grid, [min(window_size, side) for side in grid]) for grid in grids)


def vit(resolution: AnyResolution, *, patch_size: int = 16, **_: Any) -> SizePlan:
    """ViT: any multiple of the patch; the position table is built for the size."""
    require_multiple(resolution, patch_size, "vit")
    return SizePlan(reach=f"position table built for {tokens_of(resolution, patch_size)} tokens")


def convnext(resolution: AnyResolution, **_: Any) -> SizePlan:
    """ConvNeXt: fully convolutional, so any multiple of its total stride."""
    require_multiple(resolution, 32, "convnext")
    return SizePlan(reach="fully convolutional, nothing changes")


HALO_BLOCK = 8
"""Tokens per side of a block of HaloNet."""

MAXVIT_WINDOWS = (8, 7)
"""Windows that are tried: 8 for powers of two, and the published 7 for multiples of 224."""


def maxvit(resolution: AnyResolution, *, windows: int | str = "fixed", **_: Any) -> SizePlan:
    """MaxViT: windows of 8, or 7 where they do not fill the grids; never timm's, which grow with the image.

    `windows` may be their side, or "image" for timm's own rule.
    """
    if windows == "image":
        require_multiple(resolution, 32, "maxvit")
        grid = grid_in_words(resolution, 32)
        return SizePlan(reach=f"timm's own rule: windows and grids of {grid} that grow with the image")
    if windows != "fixed" and not is_whole(windows):
        raise IllegalArgument(f"windows must be fixed, image or tokens per side, not {windows!r}.")
    tried = MAXVIT_WINDOWS if isinstance(windows, str) else (windows,)
    window = next((side for side in tried if _fills(resolution, 32 * side)), None)
    if window is None:
        legal = sorted({size for side in tried for size in near_filled(resolution, 32 * side)})
        multiples = " or ".join(f"{32 * side} px (windows of {side})" for side in tried)
        why = f"maxvit needs a multiple of {multiples}{each(resolution)}"
        raise IllegalSize(canonical(resolution), why, legal)
    reach = f"windows and grids of {window} (published: 7 at 224 px, 12 at 384 px)"
    return SizePlan(reach=reach, arguments={"windows": window})


def davit(resolution: AnyResolution, *, window_size: int = 7, **_: Any) -> SizePlan:
    """DaViT: any size; each stage's grid is padded to whole windows."""
    _require_least(resolution, "davit")
    grids = [[ceil(side / stride) for side in sides(resolution)] for stride in (4, 8, 16, 32)]
    ratio = max(padding_of(grid, (window_size, window_size)) for grid in grids)
    return SizePlan(
        reach=f"windows of {window_size}, and attention between channels over all tokens",
        padding_ratio=ratio or None,
    )


def halonet(resolution: AnyResolution, **_: Any) -> SizePlan:
    """HaloNet: whole blocks of 8 in the last stage, at stride 32."""
    require_multiple(resolution, 32 * HALO_BLOCK, "halonet")
    return SizePlan(reach=f"blocks of {HALO_BLOCK} tokens, each of which sees a rim around it")


def focalnet(resolution: AnyResolution, **_: Any) -> SizePlan:
    """FocalNet: convolutions and a mean over the map; any size."""
    _require_least(resolution, "focalnet")
    return SizePlan(reach="convolutions and a mean over the map; nothing changes")


def efficientvit(resolution: AnyResolution, **_: Any) -> SizePlan:
    """EfficientViT: linear attention over the whole map; any size."""
    _require_least(resolution, "efficientvit")
    return SizePlan(reach="linear attention over the whole map; nothing changes")


def mambaout(resolution: AnyResolution, **_: Any) -> SizePlan:
    """MambaOut: fully convolutional; any size."""
    _require_least(resolution, "mambaout")
    return SizePlan(reach="fully convolutional, nothing changes")


def pvtv2(resolution: AnyResolution, **_: Any) -> SizePlan:
    """PVTv2: all tokens attend to keys at stride 32; any size."""
    _require_least(resolution, "pvtv2")
    keys = prod(ceil(side / 32) for side in sides(resolution))
    return SizePlan(reach=f"all tokens attend to {keys:,} keys, one per 32 px squared")


def pvtv2_li(resolution: AnyResolution, **_: Any) -> SizePlan:
    """PVTv2's linear form: keys pooled to 7 x 7; any size."""
    _require_least(resolution, "pvtv2-li")
    return SizePlan(reach="all tokens attend to 49 keys, the map pooled to 7 x 7")


def xcit(resolution: AnyResolution, *, patch_size: int = 16, **_: Any) -> SizePlan:
    """XCiT: whole patches; attention between channels, positions by a formula."""
    require_multiple(resolution, patch_size, "xcit")
    return SizePlan(reach="attention between channels over all tokens; positions by a formula")


def hiera(resolution: AnyResolution, **_: Any) -> SizePlan:
    """Hiera: multiples of 32; the position table is built for the size, the last stages attend globally."""
    require_multiple(resolution, 32, "hiera")
    table, tokens = tokens_of(resolution, 4), tokens_of(resolution, 16)
    return SizePlan(reach=f"position table of {table:,} tokens; {tokens:,} attend to each other in stage 3")


def dinov3(resolution: AnyResolution, *, patch_size: int = 16, **_: Any) -> SizePlan:
    """DINOv3's ViT: whole patches; rotary positions, no table."""
    require_multiple(resolution, patch_size, "dinov3")
    return SizePlan(
        reach=f"{tokens_of(resolution, patch_size):,} tokens attend to each other; rotary positions"
    )


def _require_least(resolution: AnyResolution, family: str) -> None:
    require_least(resolution, SMALLEST, family)


def _fills(resolution: AnyResolution, multiple: int) -> bool:
    return all(side % multiple == 0 for side in sides(resolution))


def named(name: str, resolution: AnyResolution, arguments: Mapping[str, Any]) -> SizePlan:
    """Any timm model by name: built for the size; where that changes more than tables, what it changes."""
    architecture = name.partition(".")[0].removeprefix("test_")
    if architecture.startswith(("maxvit", "maxxvit")) and "transformer_window_size" not in arguments:
        grid = grid_in_words(resolution, 32)
        return SizePlan(reach=f"built for the size: timm's windows and grids of {grid} grow with the image")
    return SizePlan(reach="built for the size")
