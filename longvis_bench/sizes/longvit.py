"""LongViT: legal sizes and arguments, and the segment lengths of a size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution, Resolution, canonical
from longvis_bench.sizes.plan import (
    SizePlan,
    require_divisor,
    require_fraction,
    require_multiple,
    require_true_or_false,
    require_whole,
    require_whole_numbers,
    tokens_of,
)

LONGVIT_SEGMENTS: dict[Resolution, tuple[int, ...]] = {
    4096: (1024, 2048, 4096, 8192, 16384),
    8192: (1024, 4096, 8192, 16384, 65536),
    16384: (1024, 4096, 16384, 65536, 262144),
    32768: (1024, 4096, 32768, 262144, 1048576),
}
"""Image size in pixels -> segment lengths in tokens, as in the authors' code."""


LONGVIT_DEFAULT_SEGMENTS = (64, 128, 256, 512, 1024)
"""Segment lengths of the authors' code at every other image size."""


LONGVIT_RATIOS = (1, 2, 4, 8, 16)
"""Published dilation ratios, one per segment length."""


def longvit_segments(resolution: AnyResolution) -> tuple[int, ...]:
    """Published segment lengths in tokens, for an image size in pixels; rectangles are among the others."""
    return LONGVIT_SEGMENTS.get(canonical(resolution), LONGVIT_DEFAULT_SEGMENTS)


def plan(
    resolution: AnyResolution,
    *,
    patch_size: int = 32,
    segment_length: Sequence[int] | None = None,
    dilated_ratio: Sequence[int] = LONGVIT_RATIOS,
    **others: Any,
) -> SizePlan:
    """LongViT: any multiple of the patch; attention pads to whole segments, and segments to the ratio."""
    segments = longvit_segments(resolution) if segment_length is None else segment_length
    check_longvit(segment_length=segments, dilated_ratio=dilated_ratio, patch_size=patch_size, **others)
    require_multiple(resolution, patch_size, "longvit")
    tokens = tokens_of(resolution, patch_size)
    branches = [(min(s, tokens), r) for s, r in zip(segments, dilated_ratio, strict=True)]
    padded = max(ceil(tokens / s) * ceil(s / r) * r for s, r in branches)
    span = "spans" if max(segments) >= tokens else "does not span"
    return SizePlan(
        reach=f"position table built for {tokens} tokens; longest segment {max(segments)} {span} the image",
        padding_ratio=padded / tokens - 1 or None,
        arguments={"segment_length": list(segments)},
    )


def check_longvit(
    *,
    segment_length: Sequence[int],
    dilated_ratio: Sequence[int],
    patch_size: int = 1,
    dim: int | None = None,
    depth: int = 1,
    num_heads: int = 1,
    drop_path: float = 0.0,
    in_chans: int = 3,
    mask_padding: bool = False,
    differentiable_mixing: bool = False,
    **_: object,
) -> None:
    """Raise IllegalArgument if the arguments of LongViT do not fit together; `dim=None` skips the heads."""
    require_whole(patch_size=patch_size, depth=depth, num_heads=num_heads, in_chans=in_chans)
    require_fraction("drop_path", drop_path)
    require_true_or_false(mask_padding=mask_padding, differentiable_mixing=differentiable_mixing)
    require_whole_numbers("segment_length", segment_length)
    require_whole_numbers("dilated_ratio", dilated_ratio)
    lengths, ratios = len(segment_length), len(dilated_ratio)
    if lengths != ratios:
        raise IllegalArgument(
            f"segment_length and dilated_ratio must have the same length, one pair per branch, not {lengths} "
            f"and {ratios}: give {ratios} segment lengths or {lengths} ratios."
        )
    if dim is not None:
        require_whole(dim=dim)
        require_divisor("num_heads", num_heads, f"the width of {dim}", dim)
