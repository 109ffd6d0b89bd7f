"""MILA (Han et al., arXiv:2405.16605, also MLLA): Mamba's block around linear attention.

A pyramid at strides 4, 8, 16 and 32.  Each block convolves (a conditional position encoding), then mixes

    y = out_proj(Attention(SiLU(dwconv(in_proj(x)))) * SiLU(act_proj(x)))

then convolves again and has an MLP.  The attention has no softmax: with q' = 1 + ELU(q) and k' = 1 + ELU(k),

    out_i = R(q'_i) (sum_j R(k'_j) v_j^T / n) / (q'_i mean_j k'_j) + dwconv(v)_i

where R turns pairs of channels by angles of the token's row and column (rotary positions), and v is the
attention's input itself.

What may surprise:

- the normaliser uses keys and queries before they are turned.
- pairs are over the whole width, before heads are split: a head of the first half turns with rows only.
- angles of rows and of columns are made apart, in each forward, so that there is no table; the authors keep
  one in every block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
from longvis_bench.ops.feature_maps import stage_maps
from longvis_bench.ops.grad_checkpointing import Blocks
from longvis_bench.ops.inplace_layers import GELU, BatchNorm2d
from longvis_bench.ops.map_classifier import MapClassifier
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.mila import check_mila

BASE = 10000.0
"""Of the rotary angles: the slowest pair turns by about 1 / BASE per token."""
FIXED: dict[str, tuple[object, ...]] = {
    "patch_size": (4,),
    "qkv_bias": (True,),
    "drop_rate": (0.0,),
    "ape": (False,),
    "use_checkpoint": (False,),
}


class MILA(MapClassifier):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); changes nothing in the model.
        num_classes: logits.
        embed_dim: channels of stage 1; each later stage has twice those of the one before.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        mlp_ratio: hidden width of the MLPs over the block's width.
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
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("mila", fixed, FIXED)
        check_mila(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        rates = iter([drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        widths = [embed_dim * 2**i for i in range(len(depths))]
        self.patch_embed = _Stem(in_chans, embed_dim)
        self.layers = nn.ModuleList(
            [
                _Stage(
                    [_Block(width, heads, mlp_ratio, next(rates)) for _ in range(depth)],
                    _Downsample(width) if width < widths[-1] else nn.Identity(),
                )
                for width, heads, depth in zip(widths, num_heads, depths, strict=True)
            ]
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        self.apply(_initialise)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised map (batch, height/32, width/32, channels)."""
        x: Tensor = self.patch_embed(image)
        for stage in self.layers:
            x = stage(x)
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, channels, height, width) of each stage."""
        return stage_maps(self.patch_embed(image), self.layers)


class _Conv(nn.Module):
    """A convolution, batch norm and ReLU, the last two if asked."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )
        self.norm = BatchNorm2d(out) if norm else nn.Identity()
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class _Stem(nn.Module):
    """To stride 4, with a residual pair of convolutions between the two that stride."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = _Conv(in_chans, half, 3, stride=2, bias=False)
        self.conv2 = nn.Sequential(
            _Conv(half, half, 3, bias=False), _Conv(half, half, 3, bias=False, act=False)
        )
        self.conv3 = nn.Sequential(
            _Conv(half, 4 * width, 3, stride=2, bias=False), _Conv(4 * width, width, bias=False, act=False)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_chans, height, width) -> (batch, width, height / 4, width / 4)."""
        x = self.conv1(image)
        out: Tensor = self.conv3(self.conv2(x) + x)
        return out


class _Downsample(nn.Module):
    """To half the side and twice the channels, by way of eight times the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 8 * width
        self.conv = nn.Sequential(
            _Conv(width, wide, norm=False),
            _Conv(wide, wide, 3, stride=2, groups=wide, norm=False),
            _Conv(wide, 2 * width, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _Stage(nn.Module):
    """Blocks, then the downsampling to the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = Blocks(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(self.blocks(x))
        return out


class GatedAttention(nn.Module):
    """y of the module's docstring: a convolution, linear attention, and a gate.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.dwc = _depthwise(width)
        self.in_proj, self.act_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.attn = LinearAttention(width, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        gate = F.silu(self.act_proj(tokens))
        grid = F.silu(self.dwc(self.in_proj(tokens).permute(0, 3, 1, 2)))
        out: Tensor = self.out_proj(self.attn(grid.permute(0, 2, 3, 1)) * gate)
        return out


class _Block(GatedAttention):
    """Position encoding, gated linear attention, position encoding, MLP; each a residual.

    It is a `GatedAttention` so that its parameters have the official names.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__(width, heads)
        self.cpe1, self.cpe2 = (_depthwise(width) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        x = x + self.cpe1(x)
        mixed = super().forward(self.norm1(x.permute(0, 2, 3, 1)))
        x = x + self.drop_path(mixed.permute(0, 3, 1, 2))
        x = x + self.cpe2(x)
        hidden = self.mlp(self.norm2(x.permute(0, 2, 3, 1)))
        out: Tensor = x + self.drop_path(hidden.permute(0, 3, 1, 2))
        return out


class LinearAttention(nn.Module):
    """Attention without softmax, with rotary positions; values are its input.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(width, 2 * width)
        self.lepe = _depthwise(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> the same."""
        count = x.shape[1] * x.shape[2]
        q, k = (1 + F.elu(t) for t in self.qk(x).chunk(2, dim=-1))
        norm = self._heads(q) @ self._heads(k).mean(2, keepdim=True).mT + 1e-6
        turned_q, turned_k = (self._heads(turn(t)) for t in (q, k))
        values = self._heads(x)
        summed = (turned_k * count**-0.5).mT @ (values * count**-0.5)
        mixed = (turned_q @ summed / norm).transpose(1, 2).reshape(x.shape)
        out: Tensor = mixed + self.lepe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, height, width of map, width) -> (batch, heads, tokens, width of a head)."""
        return torch.unflatten(x.flatten(1, 2), 2, (self.heads, -1)).transpose(1, 2)


def turn(x: Tensor) -> Tensor:
    """Rotary positions: turn pairs of channels, the first half by rows, the second by columns.

    Arguments:
        x: (batch, height, width of map, width), the width a multiple of 4.

    Returns:
        The same shape and dtype.
    """
    pairs = torch.unflatten(x, -1, (2, -1, 2))
    rows = _turned(pairs[..., 0, :, :], _angles(x.shape[1], x)[:, None])
    columns = _turned(pairs[..., 1, :, :], _angles(x.shape[2], x)[None, :])
    return torch.stack([rows, columns], dim=-3).flatten(-3)


def _angles(positions: int, x: Tensor) -> Tensor:
    """Angles of each position and pair (positions, width / 4), in float32 at least."""
    pairs = x.shape[-1] // 4
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    speeds = BASE ** -(torch.arange(pairs, device=x.device, dtype=dtype) / pairs)
    return torch.arange(positions, device=x.device, dtype=dtype)[:, None] * speeds


def _turned(pairs: Tensor, angles: Tensor) -> Tensor:
    """Pairs (..., 2) turned by angles (...)."""
    cos, sin = angles.cos().to(pairs.dtype), angles.sin().to(pairs.dtype)
    first, second = pairs.unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _depthwise(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1, groups=width)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
