"""NAT and DiNAT (Hassani et al., arXiv:2204.07143; Hassani and Shi, 2209.15001): dilated neighbourhoods.

A pyramid at strides 4, 8, 16 and 32.  Each token attends to the k x k tokens around it, every d-th of them,
where the block's dilation is d; at the border the neighbourhood is moved inwards, so that each token has
k x k neighbours.  A table gives a bias to each distance.  In turns, blocks have dilation 1 and one near the
largest that the map holds, so that a stage sees near and far.

natten's kernels are not used: since 0.20 they have no position bias.  Here keys and values of some rows of
queries at a time are gathered, so that in inference memory stays bounded, and multiplied by plain products.

What may surprise:

- the published dilations are made for 224 px.  At larger sizes the neighbourhoods stay as wide as they are;
  `dilations = "global"` makes those of every second block the largest that the map holds.
- in training, gathered keys and values are kept: k x k times the map, for each block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
from longvis_bench.ops.feature_maps import channels_first, stage_maps
from longvis_bench.ops.grad_checkpointing import Blocks
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.ops.map_classifier import MapClassifier
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.dinat import check_dinat, given

GATHERED = 2**24
"""Numbers of keys that are gathered at once, about: 64 MiB in float32."""
FIXED: dict[str, tuple[object, ...]] = {
    "qkv_bias": (True,),
    "qk_scale": (None,),
    "drop_rate": (0.0,),
    "attn_drop_rate": (0.0,),
}


class DiNAT(MapClassifier):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); changes nothing in the model.
        num_classes: logits.
        embed_dim: channels of stage 1; each later stage has twice those of the one before.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        kernel_size: tokens per side of a neighbourhood.
        dilations: of each block of each stage; None: 1 everywhere, which is NAT.
        mlp_ratio: hidden width of the MLPs over the block's width.
        layer_scale: first value of the residual branches' scales; None: no scales.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        fixed: arguments of the authors' code with the one value that `FIXED` names.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    def __init__(
        self,
        *,
        resolution: AnyResolution | None = None,
        num_classes: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 3,
        layer_scale: float | None = None,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("dinat", fixed, FIXED)
        check_dinat(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            kernel_size=kernel_size,
            dilations=dilations,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            drop_path_rate=drop_path_rate,
        )
        rates = iter([drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        widths = [embed_dim * 2**i for i in range(len(depths))]
        self.patch_embed = _Tokenizer(in_chans, embed_dim)
        self.levels = nn.ModuleList(
            [
                _Level(
                    [
                        _Block(
                            width,
                            NeighbourhoodAttention(width, heads, kernel_size, dilation),
                            mlp_ratio,
                            layer_scale,
                            next(rates),
                        )
                        for dilation in stage
                    ],
                    _Downsampler(width) if width < widths[-1] else nn.Identity(),
                )
                for width, heads, stage in zip(widths, num_heads, given(dilations, depths), strict=True)
            ]
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        self.apply(_initialise)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised map (batch, height/32, width/32, channels)."""
        x: Tensor = self.patch_embed(image)
        for level in self.levels:
            x = level(x)
        out: Tensor = self.norm(x)
        return out

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides of the maps, in pixels."""
        return tuple(4 * 2**i for i in range(len(self.levels)))

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, channels, height, width) of each stage."""
        return channels_first(stage_maps(self.patch_embed(image), self.levels))


class _Tokenizer(nn.Module):
    """Two convolutions of stride 2: to stride 4."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_chans, height, width) -> (batch, height/4, width/4, width)."""
        out: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return out


class _Downsampler(nn.Module):
    """To half the side, rounded up, and twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


class _Level(nn.Module):
    """Blocks, then the downsampling to the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = Blocks(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(self.blocks(x))
        return out


class _Block(nn.Module):
    """x' = x + Attention(norm(x)); x'' = x' + MLP(norm(x')), each branch scaled if asked."""

    def __init__(
        self, width: int, mixer: nn.Module, mlp_ratio: float, layer_scale: float | None, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = mixer
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)
        self.drop_path = DropPath(drop_path)
        self.gamma1 = self.gamma2 = None
        if layer_scale is not None:
            self.gamma1, self.gamma2 = (nn.Parameter(layer_scale * torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        x = x + self._branch(self.attn(self.norm1(x)), self.gamma1)
        return x + self._branch(self.mlp(self.norm2(x)), self.gamma2)

    def _branch(self, x: Tensor, gamma: nn.Parameter | None) -> Tensor:
        out: Tensor = self.drop_path(x if gamma is None else gamma * x)
        return out


class NeighbourhoodAttention(nn.Module):
    """Attention of each token to the kernel x kernel tokens around it, every dilation-th of them.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
        kernel: tokens per side of a neighbourhood.
        dilation: tokens from one neighbour to the next.
    """

    def __init__(self, width: int, heads: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.heads, self.kernel, self.dilation = heads, kernel, dilation
        self.qkv = nn.Linear(width, 3 * width)
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * kernel - 1, 2 * kernel - 1))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        q, k, v = torch.unflatten(self.qkv(x), 3, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5).unbind()
        mixed = attend_neighbours(q, k, v, self.rpb, self.kernel, self.dilation)
        out: Tensor = self.proj(mixed.permute(0, 2, 3, 1, 4).flatten(3))
        return out


def attend_neighbours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, kernel: int, dilation: int) -> Tensor:
    """Softmax(q k^T / sqrt(d) + bias) v over each token's neighbourhood.

    Arguments:
        q, k, v: (batch, heads, height, width, d); both sides at least kernel x dilation.
        bias: (heads, 2 kernel - 1, 2 kernel - 1), of the distance in dilated steps.
        kernel: tokens per side of a neighbourhood.
        dilation: tokens from one neighbour to the next.

    Returns:
        (batch, heads, height, width, d).
    """
    batch, heads, height, width, dim = q.shape
    (rows, far_rows), (columns, far_columns) = (
        neighbours(side, kernel, dilation, q.device) for side in (height, width)
    )
    q = (q * dim**-0.5).unsqueeze(-2)
    step = max(GATHERED // (batch * heads * width * kernel * kernel * dim), 1)
    parts = []
    for top in range(0, height, step):
        own = slice(top, top + step)
        near_k, near_v = (_gather(t, rows[own], columns) for t in (k, v))
        apart = bias[:, far_rows[own, None, :, None], far_columns[None, :, None, :]].flatten(3)
        scores = (q[:, :, own] @ near_k.mT).squeeze(-2) + apart
        parts.append((scores.softmax(-1).unsqueeze(-2) @ near_v).squeeze(-2))
    return torch.cat(parts, dim=2)


def neighbours(side: int, kernel: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Neighbours of each position of a row: their positions, and their distances in dilated steps, from 0.

    Positions that are a multiple of the dilation apart form a row of their own; there, the window of a
    position is centred on it, or moved inwards at the ends.

    Returns:
        Two tensors (side, kernel) of whole numbers.
    """
    position = torch.arange(side, device=device)
    group, inner = position % dilation, position // dilation
    length = (side - group + dilation - 1) // dilation
    start = torch.minimum((inner - kernel // 2).clamp(min=0), length - kernel)
    window = start[:, None] + torch.arange(kernel, device=device)
    return group[:, None] + dilation * window, window - inner[:, None] + kernel - 1


def _gather(t: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Map (batch, heads, height, width, d) -> neighbours (batch, heads, rows, columns, kernel^2, d)."""
    kernel = rows.shape[1]
    near = t.index_select(2, rows.flatten()).index_select(3, columns.flatten())
    cells = near.reshape(*t.shape[:2], len(rows), kernel, len(columns), kernel, -1)
    return cells.transpose(3, 4).flatten(4, 5)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, NeighbourhoodAttention):
        nn.init.trunc_normal_(module.rpb, std=0.02)
