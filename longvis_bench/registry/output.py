"""Build a model for what it is to return: logits, or the maps of its backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longvis_bench.records import Output
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import AnyResolution

if TYPE_CHECKING:
    from torch import nn


def build_output(
    variant: Variant, output: Output, *, resolution: AnyResolution, num_classes: int, in_chans: int = 3
) -> nn.Module:
    """Build a model on the current default device, with random initial weights.

    Arguments:
        variant: from the registry.
        output: "logits" for the model itself, "features" for its backbone without the head.
        resolution: pixels per side, or (height, width).
        num_classes: width of the logits.
        in_chans: channels of the image.

    Returns:
        A module from images to logits (batch, num_classes), or an `ops.feature_maps.Backbone`.

    Raises:
        NoMaps: features are asked of a model that offers none.
        LongvisError: as by `Variant.build`.
    """
    model = variant.build(resolution=resolution, num_classes=num_classes, in_chans=in_chans)
    if output == "logits":
        return model
    from longvis_bench.ops.feature_maps import without_head

    return without_head(model, variant.full_name)
