"""Families in Swin's layout whose windows span a stage's map: legal sizes, and the windows of a size."""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.resolution import AnyResolution, canonical
from longvis_bench.sizes.plan import (
    grids_of,
    is_number,
    is_whole,
    near_filled,
    require_divisor,
    require_fraction,
    require_multiple,
    require_whole,
    require_whole_numbers,
)

STAGES = 4
WHOLE = 0
"""A window that is the map, whatever its size."""
SOFTMAX_WINDOWS = (7, 8, 6, 9, 10, 5, 11, 12, 13, 14)
"""Windows tried for stages of softmax attention, which is quadratic in them."""


def maps_of(resolution: AnyResolution) -> list[tuple[int, int]]:
    """Rows and columns of tokens of each stage's map."""
    return grids_of(resolution, [4 * 2**stage for stage in range(STAGES)])


def windows_of(
    resolution: AnyResolution,
    family: str,
    attn_type: str,
    window_size: int | Sequence[int] | None,
    whole: str,
) -> list[int]:
    """Tokens per side of each stage's windows; `WHOLE` where they are to be the map.

    Arguments:
        resolution: pixels per side, or (height, width).
        family: for messages.
        attn_type: a letter per stage.
        window_size: asked for, of all stages or of each; None: the map in stages of linear attention, and 7
            or the next that divides the map in stages of softmax attention.
        whole: the letter of linear attention.

    Raises:
        IllegalSize: windows do not fill the map of a stage.
    """
    require_multiple(resolution, 32, family)
    maps = maps_of(resolution)
    if window_size is None:
        pairs = zip(maps, attn_type, strict=True)
        return [WHOLE if kind == whole else _softmax_window(grid) for grid, kind in pairs]
    asked = [window_size] * STAGES if isinstance(window_size, int) else list(window_size)
    for stage, (grid, window) in enumerate(zip(maps, asked, strict=True)):
        if window != WHOLE and not _fills(grid, window):
            why = f"{family}'s windows of {window} do not fill the map at stride {4 * 2**stage}"
            raise IllegalSize(canonical(resolution), why, near_filled(resolution, window * 32))
    return [min(max(grid), window) for grid, window in zip(maps, asked, strict=True)]


def described(resolution: AnyResolution, windows: Sequence[int]) -> str:
    """Windows of all stages in words; of a rectangle, a window that is the map has its shape."""
    pairs = zip(maps_of(resolution), windows, strict=True)
    inside = ", ".join(str(canonical(grid)) if window == WHOLE else str(window) for grid, window in pairs)
    return f"windows of {inside} tokens per side"


def _fills(grid: tuple[int, int], window: int) -> bool:
    """Whether windows fill the map; along a side within one, the window is cut to the side."""
    return all(side <= window or side % window == 0 for side in grid)


def _softmax_window(grid: tuple[int, int]) -> int:
    longest = max(grid)
    if longest <= max(SOFTMAX_WINDOWS[:2]):
        return longest
    return next((window for window in SOFTMAX_WINDOWS if _fills(grid, window)), longest)


def check_windowed(
    *,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    attn_type: str,
    letters: str,
    window_size: object = None,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make such a pyramid."""
    require_whole(embed_dim=embed_dim)
    for name, values in (("depths", depths), ("num_heads", num_heads)):
        require_whole_numbers(name, values, "(2, 2, 6, 2)")
        if len(values) != STAGES:
            raise IllegalArgument(f"{name} must be {STAGES} numbers, one per stage, not {list(values)}.")
    if not isinstance(attn_type, str) or len(attn_type) != STAGES or set(attn_type) - set(letters):
        raise IllegalArgument(
            f"attn_type must be {STAGES} letters of {letters}, one per stage, not {attn_type!r}."
        )
    if window_size is not None and not is_whole(window_size):
        given = [window or 1 for window in window_size] if isinstance(window_size, list) else window_size
        require_whole_numbers("window_size", given, "(56, 28, 14, 7)")
    for stage, heads in enumerate(num_heads):
        width = embed_dim * 2**stage
        require_divisor(f"num_heads of stage {stage + 1}", heads, f"its width of {width}", width)
    if not is_number(mlp_ratio) or mlp_ratio <= 0:
        raise IllegalArgument(f"mlp_ratio must be a positive number, not {mlp_ratio!r}.")
    require_fraction("drop_path_rate", drop_path_rate)
