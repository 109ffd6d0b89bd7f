"""FasterViT (Hatamizadeh et al., arXiv:2306.06189): convolutions, then windows joined by carrier tokens.

Four stages at strides 4, 8, 16 and 32.  Stages 1 and 2 are residual convolutions; stages 3 and 4 partition
the grid into windows whose tokens attend to each other.  In stage 3 each window also has `ct_size` squared
carrier tokens, which pooling makes (section 3.2, hierarchical attention):

    c = AvgPool(Conv(x))                                       carrier tokens of all windows
    c = c + g1 Attention(Norm(c)),  c = c + g2 MLP(Norm(c))    across the image
    [c, x] = [c, x] + g3 Attention(Norm([c, x])), then an MLP  within a window

so that windows exchange information at the price of attention among a few tokens.  Every attention has a
bias by relative position, and every block adds an embedding of the absolute position; both are small MLPs of
coordinates, so that weights do not depend on the size.  After stage 3, `do_propagation` adds the carrier
tokens, repeated to the size of their window, to its map.

The relative biases follow from a table of (2 side - 1)^2 rows.  Written out they are side^4 numbers per head:
24 GiB for the carrier tokens of FasterViT-4 at 4096 px with the published windows of 7.
`ops/relative_attention.py` writes them out for some queries at a time, in training again in the backward.

Names of parameters are those of the official weights.  Peculiarities of the authors' any-resolution code,
which this module reproduces:

- the bias of a pair with a carrier token is 0 within a window, while that of two tokens is 16 sigmoid(...):
  8 where the MLP gives 0.  So carrier tokens are at a disadvantage that training has to make up for.
- the grid is padded with zeros to whole windows, and padding is attended to like image tokens.
- carrier tokens are pooled with one stride, rounded down, and a kernel that takes up the rest.  If `ct_size`
  does not divide the window, kernels overlap and drift: with windows of 7 at 4096 px, 74 carrier tokens per
  side have stride 3 and kernel 40 on a grid of 259, so that most pool tokens of other windows.
- if one window covers stage 3 (up to 192 px by default), there are no carrier tokens; the convolution that
  would make them has parameters, but is not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.ops.feature_maps import stage_maps
from longvis_bench.ops.grad_checkpointing import Blocks, set_grad_checkpointing
from longvis_bench.ops.inplace_layers import GELU, BatchNorm2d
from longvis_bench.ops.relative_attention import biased_attention
from longvis_bench.ops.residual_convs import ConvResidual, Downsample, conv_stem, drop_path_rates
from longvis_bench.ops.windows import pad_to_whole, window_partition, window_reverse
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.fastervit import check_fastervit

if TYPE_CHECKING:
    from jaxtyping import Float

HIDDEN = 512
"""Width of the MLPs of positions."""
LARGEST_BIAS = 16
"""Relative biases are between 0 and this."""


class FasterViT(nn.Module):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width).  The model is built for it: with one window in
            stage 3 there are no carrier tokens.
        num_classes: logits.
        dim: channels of stage 1; each later stage has twice those of the one before.
        in_dim: channels after the stem's first convolution.
        depths: blocks of each of the four stages.
        num_heads: attention heads of each stage; stages 1 and 2 ignore theirs.
        window_size: tokens per window side of each stage, as `sizes.fastervit.plan` gives them for the size;
            stages 1 and 2 have no windows and ignore theirs.
        ct_size: carrier tokens per window side.
        mlp_ratio: hidden width of the MLPs over the block's width.
        layer_scale: first value of the scales of stages 3 and 4's residual branches; None: no scales.
        do_propagation: whether stage 3's last block adds its carrier tokens to the map.
        in_chans: channels of the image.
        drop_path: stochastic depth of the last block; grows linearly from 0 at the first.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    map_strides = (4, 8, 16, 32)
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        resolution: AnyResolution,
        num_classes: int,
        dim: int,
        in_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int],
        ct_size: int = 2,
        mlp_ratio: float = 4,
        layer_scale: float | None = None,
        do_propagation: bool = False,
        in_chans: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_fastervit(
            dim=dim,
            in_dim=in_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            ct_size=ct_size,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            do_propagation=do_propagation,
            in_chans=in_chans,
            drop_path=drop_path,
        )
        rates = drop_path_rates(drop_path, depths)
        windows = partial(WindowStage, ct_size=ct_size, mlp_ratio=mlp_ratio, layer_scale=layer_scale)
        grid = max(sides(resolution)) // 16
        self.patch_embed = Stem(in_chans, in_dim, dim)
        self.levels = nn.ModuleList(
            [
                ConvStage(dim, rates[0]),
                ConvStage(2 * dim, rates[1]),
                windows(
                    4 * dim,
                    num_heads[2],
                    window_size[2],
                    drop_rates=rates[2],
                    tokenizer=True,
                    hierarchical=grid > window_size[2],
                    do_propagation=do_propagation,
                    downsample=Downsample(4 * dim),
                ),
                windows(8 * dim, num_heads[3], window_size[3], drop_rates=rates[3]),
            ]
        )
        self.norm = BatchNorm2d(8 * dim)
        self.head = nn.Linear(8 * dim, num_classes)
        self.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep only the blocks' inputs, and recompute the rest in the backward pass."""
        set_grad_checkpointing(self, enable)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised map (batch, 8 dim, height/32, width/32)."""
        x: Tensor = self.patch_embed(image)
        for level in self.levels:
            x = level(x)
        out: Tensor = self.norm(x)
        return out

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, channels, height, width) of each stage."""
        return stage_maps(self.patch_embed(image), self.levels)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (batch, 8 dim, height/32, width/32) -> logits (batch, classes), or its mean (batch, 8 dim)."""
        pooled = features.mean((2, 3))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(
        self,
        image: Float[Tensor, "batch channels height width"],  # noqa: F722
    ) -> Float[Tensor, "batch classes"]:  # noqa: F722
        """Logits of a batch of images."""
        return self.forward_head(self.forward_features(image))


class Stem(nn.Module):
    """(batch, in_chans, H, W) -> (batch, dim, H/4, W/4)."""

    def __init__(self, in_chans: int, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv_down = conv_stem(in_chans, in_dim, dim)

    def forward(self, image: Tensor) -> Tensor:
        """Image -> map."""
        out: Tensor = self.conv_down(image)
        return out


class ConvStage(nn.Module):
    """Stages 1 and 2: residual convolutions, and the step to the next stage."""

    def __init__(self, width: int, drop_rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = Blocks(*[ConvResidual(width, rate) for rate in drop_rates])
        self.downsample = Downsample(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> (batch, 2 width, half, half)."""
        out: Tensor = self.downsample(self.blocks(x))
        return out


class Tokens(NamedTuple):
    """What blocks of stages 3 and 4 pass on."""

    windows: Tensor
    """(batch * windows, window squared, width)."""
    carriers: Tensor | None
    """The grid of carrier tokens (batch, rows, columns, width); None without carrier tokens."""


class WindowStage(nn.Module):
    """Stages 3 and 4: the grid in windows, and stage 3's step to stage 4.

    Arguments:
        width: channels.
        heads: of the attention.
        window: tokens per window side.
        ct_size: carrier tokens per window side.
        mlp_ratio: hidden width of the MLPs over the width.
        layer_scale: first value of the branches' scales; None: no scales.
        drop_rates: stochastic depth of each block.
        tokenizer: whether the stage has the layer that makes carrier tokens.
        hierarchical: whether it has carrier tokens, which takes more than one window.
        do_propagation: whether the last block adds them to the map.
        downsample: what follows the blocks.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        *,
        ct_size: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_rates: Sequence[float],
        tokenizer: bool = False,
        hierarchical: bool = False,
        do_propagation: bool = False,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.window = window
        self.hierarchical = hierarchical
        block = partial(HierarchicalBlock, ct_size=ct_size) if hierarchical else WindowBlock
        self.blocks = Blocks(*[block(width, heads, window, mlp_ratio, layer_scale, r) for r in drop_rates])
        last = self.blocks[-1]
        if isinstance(last, HierarchicalBlock):
            last.propagates = do_propagation
        self.downsample = nn.Identity() if downsample is None else downsample
        if tokenizer:
            self.global_tokenizer = CarrierTokens(width, window, ct_size)

    def mix(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same: the blocks alone."""
        height, width = x.shape[2:]
        grid = pad_to_whole(x.permute(0, 2, 3, 1), self.window)
        counts = (grid.shape[1] // self.window, grid.shape[2] // self.window)
        carriers = self.global_tokenizer(grid, counts) if self.hierarchical else None
        tokens = self.blocks(Tokens(window_partition(grid, counts), carriers)).windows
        grid = window_reverse(tokens, counts, (self.window, self.window))
        return grid[:, :height, :width].permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same, or what `downsample` makes of it."""
        out: Tensor = self.downsample(self.mix(x))
        return out


class CarrierTokens(nn.Module):
    """Carrier tokens of a map: a convolution per channel, then a mean over parts of a window."""

    def __init__(self, width: int, window: int, ct_size: int) -> None:
        super().__init__()
        self.window = window
        self.ct_size = ct_size
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, grid: Tensor, counts: tuple[int, int]) -> Tensor:
        """(batch, rows window, columns window, width) -> (batch, rows ct_size, columns ct_size, width)."""
        strides, kernels = [], []
        for count in counts:
            side, pooled = count * self.window, count * self.ct_size
            strides.append(side // pooled)
            kernels.append(side - (pooled - 1) * strides[-1])
        convolved = self.pos_embed(grid.permute(0, 3, 1, 2))
        return F.avg_pool2d(convolved, kernels, strides).permute(0, 2, 3, 1)


class WindowBlock(nn.Module):
    """Attention within windows, then an MLP, each with an optional layer scale."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window = window
        self.pos_embed = AbsolutePosition(width)
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)
        self.gamma3 = _scale(width, layer_scale)
        self.gamma4 = _scale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tokens) -> Tokens:
        """Windows (windows, window squared, width), no carrier tokens -> the same."""
        return Tokens(self.within(tokens.windows + self.pos_embed(self.window, tokens.windows)), None)

    def within(self, x: Tensor, carriers: int = 0) -> Tensor:
        """(windows, carriers + window squared, width) -> the same; the first `carriers` tokens are such."""
        attended = self.attn(self.norm1(x), self.window, carriers)
        x = x + self.drop_path(_scaled(attended, self.gamma3))
        out: Tensor = x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.gamma4))
        return out


class HierarchicalBlock(WindowBlock):
    """Attention among all carrier tokens, then within windows together with them."""

    propagates = False
    """Whether the block adds its carrier tokens to the windows at its end."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        *,
        ct_size: int,
    ) -> None:
        super().__init__(width, heads, window, mlp_ratio, layer_scale, drop_path)
        self.ct_size = ct_size
        self.hat_pos_embed = AbsolutePosition(width)
        self.hat_norm1 = nn.LayerNorm(width)
        self.hat_attn = Attention(width, heads)
        self.hat_norm2 = nn.LayerNorm(width)
        self.hat_mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)
        self.gamma1 = _scale(width, layer_scale)
        self.gamma2 = _scale(width, layer_scale)

    def forward(self, tokens: Tokens) -> Tokens:
        """Windows (windows, window squared, width) and the grid of carrier tokens -> the same."""
        assert tokens.carriers is not None
        grid = self.across(tokens.carriers)
        counts = (grid.shape[1] // self.ct_size, grid.shape[2] // self.ct_size)
        carriers = window_partition(grid, counts)
        own = carriers.shape[1]
        windows = tokens.windows + self.pos_embed(self.window, tokens.windows)
        both = self.within(torch.cat((carriers, windows), dim=1), own)
        carriers, windows = both[:, :own], both[:, own:]
        if self.propagates:
            windows = windows + _scaled(self._repeated(carriers), self.gamma1)
        return Tokens(windows, window_reverse(carriers, counts, (self.ct_size, self.ct_size)))

    def across(self, grid: Tensor) -> Tensor:
        """Carrier tokens of all windows attend to each other: (batch, rows, columns, width) -> the same."""
        size = (grid.shape[1], grid.shape[2])
        x = grid.flatten(1, 2)
        x = x + self.hat_pos_embed(size, x)
        x = x + self.drop_path(_scaled(self.hat_attn(self.hat_norm1(x), size), self.gamma1))
        x = x + self.drop_path(_scaled(self.hat_mlp(self.hat_norm2(x)), self.gamma2))
        out: Tensor = torch.unflatten(x, 1, size)
        return out

    def _repeated(self, carriers: Tensor) -> Tensor:
        """(windows, ct_size squared, width) -> (windows, window squared, width), each token's nearest."""
        maps: Tensor = torch.unflatten(carriers.mT, 2, (self.ct_size, self.ct_size))
        return F.interpolate(maps, (self.window, self.window)).flatten(2).mT


class AbsolutePosition(nn.Module):
    """An embedding of the position in a grid, an MLP of its coordinates from -1 to about 1 per side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cpb_mlp = _position_mlp(width)

    def forward(self, size: int | tuple[int, int], like: Tensor) -> Tensor:
        """(rows x columns, width), in raster order, on the device of `like`."""
        dtype = next(self.cpb_mlp.parameters()).dtype
        halves = [(side, max(side // 2, 1)) for side in sides(size)]
        rows, columns = (
            (torch.arange(side, dtype=dtype, device=like.device) - half) / half for side, half in halves
        )
        return _of_coordinates(self.cpb_mlp, rows, columns).flatten(0, 1)


class RelativePosition(nn.Module):
    """Biases of an attention by relative position, an MLP of logarithmic coordinates (Swin v2)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.cpb_mlp = _position_mlp(heads)

    def forward(self, size: int | tuple[int, int], like: Tensor) -> Tensor:
        """The table (heads, 2 rows - 1, 2 columns - 1): bias by query's minus key's row and column."""
        rows, columns = (_logarithmic(side, like.device) for side in sides(size))
        table = LARGEST_BIAS * torch.sigmoid(_of_coordinates(self.cpb_mlp, rows, columns))
        return table.to(like.dtype).permute(2, 0, 1)


class Attention(nn.Module):
    """Softmax(Q K^T / sqrt(d) + bias) V over the tokens of a grid, and carrier tokens before them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.pos_emb_funct = RelativePosition(heads)

    def forward(self, tokens: Tensor, size: int | tuple[int, int], carriers: int = 0) -> Tensor:
        """(batch, carriers + rows x columns, width) -> the same."""
        q, k, v = torch.unflatten(self.qkv(tokens), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = biased_attention(q, k, v, self.pos_emb_funct(size, q), carriers)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


def _position_mlp(out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, out, bias=False))


def _logarithmic(side: int, device: torch.device) -> Tensor:
    """Swin v2's coordinates of all distances along a side: (2 side - 1)."""
    apart = 8 * torch.arange(1 - side, side, device=device) / max(side - 1, 1)
    return apart.sign() * torch.log2(apart.abs() + 1) / math.log2(8)


def _of_coordinates(mlp: nn.Sequential, rows: Tensor, columns: Tensor) -> Tensor:
    """An MLP of all pairs (row, column) of coordinates: (n), (m) -> (n, m, outputs)."""
    size = (len(rows), len(columns))
    pairs = torch.stack((rows[:, None].expand(size), columns[None, :].expand(size)), dim=-1)
    out: Tensor = mlp(pairs.to(next(mlp.parameters()).dtype))
    return out


def _scale(width: int, first: float | None) -> nn.Parameter | None:
    return None if first is None else nn.Parameter(first * torch.ones(width))


def _scaled(x: Tensor, gamma: nn.Parameter | None) -> Tensor:
    return x if gamma is None else gamma * x


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


DERIVED = ("relative_coords_table", "relative_position_index", "relative_bias")
"""Buffers of the official weights that follow from the other tensors and the size."""
ALIAS = "global_tokenizer.to_global_feature.pos."
"""A second name under which the official weights hold `global_tokenizer.pos_embed`."""


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Drop from the authors' FasterViT weights what this module does not store, like timm's functions.

    Arguments:
        state_dict: tensors by name; tensors without the authors' names are returned unchanged.
        model: unused; part of timm's signature.

    Returns:
        Tensors by this module's names, which are the authors'.
    """
    if not any(name.endswith("attn.pos_emb_funct.cpb_mlp.0.weight") for name in state_dict):
        return dict(state_dict)
    return {name: value for name, value in state_dict.items() if not is_derived(name)}


def is_derived(name: str) -> bool:
    """Whether official weights hold a tensor besides those of this module."""
    return name.endswith(DERIVED) or ALIAS in name
