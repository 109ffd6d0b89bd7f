"""The frame of classifiers over maps with channels last: embedding, stages, norm, mean and head."""

from __future__ import annotations

from torch import Tensor, nn

from longvis_bench.ops.feature_maps import channels_first, stage_maps
from longvis_bench.ops.grad_checkpointing import set_grad_checkpointing


class MapClassifier(nn.Module):
    """Base of classifiers that define `patch_embed`, `layers`, `norm` and `head`.

    Stages have `blocks` and a `downsample` after them.  A family whose stages are called or joined otherwise
    overrides `forward_features`, `forward_maps` and `map_strides`.
    """

    head_modules = ("norm", "head")

    patch_embed: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and compute the rest again in the backward."""
        set_grad_checkpointing(self, enable)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised map (batch, height/32, width/32, channels)."""
        x: Tensor = self.patch_embed(image)
        for stage in self.layers:
            x = stage(x)
        out: Tensor = self.norm(x)
        return out

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides of the maps, in pixels."""
        return tuple(4 * 2**i for i in range(len(self.layers)))

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> a map (batch, channels, height, width) of each stage."""
        return channels_first(stage_maps(self.patch_embed(image), self.layers))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (batch, height, width, channels) -> logits (batch, classes), or its mean (batch, channels)."""
        pooled = features.mean((1, 2))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> logits (batch, classes)."""
        return self.forward_head(self.forward_features(image))
