"""CrossFormer and CrossFormer++ (Wang et al., arXiv:2108.00154 and 2303.06908): near and far groups in turns.

A pyramid at strides 4, 8, 16 and 32, whose embeddings join patches of several sizes.  Blocks attend in groups
of G x G tokens; in every second block a group's tokens are neighbours, in the others they lie an interval I
apart, so that a square of G I tokens per side holds I x I groups.  Where a map is no larger than a group, it
is one group.  The position bias is an MLP of the distance, so that it has no table.

CrossFormer++ has groups that grow with the stages, and after every third block of a stage an amplitude
cooling layer: a depthwise convolution and a norm, without residual.

What may surprise:

- maps are padded to whole groups, long-distance ones to G I; padding is masked as key and costs like image.
- the published intervals (8, 4, 2, 1) span the map at 224 px only.  `adaptive_interval` makes them grow with
  the size, so that a long-distance group spans the map; the cost stays linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
from longvis_bench.ops.grad_checkpointing import Blocks
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.ops.map_classifier import MapClassifier
from longvis_bench.ops.windows import pad_to_whole
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.crossformer import check_crossformer, stride_of

MASKED = -1e4
"""Added to the scores of padding: no weight is left of it, in half precision too."""
COOLED = 3
"""Every so many blocks an amplitude cooling layer follows, but not after a stage's last block."""
FIXED: dict[str, tuple[object, ...]] = {
    "group_type": ("constant",),
    "pad_type": (0,),
    "no_mask": (False,),
    "use_cpe": (False,),
    "ape": (False,),
    "patch_norm": (True,),
    "qkv_bias": (True,),
    "qk_scale": (None,),
    "drop_rate": (0.0,),
    "attn_drop_rate": (0.0,),
    "use_checkpoint": (False,),
}


class CrossFormer(MapClassifier):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); with `adaptive_interval` intervals follow from it.
        num_classes: logits.
        embed_dim: channels of stage 1; each later stage has twice those of the one before.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        group_size: tokens per side of a group, for each stage.
        crs_interval: tokens from one token of a long-distance group to the next, for each stage.
        patch_size: sides of the patches that the embedding joins; the first is its stride.
        merge_size: sides of the patches that each transition joins.
        mlp_ratio: hidden width of the MLPs over the block's width, for each stage.
        adaptive_interval: intervals such that a long-distance group spans the map.
        use_acl: amplitude cooling layers, of CrossFormer++.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        fixed: arguments of the authors' code with the one value that `FIXED` names.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    def __init__(
        self,
        *,
        resolution: AnyResolution,
        num_classes: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        group_size: Sequence[int] = (7, 7, 7, 7),
        crs_interval: Sequence[int] = (8, 4, 2, 1),
        patch_size: Sequence[int] = (4, 8, 16, 32),
        merge_size: Sequence[Sequence[int]] = ((2, 4), (2, 4), (2, 4)),
        mlp_ratio: Sequence[float] = (4.0, 4.0, 4.0, 4.0),
        adaptive_interval: bool = False,
        use_acl: bool = False,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("crossformer", fixed, FIXED)
        check_crossformer(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            group_size=group_size,
            crs_interval=crs_interval,
            patch_size=patch_size,
            merge_size=merge_size,
            adaptive_interval=adaptive_interval,
            use_acl=use_acl,
            drop_path_rate=drop_path_rate,
        )
        rates = iter([drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        self.patch_embed = _Embedding(in_chans, embed_dim, patch_size)
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            width, side = embed_dim * 2**i, min(sides(resolution)) // (4 * 2**i)
            interval = stride_of(side, group_size[i], crs_interval[i], adaptive_interval)
            blocks = [
                _Block(
                    width,
                    num_heads[i],
                    *_groups(side, group_size[i], interval if j % 2 else 1),
                    mlp_ratio[i],
                    next(rates),
                    cooled=use_acl and (j + 1) % COOLED == 0 and j + 1 < depth,
                )
                for j in range(depth)
            ]
            merge = _Merging(width, merge_size[i]) if i + 1 < len(depths) else nn.Identity()
            self.layers.append(_Stage(blocks, merge))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.apply(_initialise)


def _groups(side: int, group: int, interval: int) -> tuple[int, int]:
    """Group and interval of a block; a map whose shorter side is within a group has groups of that side."""
    return (side, 1) if side <= group else (group, interval)


def _parts(width: int, sizes: Sequence[int]) -> list[int]:
    """Channels of each patch size: halves of halves, the last as many as the one before."""
    return [width // 2 ** (i + (i + 1 < len(sizes))) for i in range(len(sizes))]


class _Embedding(nn.Module):
    """Patches of several sizes around the same centres, each giving some of the channels."""

    def __init__(self, in_chans: int, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        stride = sizes[0]
        self.projs = nn.ModuleList(
            [
                nn.Conv2d(in_chans, part, size, stride=stride, padding=(size - stride) // 2)
                for part, size in zip(_parts(width, sizes), sizes, strict=True)
            ]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_chans, height, width) -> (batch, height/4, width/4, width)."""
        maps = torch.cat([project(image) for project in self.projs], dim=1)
        out: Tensor = self.norm(maps.permute(0, 2, 3, 1))
        return out


class _Merging(nn.Module):
    """To half the side and twice the channels, by patches of several sizes."""

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.reductions = nn.ModuleList(
            [
                nn.Conv2d(width, part, size, stride=2, padding=(size - 2) // 2)
                for part, size in zip(_parts(2 * width, sizes), sizes, strict=True)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(x).permute(0, 3, 1, 2)
        return torch.cat([reduce(maps) for reduce in self.reductions], dim=1).permute(0, 2, 3, 1)


class _Stage(nn.Module):
    """Blocks, then the transition to the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = Blocks(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(self.blocks(x))
        return out


class _Block(nn.Module):
    """Attention in groups and an MLP, each a residual; then cooling, if asked."""

    def __init__(
        self,
        width: int,
        heads: int,
        group: int,
        interval: int,
        mlp_ratio: float,
        drop_path: float,
        *,
        cooled: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = GroupAttention(width, heads, group, interval)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)
        self.ex_conv = nn.Conv2d(width, width, 3, padding=1, groups=width) if cooled else None
        self.ex_ln = nn.LayerNorm(width) if cooled else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if self.ex_conv is None or self.ex_ln is None:
            return x
        out: Tensor = self.ex_ln(self.ex_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


class GroupAttention(nn.Module):
    """Attention in groups of tokens that are neighbours, or an interval apart.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
        group: tokens per side of a group.
        interval: tokens from one of a group to the next; 1: neighbours.
    """

    def __init__(self, width: int, heads: int, group: int, interval: int) -> None:
        super().__init__()
        self.heads, self.group, self.interval = heads, group, interval
        self.qkv = nn.Linear(width, 3 * width)
        self.pos = _PositionBias(width // 16, heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        height, width = x.shape[1:3]
        block = self.group * self.interval
        padded = pad_to_whole(x, block)
        tokens = self.qkv(self.cut(padded))
        q, k, v = torch.unflatten(tokens, 3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()
        bias = self.pos(self.group)
        if padded.shape == x.shape:
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            q, k, v = (t.flatten(1, 2) for t in (q, k, v))
            bias = (bias + self.mask(padded, height, width)).flatten(0, 1)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        groups = mixed.reshape(len(x), -1, self.heads, *mixed.shape[2:]).transpose(2, 3).flatten(3)
        out = self.join(self.proj(groups), padded.shape[1], padded.shape[2])
        return out[:, :height, :width]

    def mask(self, padded: Tensor, height: int, width: int) -> Tensor:
        """What is added to the scores of padding: (groups, 1, 1, tokens), in the tokens' dtype."""
        below, right = padded.shape[1] - height, padded.shape[2] - width
        image = padded.new_zeros(1, height, width, 1)
        is_padding = F.pad(image, (0, 0, 0, right, 0, below), value=MASKED)
        return self.cut(is_padding)[0].permute(0, 2, 1)[:, None]

    def cut(self, grid: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> (batch, groups, tokens, width)."""
        batch, height, width, channels = grid.shape
        g, i = self.group, self.interval
        cells = grid.reshape(batch, height // (g * i), g, i, width // (g * i), g, i, channels)
        return cells.permute(0, 1, 4, 3, 6, 2, 5, 7).reshape(batch, -1, g * g, channels)

    def join(self, groups: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `cut`."""
        g, i = self.group, self.interval
        cells = groups.reshape(len(groups), height // (g * i), width // (g * i), i, i, g, g, -1)
        return cells.permute(0, 1, 5, 3, 2, 6, 4, 7).reshape(len(groups), height, width, -1)


class _PositionBias(nn.Module):
    """A bias per head for each distance of two tokens of a group: an MLP of the distance."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.pos_proj = nn.Linear(2, width)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out))
            for out in (width, width, heads)
        )

    def forward(self, group: int) -> Tensor:
        """Tokens per side of a group -> (1, heads, tokens, tokens)."""
        weight = self.pos_proj.weight
        steps = torch.arange(1 - group, group, device=weight.device, dtype=weight.dtype)
        pairs = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
        table = self.pos3(self.pos2(self.pos1(self.pos_proj(pairs.flatten(0, 1)))))
        bias: Tensor = table[relative_places(group, weight.device)].permute(2, 0, 1)[None]
        return bias


def relative_places(group: int, device: torch.device) -> Tensor:
    """Index, in a raster of (2 group - 1) squared distances, of that from token j to token i: (i, j)."""
    position = torch.arange(group, device=device)
    apart = position[:, None] - position[None, :] + group - 1
    rows, columns = apart[:, None, :, None], apart[None, :, None, :]
    return (rows * (2 * group - 1) + columns).reshape(group * group, group * group)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
