"""BiFormer (Zhu et al., arXiv:2303.08810): attention to the few regions that a region finds most alike.

A pyramid at strides 4, 8, 16 and 32.  A stage's map is cut into n x n regions.  Means of queries and of keys
over each region decide which `topk` regions a region reads; its tokens then attend to all tokens of these,

    out = softmax(q k^T / sqrt(d)) v + dwconv(v)        d the width of all heads together

The last stage attends over all tokens.

What may surprise:

- the number of regions is fixed (7 x 7), so that regions grow with the image: attention is quadratic.
- scores, and the routing, are scaled by the whole width, not by a head's; the last stage's by a head's.
- attention over all tokens has 8 heads whatever `head_dim` is, no bias in its projection, and convolves its
  input instead of its values.
- the routing has no gradient; regions are chosen, not weighted.
- with `auto_pad` the map is padded with zeros before its projection, whose biases make tokens of them: they
  are averaged and attended to like image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
from longvis_bench.ops.grad_checkpointing import Blocks, set_grad_checkpointing
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.ops.windows import pad_to_whole, window_partition, window_reverse
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.biformer import FULL, FULL_HEADS, check_biformer

FIXED: dict[str, tuple[object, ...]] = {
    "kv_downsample_mode": ("identity",),
    "kv_per_wins": ([-1, -1, -1, -1],),
    "layer_scale_init_value": (-1,),
    "param_routing": (False,),
    "diff_routing": (False,),
    "soft_routing": (False,),
    "pre_norm": (True,),
    "pe": (None,),
    "pe_stages": ([0], None),
    "kv_downsample_kernels": ([4, 2, 1, 1],),
    "kv_downsample_ratios": ([4, 2, 1, 1],),
    "mlp_dwconv": (False,),
    "representation_size": (None,),
    "use_checkpoint_stages": ([],),
}


class BiFormer(nn.Module):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); changes nothing in the model.
        num_classes: logits.
        depth: blocks of each stage.
        embed_dim: channels of each stage.
        head_dim: channels of a head.
        qk_dims: channels of queries and keys; those of `embed_dim`.
        n_win: regions per side.
        topks: regions that a region reads, for each stage; -2: all tokens.
        mlp_ratios: hidden width of the MLPs over the block's width.
        side_dwconv: side of the convolution of the values.
        before_attn_dwconv: side of the convolution before each block's attention; 0: none.
        auto_pad: pad maps that regions do not fill.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        fixed: arguments of the authors' code with the one value that `FIXED` names.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        resolution: AnyResolution | None = None,
        num_classes: int,
        depth: Sequence[int],
        embed_dim: Sequence[int],
        head_dim: int = 32,
        qk_dims: Sequence[int | None] | None = None,
        n_win: int = 7,
        topks: Sequence[int] = (1, 4, 16, FULL),
        mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        side_dwconv: int = 5,
        before_attn_dwconv: int = 3,
        auto_pad: bool = False,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("biformer", fixed, FIXED)
        check_biformer(
            depth=depth,
            embed_dim=embed_dim,
            head_dim=head_dim,
            qk_dims=qk_dims,
            n_win=n_win,
            topks=topks,
            mlp_ratios=mlp_ratios,
            side_dwconv=side_dwconv,
            before_attn_dwconv=before_attn_dwconv,
            auto_pad=auto_pad,
            drop_path_rate=drop_path_rate,
        )
        rates = iter([drop_path_rate * i / max(sum(depth) - 1, 1) for i in range(sum(depth))])
        widths = [in_chans, *embed_dim]
        self.downsample_layers = nn.ModuleList(
            [
                _stem(in_chans, widths[1]) if i == 0 else _downsample(widths[i], widths[i + 1])
                for i in range(len(embed_dim))
            ]
        )

        def mixer(width: int, topk: int) -> nn.Module:
            if topk == FULL:
                return FullAttention(width, FULL_HEADS, side_dwconv)
            return RoutedAttention(width, width // head_dim, n_win, topk, side_dwconv, auto_pad)

        self.stages = nn.ModuleList(
            [
                Blocks(
                    *[
                        _Block(width, mixer(width, topk), ratio, before_attn_dwconv, next(rates))
                        for _ in range(count)
                    ]
                )
                for width, topk, ratio, count in zip(embed_dim, topks, mlp_ratios, depth, strict=True)
            ]
        )
        self.norm = nn.BatchNorm2d(embed_dim[-1])
        self.head = nn.Linear(embed_dim[-1], num_classes)
        self.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and compute the rest again in the backward."""
        set_grad_checkpointing(self, enable)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised map (batch, channels, height/32, width/32)."""
        x = image
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        out: Tensor = self.norm(x)
        return out

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides of the maps, in pixels."""
        return tuple(4 * 2**i for i in range(len(self.stages)))

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, channels, height, width) of each stage."""
        x, maps = image, []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(x)
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (batch, channels, height, width) -> logits (batch, classes), or its mean (batch, channels)."""
        pooled = features.mean((2, 3))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> logits (batch, classes)."""
        return self.forward_head(self.forward_features(image))


class _Block(nn.Module):
    """A convolution, the attention and an MLP; each a residual."""

    def __init__(self, width: int, mixer: nn.Module, mlp_ratio: float, kernel: int, drop_path: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.pos_embed = _depthwise(width, kernel) if kernel > 0 else None
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Identity(), GELU(), nn.Linear(hidden, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        grid = x.permute(0, 2, 3, 1)
        grid = grid + self.drop_path(self.attn(self.norm1(grid)))
        grid = grid + self.drop_path(self.mlp(self.norm2(grid)))
        out: Tensor = grid.permute(0, 3, 1, 2)
        return out


class RoutedAttention(nn.Module):
    """Attention of each region's tokens to those of the `topk` regions that its mean query finds.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
        regions: per side.
        topk: regions that are read.
        kernel: side of the convolution of the values.
        auto_pad: pad maps that regions do not fill.
    """

    def __init__(self, width: int, heads: int, regions: int, topk: int, kernel: int, auto_pad: bool) -> None:
        super().__init__()
        self.heads, self.regions, self.topk, self.auto_pad = heads, regions, topk, auto_pad
        self.scale = width**-0.5
        self.qkv = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width)})
        self.lepe = _depthwise(width, kernel)
        self.wo = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        height, width = x.shape[1:3]
        if self.auto_pad:
            x = pad_to_whole(x, self.regions)
        q, k, v = self.qkv["qkv"](x).chunk(3, dim=-1)
        counts = (self.regions, self.regions)
        queries, keys, values = (self._regions(t) for t in (q, k, v))
        chosen = self.route(queries, keys)
        keys, values = (self._heads(gather(t, chosen)) for t in (keys, values))
        mixed = F.scaled_dot_product_attention(self._heads(queries), keys, values, scale=self.scale)
        sides = (x.shape[1] // self.regions, x.shape[2] // self.regions)
        grid = window_reverse(mixed.transpose(1, 2).flatten(2), counts, sides)
        grid = grid + self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.wo(grid)
        cropped: Tensor = out[:, :height, :width]
        return cropped

    def route(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Tokens (batch, regions, tokens, width) -> regions that each region reads (batch, regions, topk)."""
        means = [t.detach().mean(2) for t in (queries, keys)]
        scores = (means[0] * self.scale) @ means[1].mT
        indices: Tensor = scores.topk(self.topk, dim=-1).indices
        return indices

    def _regions(self, grid: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> (batch, regions, tokens, width)."""
        tokens = window_partition(grid, (self.regions, self.regions))
        return torch.unflatten(tokens, 0, (len(grid), -1))

    def _heads(self, tokens: Tensor) -> Tensor:
        """(batch, regions, tokens, width) -> (batch x regions, heads, tokens, width of a head)."""
        return torch.unflatten(tokens.flatten(0, 1), 2, (self.heads, -1)).transpose(1, 2)


def gather(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Tokens of the chosen regions, one region after the other.

    Arguments:
        tokens: (batch, regions, tokens, width).
        chosen: (batch, regions, topk), numbers of regions.

    Returns:
        (batch, regions, topk x tokens, width).
    """
    batch, regions, _, width = tokens.shape
    first = torch.arange(batch, device=tokens.device)[:, None, None] * regions
    picked = tokens.flatten(0, 1).index_select(0, (first + chosen).flatten())
    return picked.view(batch, regions, -1, width)


class FullAttention(nn.Module):
    """Attention over all tokens, with a convolution of its input.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
        kernel: side of the convolution.
    """

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.lepe = _depthwise(width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        qkv = self.qkv(x).flatten(1, 2)
        q, k, v = torch.unflatten(qkv, 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.proj(mixed + self.lepe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


def _stem(in_chans: int, width: int) -> nn.Sequential:
    """Two convolutions of stride 2: to stride 4."""
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1),
        nn.BatchNorm2d(width // 2),
        GELU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
    )


def _downsample(width: int, wider: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.BatchNorm2d(wider))


def _depthwise(width: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
