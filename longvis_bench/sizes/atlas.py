"""Atlas: legal sizes and arguments, and the scales of a size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.resolution import AnyResolution, canonical, sides
from longvis_bench.sizes.plan import (
    SizePlan,
    divisors,
    listed,
    require_divisor,
    require_fraction,
    require_whole,
    require_whole_numbers,
)
from longvis_bench.units import several


class Scale(NamedTuple):
    """One scale of Atlas: the partition of its token grid into windows."""

    windows: tuple[int, int]
    """Number of windows (rows, columns)."""
    window: tuple[int, int]
    """Tokens per window (rows, columns)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of this scale (rows, columns)."""
        return self.windows[0] * self.window[0], self.windows[1] * self.window[1]


ATLAS_PATCH = 16
"""Side of a token after Atlas's convolutional stem, in pixels."""


def atlas_scales(height: int, width: int, *, window: int = 16, stride: int = 4) -> list[Scale]:
    """Scales of Atlas for a grid of `height` x `width` tokens, finest first (arXiv:2503.12355, section 3.1).

    Each scale is the previous one pooled by `stride` on each side; the last has a single window.

    Raises:
        ValueError: the windows do not divide a scale, or `stride` does not divide a scale that is pooled.
    """
    scales = []
    while True:
        windows = []
        for tokens in (height, width):
            if tokens > window and tokens % window:
                raise ValueError(f"a scale of {tokens} tokens does not divide into windows of {window}")
            windows.append(max(1, tokens // window))
        rows, columns = windows
        scales.append(Scale((rows, columns), (height // rows, width // columns)))
        if (rows, columns) == (1, 1):
            return scales
        if height % stride or width % stride:
            raise ValueError(f"a scale of {height} x {width} tokens does not pool by {stride}")
        height, width = height // stride, width // stride


def atlas_depths(scales: int, total: int = 12) -> list[int]:
    """Blocks per stage: two in each except the last, which has the rest of `total` (arXiv:2503.12355)."""
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
    """Scales of an image of `height` x `width` pixels, finest first.

    Raises:
        IllegalSize: the windows do not divide the image; the message lists legal sizes near it.
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
    near = [canonical(pair) for pair in _near_rectangles(height, width, window, stride)]
    raise IllegalSize(canonical((height, width)), why, near)


def _near_rectangles(height: int, width: int, window: int, stride: int) -> list[tuple[int, int]]:
    """The two legal sizes nearest to an illegal rectangle; both sides may change."""
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


def plan(
    resolution: AnyResolution,
    *,
    window: int = 16,
    stride: int = 4,
    depths: Sequence[int] | None = None,
    **others: Any,
) -> SizePlan:
    """Atlas: rebuilt with the number of scales that the size needs."""
    check_atlas(window=window, stride=stride, **others)
    scales = require_atlas(*sides(resolution), window=window, stride=stride)
    if depths is None:
        depths = atlas_depths(len(scales))
    check_atlas_depths(depths, len(scales), f"{canonical(resolution)} px")
    grids = ", ".join(f"{scale.grid[0]}x{scale.grid[1]}" for scale in scales)
    return SizePlan(
        reach=f"rebuilt with {several(len(scales), 'scale')} of {grids} tokens",
        arguments={"depths": list(depths)},
    )


WINDOW_ORDERS = ("position", "official")


def check_atlas(
    *,
    window: int,
    stride: int,
    dim: int | None = None,
    heads: int = 1,
    stem_dim: int | None = None,
    window_order: str = "position",
    drop_path: float = 0.0,
    in_chans: int = 3,
    **_: object,
) -> None:
    """Raise IllegalArgument if the arguments of Atlas do not fit together; `dim=None` skips the widths."""
    require_whole(window=window, stride=stride, heads=heads, in_chans=in_chans)
    require_fraction("drop_path", drop_path)
    if stride < 2 or window % stride:
        strides = [n for n in divisors(window) if n > 1]
        legal = listed(strides) if strides else "none does: a window needs at least 2 tokens per side"
        raise IllegalArgument(
            f"stride must be at least 2 and divide the window of {window} ({legal}), not {stride}."
        )
    if window_order not in WINDOW_ORDERS:
        raise IllegalArgument(f'window_order must be "position" or "official", not {window_order!r}.')
    if dim is None:
        return
    require_whole(dim=dim)
    require_divisor("heads", heads, f"the width of {dim}", dim)
    if stem_dim is not None and dim != 4 * stem_dim:
        raise IllegalArgument(
            f"stem_dim must be a quarter of the width of {dim}, that is {dim / 4:g}, not {stem_dim!r}."
        )


def check_atlas_depths(depths: Sequence[int], scales: int, size: str) -> None:
    """Raise IllegalArgument unless there is one number of blocks per scale.

    Arguments:
        depths: number of blocks of each scale.
        scales: number of scales.
        size: the image size, for the message.
    """
    require_whole_numbers("depths", depths)
    if len(depths) != scales:
        raise IllegalArgument(
            f"{size} need {scales} scales, so depths needs as many positive numbers, not {list(depths)}."
        )
