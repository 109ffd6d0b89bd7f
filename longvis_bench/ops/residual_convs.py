"""The convolutional half that hybrids share: stem, residual convolutions, rates of stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from timm.layers.drop import DropPath
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from longvis_bench.ops.inplace_layers import GELU, BatchNorm2d


class ConvResidual(nn.Module):
    """x + BN(Conv(GELU(BN(Conv(x))))), the block of FasterViT (arXiv:2306.06189, section 3.2).

    Arguments:
        width: channels.
        drop_path: stochastic depth of the branch.
        approximate: of the GELU, "none" or "tanh".
    """

    def __init__(
        self, width: int, drop_path: float = 0.0, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = BatchNorm2d(width)
        self.act = GELU(approximate=approximate)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = BatchNorm2d(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        inner = self.act(self.norm1(self.conv1(x)))
        out: Tensor = self.drop_path(self.norm2(self.conv2(inner))).add_(x)
        return out


def conv_stem(in_chans: int, in_dim: int, dim: int) -> nn.Sequential:
    """Two convolutions of stride 2: (batch, in_chans, H, W) -> (batch, dim, H/4, W/4)."""
    return nn.Sequential(
        nn.Conv2d(in_chans, in_dim, 3, stride=2, padding=1, bias=False),
        BatchNorm2d(in_dim, eps=1e-4),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False),
        BatchNorm2d(dim, eps=1e-4),
        nn.ReLU(inplace=True),
    )


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of each block of each stage, from 0 to `last` over all blocks."""
    total = sum(depths)
    rates = iter([last * i / max(total - 1, 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


class Downsample(nn.Module):
    """Norm over channels, then a convolution of stride 2 that doubles them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.reduction = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> (batch, 2 width, half, half)."""
        out: Tensor = self.reduction(self.norm(x))
        return out
