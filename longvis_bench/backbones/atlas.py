"""Atlas (Agrawal et al., arXiv:2503.12355): window attention at several scales and between scales.

A convolutional stem makes a map of one token per 16 px.  Scale 1 is that map, scale s + 1 is scale s
max-pooled by `stride` on each side, until one window covers it: O(log N) scales of N tokens.  Each scale
is partitioned into windows of `window` x `window` tokens.  One block of multi-scale attention (MSA) does, in
order,

1. add to each scale a position embedding, the same in every window;
2. bottom up, add to each scale the max-pooled scale below it;
3. top down from the coarsest: each window attends to itself and to the windows of all coarser scales that
   contain it (equation 2), then goes through an MLP;
4. bottom up: each token of a coarse scale attends to the window of the finer scale that lies under it, then
   goes through the coarse scale's MLP again.

Stage i runs its blocks on scales i and coarser, then drops the finest; the last stage has one scale, whose
tokens are normalised, averaged and classified.

Peculiarities:

- in step 3, the authors' code pairs fine window i with coarse window i // n, both in raster order.  With
  three or more scales, that coarse window does not always contain the fine one: at 2048 px half of the fine
  windows, at 4096 px three quarters attend to another part of the image.  This module pairs windows by
  position, as in the paper; `window_order="official"` pairs them like the authors, as their weights need.
- stochastic depth drops windows, not images.
- keys and values are computed with the weights of their scale, queries and output with those of the
  attending scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from longvis_bench.ops.grad_checkpointing import Blocks, set_grad_checkpointing
from longvis_bench.ops.inplace_layers import GELU, BatchNorm2d
from longvis_bench.ops.residual_convs import ConvResidual
from longvis_bench.ops.windows import window_partition, window_reverse
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.atlas import ATLAS_PATCH, Scale, check_atlas, check_atlas_depths, require_atlas

if TYPE_CHECKING:
    from jaxtyping import Float

WindowOrder = Literal["position", "official"]


class Atlas(nn.Module):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width).
        num_classes: logits.
        dim: channels of a token.
        heads: attention heads; must divide `dim`.
        stem_dim: channels at stride 4 in the stem; a quarter of `dim`.
        depths: blocks of each stage, one stage per scale; `sizes.atlas.plan` gives the paper's 12 by size.
        window: tokens per window side.
        stride: pooling between scales, per side; must divide `window`.
        in_chans: channels of the image.
        drop_path: stochastic depth of the last block of each stage; grows linearly from 0 at its first.
        window_order: which coarse window a fine one attends to: see the module's docstring.

    Raises:
        IllegalSize: some scale does not divide into windows.
        IllegalArgument: the arguments do not fit together.
    """

    head_modules = ("readout_norm", "head_norm", "head")

    def __init__(
        self,
        *,
        resolution: AnyResolution,
        num_classes: int,
        dim: int,
        heads: int,
        stem_dim: int,
        depths: Sequence[int],
        window: int = 16,
        stride: int = 4,
        in_chans: int = 3,
        drop_path: float = 0.0,
        window_order: WindowOrder = "position",
    ) -> None:
        super().__init__()
        check_atlas(
            dim=dim,
            heads=heads,
            stem_dim=stem_dim,
            window=window,
            stride=stride,
            window_order=window_order,
            drop_path=drop_path,
            in_chans=in_chans,
        )
        self.size = sides(resolution)
        self.stride = stride
        self.scales = require_atlas(*self.size, window=window, stride=stride)
        check_atlas_depths(depths, len(self.scales), f"{self.size[0]} x {self.size[1]} px")
        self.stem = Stem(in_chans, stem_dim)
        self.stages = nn.ModuleList(
            [
                Stage(self.scales[i:], depth, dim, heads, stride, drop_path, window_order)
                for i, depth in enumerate(depths)
            ]
        )
        self.readout_norm = nn.LayerNorm(dim)
        self.head_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep only the blocks' inputs, and recompute the rest in the backward pass."""
        set_grad_checkpointing(self, enable)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised coarsest tokens (batch, tokens, dim).

        Raises:
            ValueError: the image is of another size than the model was built for.
        """
        self._check_size(image)
        scales = pyramid(self.stem(image), self.scales, self.stride)
        for i, stage in enumerate(self.stages):
            scales = stage(scales[i > 0 :])
        out: Tensor = self.readout_norm(scales[0])
        return out

    def _check_size(self, image: Tensor) -> None:
        if image.shape[-2:] != self.size:
            wanted, got = (f"{h} x {w}" for h, w in (self.size, image.shape[-2:]))
            raise ValueError(
                f"this Atlas was built for images of {wanted} px, not {got}; build it for that size."
            )

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides of the maps, in pixels: of each scale."""
        return tuple(ATLAS_PATCH * self.stride**i for i in range(len(self.scales)))

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, dim, height, width) of each scale.

        A scale's map is what the last stage that has the scale gives.

        Raises:
            ValueError: the image is of another size than the model was built for.
        """
        self._check_size(image)
        scales, maps = pyramid(self.stem(image), self.scales, self.stride), []
        for i, (stage, scale) in enumerate(zip(self.stages, self.scales, strict=True)):
            scales = stage(scales[i > 0 :])
            maps.append(window_reverse(scales[0], scale.windows, scale.window).permute(0, 3, 1, 2))
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (batch, tokens, dim) -> logits (batch, classes), or the head's input (batch, dim)."""
        pooled: Tensor = self.head_norm(features.mean(1))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(
        self,
        image: Float[Tensor, "batch channels height width"],  # noqa: F722
    ) -> Float[Tensor, "batch classes"]:  # noqa: F722
        """Logits of a batch of images."""
        return self.forward_head(self.forward_features(image))


def pyramid(grid: Tensor, scales: Sequence[Scale], stride: int) -> list[Tensor]:
    """Map of the finest scale (batch, dim, height, width) -> windows of each scale, finest first."""
    grids = [grid]
    for _ in scales[1:]:
        grids.append(F.max_pool2d(grids[-1], stride))
    return [
        window_partition(grid.permute(0, 2, 3, 1), scale.windows)
        for grid, scale in zip(grids, scales, strict=True)
    ]


class Stem(nn.Sequential):
    """Convolutions to stride 16: (batch, in_chans, H, W) -> (batch, 4 width, H / 16, W / 16)."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, 64, 3, stride=2, padding=1, bias=False),
            BatchNorm2d(64, eps=1e-4),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, width, 3, stride=2, padding=1, bias=False),
            BatchNorm2d(width, eps=1e-4),
            nn.ReLU(inplace=True),
            *[ConvResidual(width) for _ in range(3)],
            ConvDownsample(width),
            *[ConvResidual(2 * width) for _ in range(3)],
            ConvDownsample(2 * width),
        )


class ConvDownsample(nn.Module):
    """Norm over channels, then a convolution of stride 2 that doubles them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> (batch, 2 width, half, half)."""
        out: Tensor = self.conv(self.norm(x))
        return out


class Stage(nn.Module):
    """MSA blocks on the remaining scales."""

    def __init__(
        self,
        scales: Sequence[Scale],
        depth: int,
        dim: int,
        heads: int,
        stride: int,
        drop_path: float,
        window_order: WindowOrder,
    ) -> None:
        super().__init__()
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = Blocks(
            *[MultiScaleBlock(scales, dim, heads, stride, rate, window_order) for rate in rates]
        )

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Windows of each scale, finest first -> the same."""
        out: list[Tensor] = self.blocks(tokens)
        return out


class MultiScaleBlock(nn.Module):
    """One block of multi-scale attention, in the four steps of the module's docstring.

    Tokens of scale s are (batch * windows of s, tokens of a window, dim) throughout.
    """

    def __init__(
        self,
        scales: Sequence[Scale],
        dim: int,
        heads: int,
        stride: int,
        drop_path: float,
        window_order: WindowOrder,
    ) -> None:
        super().__init__()
        self.layout = list(scales)
        self.stride = stride
        self.window_order = window_order
        self.positions = nn.ModuleList([WindowPosition(dim, scale.window) for scale in scales])
        self.scales = nn.ModuleList([ScaleAttention(dim, heads, drop_path) for _ in scales])

    def attention(self, s: int) -> ScaleAttention:
        """The weights of scale s."""
        module = self.scales[s]
        assert isinstance(module, ScaleAttention)
        return module

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Windows of each scale, finest first -> the same."""
        tokens = [x + position() for x, position in zip(tokens, self.positions, strict=True)]
        for s in range(len(tokens) - 1):
            tokens[s + 1] = tokens[s + 1] + self.pool(tokens[s], s)
        contexts = self.top_down(tokens)
        self.bottom_up(tokens, contexts)
        return tokens

    def pool(self, tokens: Tensor, s: int) -> Tensor:
        """Step 2: max-pool the windows of scale s into those of scale s + 1: (windows, tokens, dim), both."""
        fine, coarse = self.layout[s], self.layout[s + 1]
        maps = torch.unflatten(tokens, 1, fine.window).permute(0, 3, 1, 2)
        pooled = F.max_pool2d(maps, self.stride).permute(0, 2, 3, 1)
        grid = window_reverse(pooled.flatten(1, 2), fine.windows, (pooled.shape[1], pooled.shape[2]))
        return window_partition(grid, coarse.windows)

    def top_down(self, tokens: list[Tensor]) -> list[Tensor]:
        """Step 3: update `tokens` from the coarsest scale to the finest.

        Returns:
            Keys and values of each updated scale, for those that attend to it: (windows, tokens, 2 dim).
        """
        contexts: list[Tensor] = []
        for s in reversed(range(len(tokens))):
            attention = self.attention(s)
            tokens[s] = attention(
                tokens[s], attention.attend(attention.query(tokens[s]), self.keys(tokens[s], s, contexts))
            )
            if len(tokens) > 1:
                contexts.insert(0, attention.context(tokens[s]))
        return contexts

    def keys(self, tokens: Tensor, s: int, contexts: Sequence[Tensor]) -> Tensor:
        """Keys and values for the windows of scale s: their own, then those of coarser scales, finest first.

        Arguments:
            tokens: of scale s, (windows, tokens, dim).
            s: the scale.
            contexts: keys and values of the coarser ones, each (windows there, tokens, 2 dim).

        Returns:
            Keys and values (windows, tokens of all those scales, 2 dim).
        """
        own = self.attention(s).context(tokens)
        if not contexts:
            return own
        rows, columns = self.layout[s].windows
        seen = [self.broadcast(context, s + 1 + i, s) for i, context in enumerate(contexts)]
        return torch.cat([torch.unflatten(own, 0, (-1, rows * columns)), *seen], dim=2).flatten(0, 1)

    def broadcast(self, context: Tensor, coarse: int, fine: int) -> Tensor:
        """Give each window of a fine scale the context of the coarse window it attends to.

        Arguments:
            context: (batch * windows of `coarse`, tokens, 2 dim).

        Returns:
            (batch, windows of `fine`, tokens, 2 dim); a view where the coarse scale has one window.
        """
        (rows, columns), (fine_rows, fine_columns) = self.layout[coarse].windows, self.layout[fine].windows
        down, across = fine_rows // rows, fine_columns // columns
        if self.window_order == "official" or rows * columns == 1:
            each = torch.unflatten(context, 0, (-1, rows * columns, 1))
            return each.expand(-1, -1, down * across, -1, -1).flatten(1, 2)
        cells = torch.unflatten(context, 0, (-1, rows, 1, columns, 1))
        return cells.expand(-1, -1, down, -1, across, -1, -1).flatten(1, 4)

    def bottom_up(self, tokens: list[Tensor], contexts: list[Tensor]) -> None:
        """Step 4: update `tokens` from the second-finest scale to the coarsest, each from the one below."""
        for s in range(1, len(tokens)):
            attention, fine, coarse = self.attention(s), self.layout[s - 1], self.layout[s]
            grid = window_reverse(attention.query(tokens[s]), coarse.windows, coarse.window)
            over = (coarse.grid[0] // fine.windows[0], coarse.grid[1] // fine.windows[1])
            read = attention.attend(window_partition(grid, fine.windows), contexts[s - 1])
            tokens[s] = attention(
                tokens[s], window_partition(window_reverse(read, fine.windows, over), coarse.windows)
            )
            if s + 1 < len(tokens):
                contexts[s] = attention.context(tokens[s])


class ScaleAttention(nn.Module):
    """The weights of one scale in one block: attention across windows, and the MLP after it."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, act_layer=GELU)
        self.drop_path = DropPath(drop_path)

    def query(self, x: Tensor) -> Tensor:
        """(windows, tokens, dim) -> queries of the same shape."""
        out: Tensor = self.q(self.query_norm(x))
        return out

    def context(self, x: Tensor) -> Tensor:
        """(windows, tokens, dim) -> keys, then values: (windows, tokens, 2 dim)."""
        out: Tensor = self.kv(self.context_norm(x))
        return out

    def attend(self, query: Tensor, context: Tensor) -> Tensor:
        """Attend from queries (windows, n, dim) to keys and values (windows, m, 2 dim): (windows, n, dim)."""
        q = torch.unflatten(query, 2, (self.heads, -1)).transpose(1, 2)
        k, v = torch.unflatten(context, 2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        read = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(read.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        """Add the attention's output to the tokens, then the MLP: (windows, tokens, dim) -> the same."""
        x = x + self.drop_path(read)
        out: Tensor = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return out


class WindowPosition(nn.Module):
    """Position embedding of a window: an MLP of each token's position in it, from -1 to 1."""

    coordinates: Tensor

    def __init__(self, dim: int, window: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (_coordinates(side) for side in window)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        self.register_buffer("coordinates", grid.flatten(0, 1), persistent=False)
        self.hidden = nn.Linear(2, 512)
        self.out = nn.Linear(512, dim, bias=False)

    def forward(self) -> Tensor:
        """The embedding (tokens of a window, dim)."""
        out: Tensor = self.out(F.relu(self.hidden(self.coordinates)))
        return out


def _coordinates(side: int) -> Tensor:
    """-1 at the first token, 0 at the middle one."""
    middle = side // 2
    return (torch.arange(side, dtype=torch.get_default_dtype()) - middle) / max(middle, 1)


_OFFICIAL = (
    (r"^atlas_models\.0\.patch_embed\.conv0\.", "stem."),
    (r"^atlas_models\.0\.patch_embed\.conv1\.0\.", "stem.6."),
    (r"^atlas_models\.0\.patch_embed\.conv1\.1\.", "stem.7."),
    (r"^atlas_models\.0\.patch_embed\.conv1\.2\.", "stem.8."),
    (r"^atlas_models\.0\.patch_embed\.ds1\.", "stem.9."),
    (r"^atlas_models\.0\.patch_embed\.conv2\.0\.", "stem.10."),
    (r"^atlas_models\.0\.patch_embed\.conv2\.1\.", "stem.11."),
    (r"^atlas_models\.0\.patch_embed\.conv2\.2\.", "stem.12."),
    (r"^atlas_models\.0\.patch_embed\.ds2\.", "stem.13."),
    (r"\.conv_block([12])\.0\.", r".conv\1."),
    (r"\.conv_block([12])\.1\.", r".norm\1."),
    (r"^atlas_models\.(\d+)\.levels\.0\.blocks\.(\d+)\.blocks\.", r"stages.\1.blocks.\2.scales."),
    (r"^atlas_models\.(\d+)\.levels\.0\.blocks\.(\d+)\.posemb\.", r"stages.\1.blocks.\2.positions."),
    (r"\.norm1_q\.", ".query_norm."),
    (r"\.norm1_kv\.", ".context_norm."),
    (r"\.norm2\.(?=\w+$)(?<=scales\.\d\.norm2\.)", ".mlp_norm."),
    (r"\.attn\.", "."),
    (r"\.projector\.0\.", ".hidden."),
    (r"\.projector\.2\.", ".out."),
    (r"^fc_norm\.", "head_norm."),
    (r"^fc\.", "head."),
)
_UNUSED = re.compile(r"^atlas_models\.(\d+\.(norm|head)|[1-9]\d*\.patch_embed)\.")
"""Tensors in the authors' stages that their forward pass never uses."""


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Rename the tensors of YalaLab's Atlas weights to the names of this module, like timm's functions.

    Arguments:
        state_dict: tensors by name; tensors without the authors' names are returned unchanged.
        model: unused; part of timm's signature.

    Returns:
        Tensors by this module's names.  Those that the authors' forward pass never uses keep their name.
    """
    if not any(name.startswith("atlas_models.0.patch_embed.") for name in state_dict):
        return dict(state_dict)
    return {_our_name(name): tensor for name, tensor in state_dict.items()}


def _our_name(official: str) -> str:
    if _UNUSED.match(official):
        return official
    name = official
    for pattern, replacement in _OFFICIAL:
        name = re.sub(pattern, replacement, name)
    return name
