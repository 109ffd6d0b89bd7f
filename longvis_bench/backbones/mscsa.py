"""MSCSA (Shang et al., arXiv:2308.05872 and 2501.15423): attention that joins all maps of a pyramid.

A module between a host and its head, maps in and maps out.  Every map F_i is resized to the grid of one of
them and all are concatenated, X.  Then `depth` times

    X += Attention(X)    X += IntraFFN(X)    X += Attention(X)    X += FFN(X)

and X is split again: part i gates and shifts F_i, resized to its size,

    F_i' = F_i * hardsigmoid(gate(X_i)) + value(X_i).

The attention's queries come from the grid; its keys and values from the grid at three scales, a half and a
third by strided depthwise convolutions.  It has no encoding of positions.

Names and arithmetic are those of the first author's code for the 2025 paper (3-D segmentation; the layers
take two dimensions as they are).  The hosts, grid, heads and widths of the 2023 paper, and its tables, could
not be had: nothing here claims to be them.

What may surprise:

- it is quadratic in the grid's tokens.  With the grid at stride 16, as the 2025 code has it, 4096 px are
  65,536 queries to 89,316 keys.
- values are wider than keys.  Fused kernels want one width, so that queries and keys are padded with zeros
  where a kernel runs; the scale stays that of the keys' own width.  Zeros are not counted as MACs.
- batch norm everywhere: in train mode an image's result depends on its batch.
- where `channel_ratio` is not 1, the maps that come out have fewer channels than those that go in.

The classifier over a timm host is ours, not the authors': mean over the last map, norm, linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.mscsa import STAGES, check_mscsa


class MSCSA(nn.Module):
    """The module.

    Arguments:
        channels: of each map, first to last.
        depth: blocks.
        channel_ratio: channels that a map has in the module, over those it comes with.
        heads: of the attention.
        head_dim: channels of a head's queries and keys.
        attn_ratio: channels of a head's values over `head_dim`.
        mlp_ratio: hidden width of the feed-forward networks over their width.
        grid_stage: index of the map to whose size all are resized.
        shared: one projection to keys and one to values for all scales, instead of one each.
        drop_path: stochastic depth of the last steps; from 0, two steps at a time.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    def __init__(
        self,
        channels: Sequence[int],
        depth: int = 1,
        channel_ratio: float = 1.0,
        heads: int = 16,
        head_dim: int = 40,
        attn_ratio: float = 2.0,
        mlp_ratio: float = 3.0,
        grid_stage: int = -2,
        shared: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_mscsa(
            channels=channels,
            depth=depth,
            channel_ratio=channel_ratio,
            heads=heads,
            head_dim=head_dim,
            attn_ratio=attn_ratio,
            mlp_ratio=mlp_ratio,
            grid_stage=grid_stage,
            shared=shared,
            drop_path=drop_path,
        )
        self.widths = [int(channel_ratio * width) for width in channels]
        if 0 in self.widths:
            raise IllegalArgument(
                f"channel_ratio {channel_ratio} leaves a map of {list(channels)} no channel."
            )
        self.grid_stage = grid_stage
        self.out_embed = nn.ModuleList([_Embed(c, w) for c, w in zip(channels, self.widths, strict=True)])
        steps = 2 * depth
        rates = [drop_path * i / max(steps - 1, 1) for i in range(steps)]
        value_dim = int(attn_ratio * head_dim)
        self.mscsa_block = nn.Sequential(
            *[
                _Block(self.widths, (heads, head_dim, value_dim), mlp_ratio, shared, rates[2 * j : 2 * j + 2])
                for j in range(depth)
            ]
        )
        self.norm = nn.BatchNorm2d(sum(self.widths))
        self.SIM = nn.ModuleList([_Injection(c, w) for c, w in zip(channels, self.widths, strict=True)])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (batch, channels[i], height, width), one per stage -> the same, fused.

        With a `channel_ratio` of 1 the channels stay; otherwise they are int(channel_ratio channels[i]).
        """
        grid = maps[self.grid_stage].shape[2:]
        pairs = zip(self.out_embed, maps, strict=True)
        x = torch.cat([embed(features, grid) for embed, features in pairs], dim=1)
        parts = self.norm(self.mscsa_block(x)).split(self.widths, dim=1)
        return [inject(f, part) for inject, f, part in zip(self.SIM, maps, parts, strict=True)]


class _Embed(nn.Module):
    """A map at the grid's size and in the module's width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, features: Tensor, grid: torch.Size) -> Tensor:
        out: Tensor = self.proj(_resized(features, grid))
        return out


class _Block(nn.Module):
    """Attention, a feed-forward network per stage, attention, one feed-forward network over all."""

    def __init__(
        self,
        widths: Sequence[int],
        attention: tuple[int, int, int],
        mlp_ratio: float,
        shared: bool,
        rates: Sequence[float],
    ) -> None:
        super().__init__()
        total = sum(widths)
        self.attn1 = CrossScaleAttention(total, *attention, shared)
        self.mlp1 = _IntraFFN(widths, mlp_ratio)
        self.attn2 = CrossScaleAttention(total, *attention, shared)
        self.mlp2 = _FFN(total, mlp_ratio)
        self.drop_path1, self.drop_path2 = (DropPath(rate) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same."""
        x = x + self.drop_path1(self.attn1(x))
        x = x + self.drop_path1(self.mlp1(x))
        x = x + self.drop_path2(self.attn2(x))
        out: Tensor = x + self.drop_path2(self.mlp2(x))
        return out


class CrossScaleAttention(nn.Module):
    """The grid's tokens attend to the grid itself, at a half and at a third of its size.

    Arguments:
        width: channels of the map.
        heads: of the attention.
        head_dim: channels of a head's queries and keys.
        value_dim: channels of a head's values.
        shared: whether the scales share their projections.
    """

    def __init__(self, width: int, heads: int, head_dim: int, value_dim: int, shared: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.shared = heads, head_dim, shared
        keys, values = heads * head_dim, heads * value_dim
        self.norm = nn.BatchNorm2d(width)
        self.downsample_1 = _depthwise(width, kernel=3, stride=2)
        self.downsample_2 = _depthwise(width, kernel=5, stride=3)
        self.q = _project(width, keys)
        self.k = _project(width, keys) if shared else nn.ModuleList(_project(width, keys) for _ in range(3))
        self.v = (
            _project(width, values) if shared else nn.ModuleList(_project(width, values) for _ in range(3))
        )
        self.v_conv = nn.Sequential(nn.Hardswish(), nn.Conv2d(values, values, 3, padding=1, groups=values))
        self.attn_norm = nn.BatchNorm2d(values)
        self.proj = nn.Sequential(nn.Conv2d(values, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of map) -> the same."""
        x = self.norm(x)
        scales = [x, self.downsample_1(x), self.downsample_2(x)]
        keys = [project(y) for project, y in zip(self._each(self.k), scales, strict=True)]
        values = [project(y) for project, y in zip(self._each(self.v), scales, strict=True)]
        q, k, v = (self._heads(maps) for maps in ([self.q(x)], keys, values))
        mixed = attend(q, k, v, scale=self.head_dim**-0.5)
        grid = mixed.mT.reshape(len(x), -1, *x.shape[2:])
        out: Tensor = self.proj(F.hardswish(self.attn_norm(grid + self.v_conv(values[0]))))
        return out

    def _each(self, projections: nn.Module) -> Sequence[nn.Module]:
        return [projections] * 3 if self.shared else list(projections.children())

    def _heads(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (batch, heads x width, height, side) -> all their tokens (batch, heads, tokens, width)."""
        return torch.cat([torch.unflatten(m.flatten(2), 1, (self.heads, -1)).mT for m in maps], dim=2)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v of values that are wider or narrower than keys.

    Fused kernels want one width: the narrower get zeros, which change no product.  On the meta device nothing
    runs, so nothing is padded, and counts are those of the definition.

    Arguments:
        query: (batch, heads, tokens, head_dim).
        key: (batch, heads, keys, head_dim).
        value: (batch, heads, keys, value_dim).
        scale: of the scores.

    Returns:
        (batch, heads, tokens, value_dim).
    """
    own, other = value.shape[-1], query.shape[-1]
    if own == other or query.is_meta:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    query, key = (F.pad(t, (0, max(own - other, 0))) for t in (query, key))
    value = F.pad(value, (0, max(other - own, 0)))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)[..., :own]


class _IntraFFN(nn.Module):
    """One feed-forward network per stage, over its own channels."""

    def __init__(self, widths: Sequence[int], ratio: float) -> None:
        super().__init__()
        self.widths = list(widths)
        self.pipelines = nn.ModuleList([_ffn(width, ratio) for width in widths])

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.pipelines, torch.split(x, self.widths, dim=1), strict=True)
        return torch.cat([pipeline(part) for pipeline, part in parts], dim=1)


class _FFN(nn.Module):
    """One feed-forward network over the channels of all stages."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.pipeline = _ffn(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pipeline(x)
        return out


class _Injection(nn.Module):
    """What the module found for one map, brought into it: its values gated, and shifted."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.local_embedding = nn.Identity() if channels == width else _project(channels, width)
        self.global_embedding = _project(width, width)
        self.global_act = _project(width, width)

    def forward(self, features: Tensor, part: Tensor) -> Tensor:
        size = features.shape[2:]
        gate = _resized(F.hardsigmoid(self.global_act(part)), size)
        value = _resized(self.global_embedding(part), size)
        out: Tensor = self.local_embedding(features) * gate + value
        return out


def _ffn(width: int, ratio: float) -> nn.Sequential:
    """Positions 4 and 5 have no weights; the last layer's is 6, as the authors number them."""
    hidden = int(width * ratio)
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.Conv2d(width, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
        nn.ReLU6(),
        nn.Identity(),
        nn.Conv2d(hidden, width, 1),
    )


def _project(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))


def _depthwise(width: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(
        width, width, kernel, stride=stride, padding=kernel // 2, groups=width, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    if features.shape[2:] == size:
        return features
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


class MSCSAOverHost(nn.Module):
    """A classifier: a timm host, the module over its last four maps, and a head of ours.

    Arguments:
        resolution: pixels per side, or (height, width); given to hosts that ask for it.
        num_classes: logits.
        host: timm's name of a pyramid, such as "pvt_v2_b1".
        host_arguments: passed to timm with it.
        attach: False leaves the module out: the host with the same head, to compare with.
        in_chans: channels of the image.
        arguments: those of `MSCSA`.

    Raises:
        IllegalArgument: the host has no four maps of falling size, or the arguments do not fit together.
    """

    map_strides = (4, 8, 16, 32)
    head_modules = ("norm", "head")

    def __init__(
        self,
        *,
        resolution: AnyResolution | None = None,
        num_classes: int,
        host: str,
        host_arguments: Mapping[str, Any] | None = None,
        attach: bool = True,
        in_chans: int = 3,
        grid_stage: int = -1,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.backbone, channels = _host(host, {"in_chans": in_chans, **(host_arguments or {})})
        self.mscsa = MSCSA(channels, grid_stage=grid_stage, **arguments) if attach else None
        width = self.mscsa.widths[-1] if self.mscsa is not None else channels[-1]
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> the fused maps at strides 4, 8, 16 and 32."""
        maps: list[Tensor] = self.backbone(image)[-STAGES:]
        return maps if self.mscsa is None else self.mscsa(maps)

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """The fused maps, as of `forward_features`."""
        return self.forward_features(image)

    def forward_head(self, maps: Sequence[Tensor]) -> Tensor:
        """Fused maps -> logits (batch, classes)."""
        logits: Tensor = self.head(self.norm(maps[-1].mean((2, 3))))
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> logits (batch, classes)."""
        return self.forward_head(self.forward_features(image))


def _host(name: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """The pyramid of a timm name, and the channels of its last four maps."""
    if not timm.is_model(name):
        raise IllegalArgument(f"host must be a model of timm with a pyramid, like 'pvt_v2_b1', not {name!r}.")
    try:
        with LinspaceOnCpu():
            host: Any = timm.create_model(name, pretrained=False, features_only=True, **arguments)
        strides = list(host.feature_info.reduction())[-STAGES:]
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise IllegalArgument(f"timm gives no pyramid of {name}: {error}.") from error
    if strides != [4, 8, 16, 32]:
        raise IllegalArgument(f"host must have maps at strides 4, 8, 16 and 32; {name} has {strides}.")
    return host, list(host.feature_info.channels())[-STAGES:]
