"""MambaVision (Hatamizadeh and Kautz, arXiv:2407.08083): convolutions, then windows of scans and attention.

Four stages at strides 4, 8, 16 and 32.  Stages 1 and 2 are residual convolutions.  Stages 3 and 4 partition
the grid into windows; the first half of their blocks mixes the tokens of a window by a selective scan, and
the second half by self-attention, which adds global context within the window.

The mixer replaces Mamba's causal convolution by a symmetric one, since an image has no direction, and its
gate by a branch without scan, which is concatenated:

    y_1 = Scan(SiLU(Conv(Linear(x))))      y_2 = SiLU(Conv(Linear(x)))      y = Linear(Concat(y_1, y_2))

each branch half as wide as the block.

Peculiarities of the authors' code, which this module reproduces:

- windows neither overlap nor shift: tokens of different windows meet only through the stride-2 convolution
  between stages 3 and 4 and in the final mean.  The grid is padded with zeros to whole windows, and the scan
  and the attention process padding like image tokens; at 512 px padding adds 72 % to stage 3's tokens.
- the bias of the step-size projection is added twice: by the projection and as the scan's `delta_bias`.
- the initialisation treats that projection as any other (normal weights, zero bias), so Mamba's own
  initialisation of step sizes between 0.001 and 0.1 is overwritten.
- layer scale, where it is on, acts in stages 3 and 4 only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.ops.grad_checkpointing import Blocks, set_grad_checkpointing
from longvis_bench.ops.inplace_layers import GELU, BatchNorm2d
from longvis_bench.ops.residual_convs import ConvResidual, conv_stem, drop_path_rates
from longvis_bench.ops.selective_scan.operator import selective_scan
from longvis_bench.ops.windows import pad_to_whole, window_partition, window_reverse
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.mambavision import check_mambavision

if TYPE_CHECKING:
    from jaxtyping import Float

STATES = 8
"""Numbers of state per channel of the scan."""
KERNEL = 3
"""Kernel size of the mixer's convolutions, in tokens."""


class MambaVision(nn.Module):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); changes nothing in the model.
        num_classes: logits.
        dim: channels of stage 1; each later stage has twice those of the one before.
        in_dim: channels after the stem's first convolution.
        depths: blocks of each of the four stages.
        window_size: tokens per window side of each stage; stages 1 and 2 have no windows and ignore theirs.
        mlp_ratio: hidden width of the MLPs over the block's width.
        num_heads: attention heads of each stage; stages 1 and 2 ignore theirs.
        layer_scale: first value of the scales of stages 3 and 4's residual branches; None: no scales.
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
        resolution: AnyResolution | None = None,
        num_classes: int,
        dim: int,
        in_dim: int,
        depths: Sequence[int],
        window_size: Sequence[int],
        mlp_ratio: float = 4,
        num_heads: Sequence[int],
        layer_scale: float | None = None,
        in_chans: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_mambavision(
            dim=dim,
            in_dim=in_dim,
            depths=depths,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            num_heads=num_heads,
            layer_scale=layer_scale,
            in_chans=in_chans,
            drop_path=drop_path,
        )
        widths = [dim * 2**i for i in range(4)]
        first, second, third, fourth = drop_path_rates(drop_path, depths)
        self.stem = conv_stem(in_chans, in_dim, dim)
        self.stages = nn.ModuleList(
            [
                ConvStage(widths[0], first),
                ConvStage(widths[1], second),
                WindowStage(widths[2], num_heads[2], window_size[2], mlp_ratio, layer_scale, third),
                WindowStage(widths[3], num_heads[3], window_size[3], mlp_ratio, layer_scale, fourth),
            ]
        )
        self.downsamples = nn.ModuleList(
            [nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=False) for w in widths[:3]]
        )
        self.norm = BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], num_classes)
        self.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep only the blocks' inputs, and recompute the rest in the backward pass."""
        set_grad_checkpointing(self, enable)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised map (batch, 8 dim, height/32, width/32)."""
        x: Tensor = self.stem(image)
        for stage, downsample in zip(self.stages, self.downsamples, strict=False):
            x = downsample(stage(x))
        out: Tensor = self.norm(self.stages[-1](x))
        return out

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, channels, height, width) of each stage."""
        maps: list[Tensor] = [self.stages[0](self.stem(image))]
        for stage, downsample in zip(self.stages[1:], self.downsamples, strict=True):
            maps.append(stage(downsample(maps[-1])))
        return maps

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


class ConvStage(nn.Module):
    """Stages 1 and 2: residual convolutions."""

    def __init__(self, width: int, drop_rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = Blocks(*[ConvResidual(width, rate, "tanh") for rate in drop_rates])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        out: Tensor = self.blocks(x)
        return out


class WindowStage(nn.Module):
    """Stages 3 and 4: the grid in windows, scans first, then attention."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_rates: Sequence[float],
    ) -> None:
        super().__init__()
        self.window = window
        scans = math.ceil(len(drop_rates) / 2)
        mixers = [
            MambaMixer(width) if i < scans else SelfAttention(width, heads) for i in range(len(drop_rates))
        ]
        self.blocks = Blocks(
            *[
                Block(width, mixer, mlp_ratio, layer_scale, rate)
                for mixer, rate in zip(mixers, drop_rates, strict=True)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        height, width = x.shape[2:]
        grid = pad_to_whole(x.permute(0, 2, 3, 1), self.window)
        counts = (grid.shape[1] // self.window, grid.shape[2] // self.window)
        tokens = self.blocks(window_partition(grid, counts))
        grid = window_reverse(tokens, counts, (self.window, self.window))
        return grid[:, :height, :width].permute(0, 3, 1, 2)


class Block(nn.Module):
    """x' = x + Mixer(Norm(x)); x'' = x' + MLP(Norm(x')), each branch with an optional layer scale."""

    def __init__(
        self, width: int, mixer: nn.Module, mlp_ratio: float, layer_scale: float | None, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = _scale(width, layer_scale)
        self.gamma_2 = _scale(width, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, tokens, width) -> the same."""
        x = x + self._branch(self.mixer(self.norm1(x)), self.gamma_1)
        return x + self._branch(self.mlp(self.norm2(x)), self.gamma_2)

    def _branch(self, x: Tensor, gamma: nn.Parameter | None) -> Tensor:
        out: Tensor = self.drop_path(x if gamma is None else gamma * x)
        return out


class MambaMixer(nn.Module):
    """MambaVision's mixer: one half of the channels scanned, the other half only convolved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, self.rank = width // 2, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, width, bias=False)
        self.conv1d_x = nn.Conv1d(half, half, KERNEL, padding=KERNEL // 2, groups=half, bias=False)
        self.conv1d_z = nn.Conv1d(half, half, KERNEL, padding=KERNEL // 2, groups=half, bias=False)
        self.x_proj = nn.Linear(half, self.rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(self.rank, half)
        self.A_log = nn.Parameter(torch.arange(1, STATES + 1).float().log().repeat(half, 1))
        self.D = nn.Parameter(torch.ones(half))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(windows, tokens, width) -> the same."""
        x, z = F.silu(self.convolve(self.in_proj(tokens))).chunk(2, dim=-1)
        out: Tensor = self.out_proj(torch.cat([self.scan(x), z], dim=-1))
        return out

    def convolve(self, xz: Tensor) -> Tensor:
        """Both branches' convolutions at once, along the tokens: (windows, tokens, width) -> the same.

        As a convolution of an image one token high whose channels come last in memory, nothing is transposed.
        """
        kernels = torch.cat([self.conv1d_x.weight, self.conv1d_z.weight]).unsqueeze(2)
        image = xz.mT.unsqueeze(2)
        return F.conv2d(image, kernels, padding=(0, KERNEL // 2), groups=xz.shape[-1]).squeeze(2).mT

    def scan(self, x: Tensor) -> Tensor:
        """Scan (windows, tokens, width / 2) with step size, B and C computed from x itself."""
        dt, B, C = self.x_proj(x).split([self.rank, STATES, STATES], dim=-1)
        delta, bias = self.dt_proj(dt), self.dt_proj.bias.float()
        A = -torch.exp(self.A_log.float())
        return selective_scan(x.mT, delta.mT, A, B.mT, C.mT, self.D.float(), bias).mT


class SelfAttention(nn.Module):
    """Softmax(Q K^T / sqrt(d)) V within each window."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(windows, tokens, width) -> the same."""
        q, k, v = torch.unflatten(self.qkv(tokens), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


def _scale(width: int, first: float | None) -> nn.Parameter | None:
    return None if first is None else nn.Parameter(first * torch.ones(width))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_OFFICIAL = (
    (r"^patch_embed\.conv_down\.", "stem."),
    (r"^levels\.(\d)\.downsample\.reduction\.0\.", r"downsamples.\1."),
    (r"^levels\.(\d)\.", r"stages.\1."),
)


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Rename the tensors of NVIDIA's MambaVision weights to the names of this module, like timm's functions.

    Arguments:
        state_dict: tensors by name; tensors without the authors' names are returned unchanged.
        model: unused; part of timm's signature.

    Returns:
        Tensors by this module's names.
    """
    official = any(name.startswith("patch_embed.conv_down.") for name in state_dict) and any(
        re.match(r"levels\.[23]\.blocks\.0\.mixer\.A_log$", name) for name in state_dict
    )
    if not official:
        return dict(state_dict)
    return {_our_name(name): tensor for name, tensor in state_dict.items()}


def _our_name(official: str) -> str:
    name = official
    for pattern, replacement in _OFFICIAL:
        name = re.sub(pattern, replacement, name)
    return name
