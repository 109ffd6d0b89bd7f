"""Token mixers: the attention, scan or convolution of each backbone as a module on a grid of tokens.

Each factory takes `dim`, `heads` and `grid` (rows, columns), and returns a module from
(batch, rows, columns, dim) to the same; `models/mixers/mixers.toml` names them.  They adapt layouts: what
mixes tokens is the backbones' own module, or timm's.  Those that alternate between two forms from block to
block are told the number of the block.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers.halo_attn import HaloAttn
from timm.models.focalnet import FocalModulation
from timm.models.maxxvit import (
    AttentionCl,
    MaxxVitTransformerCfg,
    get_rel_pos_cls,
    grid_partition,
    grid_reverse,
    window_partition,
    window_reverse,
)
from timm.models.xcit import XCA
from torch import Tensor, nn

from longvis_bench.backbones.agent import AgentAttention
from longvis_bench.backbones.atlas import MultiScaleBlock, pyramid
from longvis_bench.backbones.biformer import RoutedAttention
from longvis_bench.backbones.crossformer import GroupAttention
from longvis_bench.backbones.dinat import NeighbourhoodAttention
from longvis_bench.backbones.fastervit import WindowStage
from longvis_bench.backbones.inline import InLineAttention
from longvis_bench.backbones.longvit import DilatedAttention
from longvis_bench.backbones.mambavision import MambaMixer, SelfAttention
from longvis_bench.backbones.mila import GatedAttention
from longvis_bench.backbones.vim import BiMamba
from longvis_bench.backbones.vmamba import SS2D
from longvis_bench.ops.window_pyramid import Frame, WindowAttention, frames, mix_windows
from longvis_bench.ops.windows import window_reverse as join_windows
from longvis_bench.sizes.atlas import atlas_scales
from longvis_bench.sizes.windowed import WHOLE

Grid = tuple[int, int]
FOCAL_WINDOW, FOCAL_LEVELS = 3, 3
"""Of FocalNets with a large receptive field."""
STATES = 16
"""Numbers of state per channel of Vim's scans."""
CARRIERS = 2
"""Carrier tokens per window side."""


class OnTokens(nn.Module):
    """A mixer of sequences (batch, tokens, dim), in raster order."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> the same."""
        out: Tensor = self.mixer(x.flatten(1, 2)).reshape(x.shape)
        return out


class OnMap(nn.Module):
    """A mixer of maps with channels first."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> the same."""
        out: Tensor = self.mixer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class InWindows(nn.Module):
    """A mixer of windows (batch, windows, tokens, dim), with a mask where they are shifted."""

    def __init__(self, mixer: nn.Module, frame: Frame) -> None:
        super().__init__()
        self.mixer = mixer
        self.frame = frame

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> the same."""
        return mix_windows(x, self.mixer, self.frame)


def none(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """Nothing: what the network costs without mixers."""
    return nn.Identity()


def full(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """Softmax attention over all tokens."""
    return OnTokens(SelfAttention(dim, heads))


def window(*, dim: int, heads: int, grid: Grid, window: int) -> nn.Module:
    """Swin's attention in windows."""
    (frame,) = frames(grid, window, 1)
    return InWindows(WindowAttention(dim, heads, frame.window), frame)


def shifted_window(*, dim: int, heads: int, grid: Grid, block: int = 0, window: int) -> nn.Module:
    """Swin's, in windows that are shifted by half a window in blocks 0, 2, 4, ..."""
    frame = frames(grid, window, 2)[1 - block % 2]
    return InWindows(WindowAttention(dim, heads, frame.window), frame)


def dilated(*, dim: int, heads: int, grid: Grid, segments: Sequence[int], ratios: Sequence[int]) -> nn.Module:
    """LongNet's dilated attention, with LongViT's norm before the output projection."""
    return OnTokens(DilatedAttention(dim, heads, segments, ratios))


def carrier_tokens(
    *, dim: int, heads: int, grid: Grid, window: int, carriers: int = CARRIERS, mlp_ratio: float
) -> nn.Module:
    """FasterViT's block, whole: attention among the windows' carrier tokens, then within windows."""
    return OnMap(
        WindowStage(
            dim,
            heads,
            window,
            ct_size=carriers,
            mlp_ratio=mlp_ratio,
            layer_scale=None,
            drop_rates=[0.0],
            tokenizer=True,
            hierarchical=True,
        )
    )


def mambavision(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """MambaVision's mixer, over all tokens in raster order."""
    return OnTokens(MambaMixer(dim))


class MultiScale(nn.Module):
    """Atlas's block, whole, on scales that are pooled from the grid; its finest scale is the result.

    Arguments:
        dim: channels of a token.
        heads: of the attention.
        grid: rows and columns.
        window: tokens per side of a window.
        stride: pooling between scales.
    """

    def __init__(self, *, dim: int, heads: int, grid: Grid, window: int, stride: int) -> None:
        super().__init__()
        self.scales, self.stride = atlas_scales(*grid, window=window, stride=stride), stride
        self.block = MultiScaleBlock(self.scales, dim, heads, stride, 0.0, "position")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> the same."""
        tokens = self.block(pyramid(x.permute(0, 3, 1, 2), self.scales, self.stride))
        return join_windows(tokens[0], *self.scales[0])


def neighbourhood(
    *, dim: int, heads: int, grid: Grid, block: int = 0, kernel: int, dilation: int, dilated: bool = False
) -> nn.Module:
    """Neighbourhood attention; dilated in blocks 0, 2, 4, ... if asked."""
    return NeighbourhoodAttention(dim, heads, kernel, dilation if block % 2 == 0 else 1)


class BlockOrGrid(nn.Module):
    """MaxViT's attention: in windows in blocks 0, 2, 4, ..., else among tokens spread evenly over the grid.

    Arguments:
        dim: channels of a token.
        heads: of the attention.
        grid: rows and columns.
        block: number of the block.
        window: tokens per side of a window, and of the spread tokens.
    """

    def __init__(self, *, dim: int, heads: int, grid: Grid, block: int = 0, window: int) -> None:
        super().__init__()
        self.sides, self.spread = [window, window], block % 2 == 1
        config = MaxxVitTransformerCfg(window_size=(window, window))
        self.attn = AttentionCl(
            dim, dim, dim_head=dim // heads, rel_pos_cls=get_rel_pos_cls(config, (window, window))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> the same."""
        cut, join = (grid_partition, grid_reverse) if self.spread else (window_partition, window_reverse)
        out: Tensor = join(self.attn(cut(x, self.sides)), self.sides, x.shape[1:3])
        return out


def halo(*, dim: int, heads: int, grid: Grid, window: int, halo: int) -> nn.Module:
    """HaloNet's attention: queries of a block of `window` tokens per side see `halo` tokens around it."""
    return OnMap(HaloAttn(dim, num_heads=heads, block_size=window, halo_size=halo))


def bi_level(*, dim: int, heads: int, grid: Grid, regions: int, topk: int, kernel: int = 5) -> nn.Module:
    """BiFormer's routed attention."""
    return RoutedAttention(dim, heads, regions, topk, kernel, False)


def long_short(*, dim: int, heads: int, grid: Grid, block: int = 0, group: int, interval: int) -> nn.Module:
    """CrossFormer's attention: groups of neighbours in blocks 0, 2, 4, ..., else of tokens far apart."""
    return GroupAttention(dim, heads, group, interval if block % 2 else 1)


def agent(*, dim: int, heads: int, grid: Grid, agents: int) -> nn.Module:
    """Agent attention with the grid as one window."""
    (frame,) = frames(grid, WHOLE, 1)
    return InWindows(AgentAttention(dim, heads, frame.window, agents), frame)


def inline(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """InLine attention with the grid as one window."""
    (frame,) = frames(grid, WHOLE, 1)
    return InWindows(InLineAttention(dim, heads, frame.window), frame)


def linear(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """MILA's gated linear attention."""
    return GatedAttention(dim, heads)


def ss2d(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """VMamba's scans in four directions, as in its v05_noz with one number of state."""
    mixer = SS2D(dim, 1, 1.0, 3, False, "v05_noz")
    mixer.reset_steps()
    for layer in (mixer.in_proj, mixer.out_proj):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    return OnMap(mixer)


def bidirectional_scan(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """Vim's scan of the tokens in raster order, from both ends."""
    mixer = BiMamba(dim, STATES, halve=True)
    mixer.reset(1)
    return OnTokens(mixer)


def focal(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """FocalNet's modulation."""
    return OnMap(FocalModulation(dim, FOCAL_WINDOW, FOCAL_LEVELS))


class Axial(nn.Module):
    """Softmax attention along each row, then along each column (arXiv:1912.12180).

    Arguments:
        dim: channels of a token.
        heads: of the attention.
        grid: rows and columns.
    """

    def __init__(self, *, dim: int, heads: int, grid: Grid) -> None:
        super().__init__()
        self.along_rows, self.along_columns = SelfAttention(dim, heads), SelfAttention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> the same."""
        rows = self.along_rows(x.flatten(0, 1)).view(x.shape)
        columns = rows.transpose(1, 2)
        out: Tensor = self.along_columns(columns.flatten(0, 1)).reshape(columns.shape).transpose(1, 2)
        return out


def channel(*, dim: int, heads: int, grid: Grid) -> nn.Module:
    """XCiT's attention between the channels of each head."""
    return OnTokens(XCA(dim, num_heads=heads, qkv_bias=True))
