"""Families that run through timm: which sizes are legal, and the windows and position tables of a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.sizes.plan import SizePlan, is_whole, near_multiples, require_multiple

SMALLEST = 32
"""Pixels that leave a pyramid of total stride 32 one token."""


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


HALO_BLOCK = 8
"""Tokens per side of a block of HaloNet."""

MAXVIT_WINDOWS = (8, 7)
"""Windows that are tried: 8 for powers of two, and the published 7 for multiples of 224."""


def maxvit(resolution: int, *, windows: int | str = "fixed", **_: Any) -> SizePlan:
    """MaxViT: windows of 8, or 7 where they do not fill the grids; never timm's, which grow with the image.

    `windows` may be their side, or "image" for timm's own rule.
    """
    if windows == "image":
        require_multiple(resolution, 32, "maxvit")
        side = resolution // 32
        return SizePlan(reach=f"timm's own rule: windows and grids of {side} that grow with the image")
    if windows != "fixed" and not is_whole(windows):
        raise IllegalArgument(f"windows must be fixed, image or tokens per side, not {windows!r}.")
    tried = MAXVIT_WINDOWS if isinstance(windows, str) else (windows,)
    window = next((side for side in tried if resolution % (32 * side) == 0 and resolution), None)
    if window is None:
        legal = sorted({size for side in tried for size in near_multiples(resolution, 32 * side)})
        multiples = " or ".join(f"{32 * side} px (windows of {side})" for side in tried)
        raise IllegalSize(resolution, f"maxvit needs a multiple of {multiples}", legal)
    reach = f"windows and grids of {window} (published: 7 at 224 px, 12 at 384 px)"
    return SizePlan(reach=reach, arguments={"windows": window})


def davit(resolution: int, *, window_size: int = 7, **_: Any) -> SizePlan:
    """DaViT: any size; each stage's grid is padded to whole windows."""
    _require_least(resolution, "davit")
    grids = [ceil(resolution / stride) for stride in (4, 8, 16, 32)]
    ratio = max((ceil(grid / window_size) * window_size) ** 2 / grid**2 - 1 for grid in grids)
    return SizePlan(
        reach=f"windows of {window_size}, and attention between channels over all tokens",
        padding_ratio=ratio or None,
    )


def halonet(resolution: int, **_: Any) -> SizePlan:
    """HaloNet: whole blocks of 8 in the last stage, at stride 32."""
    require_multiple(resolution, 32 * HALO_BLOCK, "halonet")
    return SizePlan(reach=f"blocks of {HALO_BLOCK} tokens, each of which sees a rim around it")


def focalnet(resolution: int, **_: Any) -> SizePlan:
    """FocalNet: convolutions and a mean over the map; any size."""
    _require_least(resolution, "focalnet")
    return SizePlan(reach="convolutions and a mean over the map; nothing changes")


def efficientvit(resolution: int, **_: Any) -> SizePlan:
    """EfficientViT: linear attention over the whole map; any size."""
    _require_least(resolution, "efficientvit")
    return SizePlan(reach="linear attention over the whole map; nothing changes")


def mambaout(resolution: int, **_: Any) -> SizePlan:
    """MambaOut: fully convolutional; any size."""
    _require_least(resolution, "mambaout")
    return SizePlan(reach="fully convolutional, nothing changes")


def pvtv2(resolution: int, **_: Any) -> SizePlan:
    """PVTv2: all tokens attend to keys at stride 32; any size."""
    _require_least(resolution, "pvtv2")
    return SizePlan(reach=f"all tokens attend to {ceil(resolution / 32) ** 2:,} keys, one per 32 px squared")


def pvtv2_li(resolution: int, **_: Any) -> SizePlan:
    """PVTv2's linear form: keys pooled to 7 x 7; any size."""
    _require_least(resolution, "pvtv2-li")
    return SizePlan(reach="all tokens attend to 49 keys, the map pooled to 7 x 7")


def xcit(resolution: int, *, patch_size: int = 16, **_: Any) -> SizePlan:
    """XCiT: whole patches; attention between channels, positions by a formula."""
    require_multiple(resolution, patch_size, "xcit")
    return SizePlan(reach="attention between channels over all tokens; positions by a formula")


def hiera(resolution: int, **_: Any) -> SizePlan:
    """Hiera: multiples of 32; the position table is built for the size, the last stages attend globally."""
    require_multiple(resolution, 32, "hiera")
    table, tokens = (resolution // 4) ** 2, (resolution // 16) ** 2
    return SizePlan(reach=f"position table of {table:,} tokens; {tokens:,} attend to each other in stage 3")


def dinov3(resolution: int, *, patch_size: int = 16, **_: Any) -> SizePlan:
    """DINOv3's ViT: whole patches; rotary positions, no table."""
    require_multiple(resolution, patch_size, "dinov3")
    return SizePlan(
        reach=f"{(resolution // patch_size) ** 2:,} tokens attend to each other; rotary positions"
    )


def _require_least(resolution: int, family: str) -> None:
    if resolution < SMALLEST:
        raise IllegalSize(resolution, f"{family} needs at least {SMALLEST} px", [SMALLEST])


def named(name: str, resolution: int, arguments: Mapping[str, Any]) -> SizePlan:
    """Any timm model by name: built for the size; where that changes more than tables, what it changes."""
    architecture = name.partition(".")[0].removeprefix("test_")
    if architecture.startswith(("maxvit", "maxxvit")) and "transformer_window_size" not in arguments:
        side = max(resolution // 32, 1)
        return SizePlan(reach=f"built for the size: timm's windows and grids of {side} grow with the image")
    return SizePlan(reach="built for the size")
