"""What `longvis check` finds wrong with the maps of a model: a sentence, or None."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longvis_bench.measure.validity.outputs import Maps, check_outputs, difference, first
from longvis_bench.ops.feature_maps import Backbone

BATCH_TOLERANCE = 1e-3
"""Largest accepted difference of an image's map alone and in a batch, as a share of its largest value."""


def maps_fault(backbone: Backbone, images: Tensor, *, values: bool) -> str | None:
    """Why an image's maps depend on its batch.

    Arguments:
        backbone: in eval mode.
        images: (2, channels, height, width).
        values: False on the meta device, where there are shapes only.

    Raises:
        InvalidOutput: the maps have not the shapes of their strides, or are not finite.
    """
    form = Maps(backbone.strides, (images.shape[2], images.shape[3]))
    with torch.inference_mode():
        if not values:
            form.parts(backbone(images), 2)
            return None
        together = check_outputs(backbone(images), 2, form)
        change = difference(check_outputs(backbone(images[:1]), 1, form), first(together))
    if change <= BATCH_TOLERANCE:
        return None
    return f"an image's maps change by {change:.1e} in a batch; look for reshapes that mix it."


def gradient_fault(classifier: nn.Module, backbone: Backbone, images: Tensor) -> str | None:
    """Why a map takes no part in training, or which parameter is the head's.

    Arguments:
        classifier: the model.
        backbone: of another copy of it.
        images: (batch, channels, height, width).
    """
    classifier.train()(images).square().mean().backward()
    maps = backbone.train()(images)
    cut = [stride for stride, one in zip(backbone.strides, maps, strict=True) if not one.requires_grad]
    if cut:
        return f"no gradient reaches the map of stride {cut[0]}; is something detached?"
    torch.stack([one.abs().mean() for one in maps]).sum().backward()  # type: ignore[no-untyped-call]
    live = {name for name, p in classifier.named_parameters() if p.grad is not None}
    unused = [name for name, p in backbone.backbone.named_parameters() if p.grad is None and name in live]
    if not unused:
        return None
    return f"the maps do not need {unused[0]}; name what only the logits need in head_modules."
