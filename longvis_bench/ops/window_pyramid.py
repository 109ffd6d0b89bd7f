"""Swin's layout (arXiv:2103.14030), for families that put another attention into its blocks.

Four stages at strides 4, 8, 16 and 32.  A block cuts its map into windows, shifted by half a window in every
second block, and gives each window to its mixer; names are those of Swin's checkpoints.  Maps are
(batch, height, width, channels), windows (batch, windows, tokens, channels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.ops.grad_checkpointing import Blocks
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.ops.windows import window_partition, window_reverse
from longvis_bench.resolution import sides

MASKED = -100.0
"""Added to the scores of tokens that only the cyclic shift made neighbours, as in Swin."""


class Frame(NamedTuple):
    """How a block cuts its map."""

    grid: tuple[int, int]
    """Rows and columns of tokens of the map."""
    window: tuple[int, int]
    """Rows and columns of a window."""
    shift: tuple[int, int]
    """Tokens by which the map is rolled before it is cut, up and to the left."""

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return self.grid[0] // self.window[0], self.grid[1] // self.window[1]


def frames(grid: tuple[int, int], window: int, depth: int) -> list[Frame]:
    """Of a stage's blocks: windows no larger than the map, or as large (0), shifted in turns if several.

    Along a side with one window nothing is shifted.
    """
    rows, columns = (min(window, side) or side for side in grid)
    down, across = (
        inside // 2 if inside < side else 0 for inside, side in zip((rows, columns), grid, strict=True)
    )
    return [Frame(grid, (rows, columns), (down, across) if i % 2 else (0, 0)) for i in range(depth)]


class Embedding(nn.Module):
    """Patches of 4 x 4 pixels."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_chans, height, width) -> (batch, height/4, width/4, width)."""
        out: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return out


class Merging(nn.Module):
    """Four neighbours as one token of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> (batch, half, half, 2 width)."""
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return out


class Stage(nn.Module):
    """Blocks, then the merging before the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = Blocks(*blocks)
        self.downsample = nn.Identity() if downsample is None else downsample

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the next stage's map."""
        out: Tensor = self.downsample(self.blocks(x))
        return out


class WindowBlock(nn.Module):
    """x' = x + Mixer(norm(x)) in windows; x'' = x' + MLP(norm(x')).

    Arguments:
        width: channels of the tokens.
        mixer: (batch, windows, tokens, width) and a mask or None -> the same shape.
        frame: how the map is cut.
        mlp_ratio: hidden width of the MLP over `width`.
        drop_path: stochastic depth.
    """

    def __init__(
        self, width: int, mixer: nn.Module, frame: Frame, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.frame = frame
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = mixer
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        x = x + self.drop_path(mix_windows(self.norm1(x), self.attn, self.frame))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


def mix_windows(x: Tensor, mixer: nn.Module, frame: Frame) -> Tensor:
    """Cut a map into windows, mix the tokens of each, and join them.

    Arguments:
        x: (batch, height, width of map, width).
        mixer: (batch, windows, tokens, width) and a mask or None -> the same shape.
        frame: how the map is cut.

    Returns:
        The shape of `x`.
    """
    down, across = frame.shift
    is_shifted = any(frame.shift)
    rolled = x.roll((-down, -across), (1, 2)) if is_shifted else x
    windows = torch.unflatten(window_partition(rolled, frame.counts), 0, (len(x), -1))
    mixed = mixer(windows, shift_mask(frame, x) if is_shifted else None).flatten(0, 1)
    grid = window_reverse(mixed, frame.counts, frame.window)
    return grid.roll((down, across), (1, 2)) if is_shifted else grid


def shift_mask(frame: Frame, like: Tensor) -> Tensor:
    """What is added to scores within shifted windows (windows, 1, tokens, tokens): 0 or `MASKED`."""
    rows, columns = (
        _parts(*axis, like.device) for axis in zip(frame.grid, frame.window, frame.shift, strict=True)
    )
    inside = window_partition((3 * rows[:, None] + columns[None, :])[None, ..., None], frame.counts)
    apart = inside != inside.mT
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, MASKED)[:, None]


def _parts(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Of each row or column of a rolled map, a number that neighbours share (side)."""
    position = torch.arange(side, device=device)
    return (position >= side - window).long() + (position >= side - shift).long()


class WindowAttention(nn.Module):
    """Softmax attention within windows, with a table of biases: Swin's.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
        window: tokens of a window, (rows, columns), or of each side.
    """

    def __init__(self, width: int, heads: int, window: int | tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, sides(window)
        distances = math.prod(2 * side - 1 for side in self.window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, windows, tokens, width) and a mask (windows, 1, tokens, tokens) or None -> the same."""
        q, k, v = heads_of(self.qkv(windows), self.heads, 3)
        bias = self._bias()
        if mask is None:
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        else:
            q, k, v = (t.flatten(1, 2) for t in (q, k, v))
            bias = (bias + mask).flatten(0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.proj(
            mixed.view(*windows.shape[:2], self.heads, -1, v.shape[-1]).transpose(2, 3).flatten(3)
        )
        return out

    def _bias(self) -> Tensor:
        """(1, heads, tokens, tokens)."""
        table = self.relative_position_bias_table
        rows, columns = (_apart(side, table.device) for side in self.window)
        index = rows[:, None, :, None] * (2 * self.window[1] - 1) + columns[None, :, None, :]
        tokens = math.prod(self.window)
        return table[index.reshape(tokens, tokens)].permute(2, 0, 1)[None]


def _apart(side: int, device: torch.device) -> Tensor:
    """Distances of positions i and j, from 0: (side, side)."""
    position = torch.arange(side, device=device)
    return position[:, None] - position[None, :] + side - 1


def heads_of(tokens: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """(batch, windows, tokens, parts x width) -> parts of (batch, windows, heads, tokens, d)."""
    return torch.unflatten(tokens, 3, (parts, heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()


def initialise(module: nn.Module) -> None:
    """Swin's first values of the linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
