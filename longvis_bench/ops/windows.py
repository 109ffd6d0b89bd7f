"""Partition a grid of tokens into windows, and reverse it.

Every backbone uses one layout: a grid is (batch, height, width, channels); its windows are
(batch * rows * columns, tokens, channels), ordered by image, then by window in raster order; the tokens of a
window are in raster order as well.  Windows do not overlap and are not shifted.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def window_partition(grid: Tensor, windows: tuple[int, int]) -> Tensor:
    """Partition a grid into windows.

    Arguments:
        grid: (batch, height, width, channels); rows divide the height and columns the width.
        windows: windows per side (rows, columns).

    Returns:
        (batch * rows * columns, tokens per window, channels); a view where no data has to move.
    """
    batch, height, width, channels = grid.shape
    rows, columns = windows
    cells = grid.reshape(batch, rows, height // rows, columns, width // columns, channels)
    return cells.transpose(2, 3).reshape(batch * rows * columns, -1, channels)


def window_reverse(tokens: Tensor, windows: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Assemble a grid from its windows: the inverse of `window_partition`.

    Arguments:
        tokens: (batch * rows * columns, height * width per window, channels).
        windows: windows per side (rows, columns).
        window: tokens per side of a window (height, width).

    Returns:
        The grid (batch, rows * height, columns * width, channels).
    """
    rows, columns = windows
    height, width = window
    channels = tokens.shape[-1]
    cells = tokens.reshape(-1, rows, columns, height, width, channels).transpose(2, 3)
    return cells.reshape(-1, rows * height, columns * width, channels)


def pad_to_whole(grid: Tensor, window: int) -> Tensor:
    """Pad a grid (batch, height, width, channels) with zeros at the bottom and right to whole windows."""
    below, right = (-grid.shape[1] % window, -grid.shape[2] % window)
    return F.pad(grid, (0, 0, 0, right, 0, below)) if below or right else grid
