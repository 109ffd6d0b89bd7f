"""VMamba (Liu et al., arXiv:2401.10166): a pyramid whose mixers scan the whole map in four directions.

Stages at strides 4, 8, 16 and 32.  The mixer, SS2D, projects and convolves the map, reads it row by row,
column by column and both backwards, runs a selective scan of its own along each of the four sequences, puts
the results back where their tokens lie, and adds them:

    y = out_proj(norm(sum of four scans(SiLU(conv(in_proj(x))))))

Two forms, as the authors' code names them: `v05_noz`, that of the published models (one state per channel, no
gate, an MLP after each mixer), and `v0`, the first one (16 states, a gate z, no MLP); `v05` is `v05_noz` with
the gate.  The four directions are one scan of this package with four groups.

What may surprise:

- the scan is no matrix product: its FLOPs stand in a column of their own, and published FLOPs include them.
- strided convolutions round up, so that every size from 32 px is legal and odd sides are kept.
- the scan's arithmetic is float32 in every dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
from longvis_bench.ops.feature_maps import stage_maps
from longvis_bench.ops.grad_checkpointing import Blocks, set_grad_checkpointing
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.ops.selective_scan.operator import selective_scan
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.vmamba import check_vmamba

DIRECTIONS = 4
FIXED: dict[str, tuple[object, ...]] = {
    "patch_size": (4,),
    "ssm_dt_rank": ("auto",),
    "ssm_act_layer": ("silu",),
    "ssm_drop_rate": (0.0,),
    "ssm_init": ("v0",),
    "mlp_act_layer": ("gelu",),
    "mlp_drop_rate": (0.0,),
    "gmlp": (False,),
    "norm_layer": ("ln", "ln2d"),
    "use_checkpoint": (False,),
    "posembed": (False,),
}
"""Arguments of the authors that have one value here; both norms are LayerNorm over the channels."""


class VMamba(nn.Module):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); changes nothing in the model.
        num_classes: logits.
        depths: blocks of each stage.
        dims: channels of each stage, or of the first, each later one having twice those before it.
        ssm_d_state: numbers of state per channel of a scan.
        ssm_ratio: channels of the scans over those of the block.
        ssm_conv: side of the depthwise convolution before the scans.
        ssm_conv_bias: whether it has a bias.
        forward_type: "v05_noz", "v05" or "v0"; all but the first have a gate.
        mlp_ratio: hidden width of the MLPs over the block's; 0: no MLP.
        patch_norm: whether the patch embedding normalises.
        patchembed_version: "v1", one convolution of stride 4, or "v2", two of stride 2.
        downsample_version: "v1", four tokens concatenated and projected, or "v3", a convolution of stride 2.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        fixed: arguments of the authors' code with the one value that `FIXED` names.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    head_modules = ("classifier",)

    def __init__(
        self,
        *,
        resolution: AnyResolution | None = None,
        num_classes: int,
        depths: Sequence[int],
        dims: Sequence[int] | int,
        ssm_d_state: int = 1,
        ssm_ratio: float = 1.0,
        ssm_conv: int = 3,
        ssm_conv_bias: bool = False,
        forward_type: str = "v05_noz",
        mlp_ratio: float = 4.0,
        patch_norm: bool = True,
        patchembed_version: str = "v2",
        downsample_version: str = "v3",
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("vmamba", fixed, FIXED)
        require_fixed(
            "vmamba", {"patchembed_version": patchembed_version}, {"patchembed_version": ("v1", "v2")}
        )
        require_fixed(
            "vmamba", {"downsample_version": downsample_version}, {"downsample_version": ("v1", "v3")}
        )
        check_vmamba(
            dims=dims,
            depths=depths,
            ssm_d_state=ssm_d_state,
            ssm_ratio=ssm_ratio,
            ssm_conv=ssm_conv,
            forward_type=forward_type,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        widths = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        self.patch_embed = _patch_embed(patchembed_version, in_chans, widths[0], patch_norm)
        rates = iter([drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        scan = (ssm_d_state, ssm_ratio, ssm_conv, ssm_conv_bias, forward_type)
        self.layers = nn.ModuleList(
            [
                _Stage(
                    [_Block(width, SS2D(width, *scan), mlp_ratio, next(rates)) for _ in range(depth)], down
                )
                for width, depth, down in zip(
                    widths, depths, _downsamples(downsample_version, widths), strict=True
                )
            ]
        )
        self.classifier = nn.ModuleDict(
            {"norm": _ChannelNorm(widths[-1]), "head": nn.Linear(widths[-1], num_classes)}
        )
        self.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and compute the rest again in the backward."""
        set_grad_checkpointing(self, enable)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised map (batch, channels, height/32, width/32)."""
        x: Tensor = self.patch_embed(image)
        for stage in self.layers:
            x = stage(x)
        out: Tensor = self.classifier["norm"](x)
        return out

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides of the maps, in pixels."""
        return tuple(4 * 2**i for i in range(len(self.layers)))

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, channels, height, width) of each stage."""
        return stage_maps(self.patch_embed(image), self.layers)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (batch, channels, height, width) -> logits (batch, classes), or its mean (batch, channels)."""
        pooled = features.mean((2, 3))
        logits: Tensor = pooled if pre_logits else self.classifier["head"](pooled)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> logits (batch, classes)."""
        return self.forward_head(self.forward_features(image))


class _Stage(nn.Module):
    """Blocks, then the downsampling to the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = Blocks(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(self.blocks(x))
        return out


class _Block(nn.Module):
    """x' = x + SS2D(norm(x)); x'' = x' + MLP(norm(x')), if there is an MLP."""

    def __init__(self, width: int, mixer: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm = _ChannelNorm(width)
        self.op = mixer
        self.drop_path = DropPath(drop_path)
        self.mlp = None
        if mlp_ratio:
            self.norm2 = _ChannelNorm(width)
            self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=GELU)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.mlp is None:
            return x
        tokens = self.mlp(self.norm2(x).permute(0, 2, 3, 1))
        out: Tensor = x + self.drop_path(tokens.permute(0, 3, 1, 2))
        return out


class SS2D(nn.Module):
    """The mixer: scans of the map in four directions.

    Arguments:
        width: channels of the map.
        states: numbers of state per channel.
        ratio: channels of the scans over `width`.
        kernel: side of the depthwise convolution.
        conv_bias: whether that has a bias.
        form: "v05_noz", "v05" or "v0".
    """

    def __init__(
        self, width: int, states: int, ratio: float, kernel: int, conv_bias: bool, form: str
    ) -> None:
        super().__init__()
        inner, self.states, self.rank = int(ratio * width), states, math.ceil(width / 16)
        self.gated = form != "v05_noz"
        self.in_proj = nn.Linear(width, inner * (2 if self.gated else 1), bias=False)
        self.conv2d = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=conv_bias)
        outputs = self.rank + 2 * states
        if form == "v0":
            self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, outputs, inner))
            self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, self.rank))
        else:
            self.x_proj = _Weight(DIRECTIONS * outputs, inner)
            self.dt_projs = _Weight(DIRECTIONS * inner, self.rank)
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.A_logs = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(DIRECTIONS * inner, 1))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.out_norm = _ChannelNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Projections to dt, B and C (4, rank + 2 states, inner), and of dt (4, inner, rank)."""
        if hasattr(self, "x_proj_weight"):
            return self.x_proj_weight, self.dt_projs_weight
        pair = (self.x_proj.weight, self.dt_projs.weight)
        first, second = (torch.unflatten(weight, 0, (DIRECTIONS, -1)) for weight in pair)
        return first, second

    def reset_steps(self) -> None:
        """Mamba's first values of the step sizes: 0.001 to 0.1, evenly in logarithms."""
        for weight in self.weights():
            nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)
        low, high = math.log(0.001), math.log(0.1)
        steps = torch.exp(torch.rand_like(self.dt_projs_bias) * (high - low) + low)
        with torch.no_grad():
            self.dt_projs_bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        inner: Tensor = self.in_proj(x.permute(0, 2, 3, 1))
        z = None
        if self.gated:
            inner, z = inner.chunk(2, dim=-1)
        y = self.out_norm(self.scan(F.silu(self.conv2d(inner.permute(0, 3, 1, 2)))))
        tokens = y.permute(0, 2, 3, 1)
        out: Tensor = self.out_proj(tokens if z is None else tokens * F.silu(z))
        return out.permute(0, 3, 1, 2)

    def scan(self, x: Tensor) -> Tensor:
        """The sum of four scans: (batch, inner, height, width of map) -> the same, in x's dtype."""
        height, width = x.shape[2:]
        sequences = self.read(x)
        project, expand = self.weights()
        dt, B, C = torch.split(project @ sequences, [self.rank, self.states, self.states], dim=2)
        delta, A = expand @ dt, -torch.exp(self.A_logs.float())
        y = selective_scan(
            sequences.flatten(1, 2),
            delta.flatten(1, 2),
            A,
            B,
            C,
            self.Ds.float(),
            self.dt_projs_bias.flatten().float(),
        )
        forth, back = torch.unflatten(y.to(x.dtype), 1, (2, 2, -1)).unbind(1)
        rows, columns = (forth + back.flip(-1)).unbind(1)
        return torch.unflatten(rows, 2, (height, width)) + torch.unflatten(columns, 2, (width, height)).mT

    def read(self, x: Tensor) -> Tensor:
        """A map as four sequences (batch, 4, inner, tokens): rows, columns, and both from the end."""
        both = torch.stack([x.flatten(2), x.mT.flatten(2)], dim=1)
        return torch.cat([both, both.flip(-1)], dim=1)


class _Weight(nn.Module):
    """A matrix under a name of its own."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Merge(nn.Module):
    """Four neighbouring tokens as one: (batch, c, height, width) -> (batch, 4 c, half, half), rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return torch.cat(corners, dim=1)


class _ChannelLinear(nn.Linear):
    """A Linear over the channels of (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _patch_embed(version: str, in_chans: int, width: int, norm: bool) -> nn.Sequential:
    """To stride 4; positions without weights keep the authors' numbers."""

    def normalise(channels: int) -> nn.Module:
        return _ChannelNorm(channels) if norm else nn.Identity()

    if version == "v1":
        return nn.Sequential(nn.Conv2d(in_chans, width, 4, stride=4), nn.Identity(), normalise(width))
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1),
        nn.Identity(),
        normalise(width // 2),
        nn.Identity(),
        GELU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        nn.Identity(),
        normalise(width),
    )


def _downsamples(version: str, widths: Sequence[int]) -> list[nn.Module]:
    """One per stage; after the last there is none."""
    return [*(_downsample(version, width, wider) for width, wider in pairwise(widths)), nn.Identity()]


def _downsample(version: str, width: int, wider: int) -> nn.Module:
    if version == "v1":
        return nn.Sequential(_Merge(), _ChannelNorm(4 * width), _ChannelLinear(4 * width, wider, bias=False))
    convolution = nn.Conv2d(width, wider, 3, stride=2, padding=1)
    return nn.Sequential(nn.Identity(), convolution, nn.Identity(), _ChannelNorm(wider))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, SS2D):
        module.reset_steps()
