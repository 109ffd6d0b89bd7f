"""Which resolutions each architecture takes, and what is done to it to take them.

Pure Python, no torch: the sweep planner, the cards and the models themselves ask the same functions,
so a size that is planned is a size that builds.  A card names its function as `resolution.plan`; users'
cards that need no more than a multiple of some number give `resolution.multiple_of` instead.

A plan function takes the resolution and the variant's arguments and returns a `SizePlan`, or raises
`IllegalSize` with the legal sizes near it, or `IllegalArgument` if the arguments do not fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import Any, NamedTuple

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.sizes.arguments import check_atlas, check_atlas_depths, check_longvit, check_mambavision


@dataclass(frozen=True, kw_only=True)
class SizePlan:
    """What a model does to take one resolution: the resolution contract of a row."""

    reach: str
    """One sentence for the row, e.g. "windows of 8 (published: 7 at 224 px)"."""
    padding_ratio: float | None = None
    """Tokens of padding for each token of image in the stage that pads most; None if nothing pads."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Variant arguments that follow from the resolution (window sizes, segment lengths)."""


def near_multiples(resolution: int, multiple: int, minimum: int = 1) -> list[int]:
    """Multiples of `multiple` just below and above `resolution`, all at least `minimum`."""
    below = resolution // multiple * multiple
    return [size for size in (below, below + multiple) if size >= max(minimum, multiple)]


def require_multiple(resolution: int, multiple: int, family: str, minimum: int = 1) -> None:
    """Raise IllegalSize unless `resolution` is a multiple of `multiple` and at least `minimum`."""
    smallest = max(ceil(minimum / multiple) * multiple, multiple)
    if resolution < smallest:
        raise IllegalSize(resolution, f"{family} needs at least {smallest} px", [smallest])
    if resolution % multiple:
        legal = near_multiples(resolution, multiple, minimum)
        raise IllegalSize(resolution, f"{family} needs a multiple of {multiple} px", legal)


class Scale(NamedTuple):
    """One scale of Atlas: how its token grid is cut into windows (rows, columns)."""

    windows: tuple[int, int]
    window: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of this scale (rows, columns)."""
        return self.windows[0] * self.window[0], self.windows[1] * self.window[1]


ATLAS_PATCH = 16
"""Pixels per token side after Atlas's convolutional stem."""


def atlas_scales(height: int, width: int, *, window: int = 16, stride: int = 4) -> list[Scale]:
    """Scales of Atlas for a grid of `height` x `width` tokens, finest first (arXiv:2503.12355, section 3.1).

    Each scale is the last one pooled by `stride` on each side, until one window holds it all.

    Raises:
        ValueError: a scale does not divide into windows, or does not pool into the next.
    """
    scales = []
    while True:
        windows = []
        for tokens in (height, width):
            if tokens > window and tokens % window:
                raise ValueError(f"a scale of {tokens} tokens does not divide into windows of {window}")
            windows.append(max(1, tokens // window))
        cut = (windows[0], windows[1])
        scales.append(Scale(cut, (height // cut[0], width // cut[1])))
        if cut == (1, 1):
            return scales
        if height % stride or width % stride:
            raise ValueError(f"a scale of {height} x {width} tokens does not pool by {stride}")
        height, width = height // stride, width // stride


def atlas_depths(scales: int, total: int = 12) -> list[int]:
    """Blocks a stage: two in each but the last, which takes the rest of `total` (arXiv:2503.12355)."""
    return [2] * (scales - 1) + [total - 2 * (scales - 1)]


def _is_legal_atlas(height: int, width: int, window: int, stride: int) -> bool:
    if min(height, width) < ATLAS_PATCH or height % ATLAS_PATCH or width % ATLAS_PATCH:
        return False
    try:
        atlas_scales(height // ATLAS_PATCH, width // ATLAS_PATCH, window=window, stride=stride)
    except ValueError:
        return False
    return True


def require_atlas(height: int, width: int, *, window: int, stride: int) -> list[Scale]:
    """Scales of an image in pixels, finest first.

    Raises:
        IllegalSize: a square image does not divide so; legal sizes near it are named.
        IllegalArgument: a rectangular one does not; likewise.
    """
    if _is_legal_atlas(height, width, window, stride):
        return atlas_scales(height // ATLAS_PATCH, width // ATLAS_PATCH, window=window, stride=stride)
    why = f"every scale of atlas must divide into windows of {window} tokens of {ATLAS_PATCH} px"
    if height == width:
        around = range(max(ATLAS_PATCH, height // 2), 2 * height + window * ATLAS_PATCH)
        legal = [size for size in around if _is_legal_atlas(size, size, window, stride)]
        below = [size for size in legal if size < height][-2:]
        above = [size for size in legal if size > height][:2]
        raise IllegalSize(height, why, below + above)
    near = " and ".join(f"{h} x {w}" for h, w in _near_rectangles(height, width, window, stride))
    raise IllegalArgument(
        f"{height} x {width} px (height x width) is not a legal size: {why}; legal near it: {near}."
    )


def _near_rectangles(height: int, width: int, window: int, stride: int) -> list[tuple[int, int]]:
    """The two legal sizes nearest to an illegal rectangle, both sides free."""
    sides = [range(ATLAS_PATCH, 2 * side + 2 * window * ATLAS_PATCH, ATLAS_PATCH) for side in (height, width)]
    near = sorted(
        (
            (h, w)
            for h in sides[0]
            for w in sides[1]
            if abs(h - height) + abs(w - width) <= max(height, width)
        ),
        key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size),
    )
    legal = (size for size in near if _is_legal_atlas(*size, window, stride))
    return list(islice(legal, 2))


def atlas(
    resolution: int,
    *,
    window: int = 16,
    stride: int = 4,
    depths: Sequence[int] | None = None,
    **others: Any,
) -> SizePlan:
    """Atlas: rebuilt, with as many scales as the size needs."""
    check_atlas(window=window, stride=stride, **others)
    scales = require_atlas(resolution, resolution, window=window, stride=stride)
    if depths is not None:
        check_atlas_depths(depths, len(scales), f"{resolution} px")
    grids = ", ".join(f"{scale.grid[0]}x{scale.grid[1]}" for scale in scales)
    plural = "scale" if len(scales) == 1 else "scales"
    return SizePlan(reach=f"rebuilt with {len(scales)} {plural} of {grids} tokens")


LONGVIT_SEGMENTS = {
    4096: (1024, 2048, 4096, 8192, 16384),
    8192: (1024, 4096, 8192, 16384, 65536),
    16384: (1024, 4096, 16384, 65536, 262144),
    32768: (1024, 4096, 32768, 262144, 1048576),
}
"""Segment lengths the authors' code picks by image size; `LONGVIT_DEFAULT_SEGMENTS` at every other size."""
LONGVIT_DEFAULT_SEGMENTS = (64, 128, 256, 512, 1024)
LONGVIT_RATIOS = (1, 2, 4, 8, 16)
"""Dilation ratios as published, one a segment length."""


def longvit_segments(resolution: int) -> tuple[int, ...]:
    """Segment lengths in tokens for one image size in pixels, as published."""
    return LONGVIT_SEGMENTS.get(resolution, LONGVIT_DEFAULT_SEGMENTS)


def longvit(
    resolution: int,
    *,
    patch_size: int = 32,
    segment_length: Sequence[int] | None = None,
    dilated_ratio: Sequence[int] = LONGVIT_RATIOS,
    **others: Any,
) -> SizePlan:
    """LongViT: any number of whole patches; attention pads to whole segments, and these to the ratio."""
    segments = longvit_segments(resolution) if segment_length is None else segment_length
    check_longvit(segment_length=segments, dilated_ratio=dilated_ratio, patch_size=patch_size, **others)
    require_multiple(resolution, patch_size, "longvit")
    tokens = (resolution // patch_size) ** 2
    branches = [(min(s, tokens), r) for s, r in zip(segments, dilated_ratio, strict=True)]
    padded = max(ceil(tokens / s) * ceil(s / r) * r for s, r in branches)
    span = "spans" if max(segments) >= tokens else "does not span"
    return SizePlan(
        reach=f"position table built for {tokens} tokens; longest segment {max(segments)} {span} the image",
        padding_ratio=padded / tokens - 1 or None,
        arguments={"segment_length": list(segments)},
    )


def mambavision(resolution: int, *, window_size: Sequence[int] = (8, 8, 14, 7), **others: Any) -> SizePlan:
    """MambaVision: any size from 32 px; stages 3 and 4 pad their grid to whole windows."""
    check_mambavision(window_size=window_size, **others)
    if resolution < 32:
        raise IllegalSize(resolution, "mambavision needs at least 32 px", [32])
    ratios = []
    for stride, window in ((16, window_size[2]), (32, window_size[3])):
        grid = ceil(resolution / stride)
        ratios.append((ceil(grid / window) * window) ** 2 / grid**2 - 1)
    worst = max(ratios)
    windows = f"windows of {window_size[2]} and {window_size[3]} that neither overlap nor shift"
    pads = f", padded by {worst:.0%}" if worst else ""
    return SizePlan(reach=windows + pads, padding_ratio=worst or None)


def whole_windows(grid: int, *, smallest: int = 7, most: int = 8) -> int:
    """Smallest window of at least `smallest` tokens that divides `grid` into at most `most` a side."""
    fits = (w for w in range(min(smallest, grid), grid + 1) if grid % w == 0 and grid // w <= most)
    return next(fits)


def fastervit(resolution: int, *, window_size: Sequence[int] | None = None, **_: Any) -> SizePlan:
    """FasterViT, any-resolution form: windows grow with the image, so that carrier tokens stay few.

    With the published window of 7, the carrier tokens' position bias grows with the fourth power of the
    resolution (24 GiB for FasterViT-4 at 4096 px); at most 8 windows a side keep it constant.  At 32 px stage
    4 has one token, whose place in its window the package divides by zero.
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


def swin(resolution: int, *, window_size: int | None = None, **_: Any) -> SizePlan:
    """Swin: the first window of 7, 8 and 12 that divides or holds the grid of every stage, else 7 padded."""
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
    """Padding of the stage that pads most; a grid within the window is one window and pads nothing."""
    ratios = []
    for grid in grids:
        window = min(window_size, grid)
        ratios.append((ceil(grid / window) * window) ** 2 / grid**2 - 1)
    return max(ratios)


def vit(resolution: int, *, patch_size: int = 16, **_: Any) -> SizePlan:
    """ViT: whole patches; the position table is built for the size."""
    require_multiple(resolution, patch_size, "vit")
    return SizePlan(reach=f"position table built for {(resolution // patch_size) ** 2} tokens")


def convnext(resolution: int, **_: Any) -> SizePlan:
    """ConvNeXt: fully convolutional, any multiple of its total stride."""
    require_multiple(resolution, 32, "convnext")
    return SizePlan(reach="fully convolutional, nothing changes")
