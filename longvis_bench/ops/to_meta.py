"""A copy of a model on the meta device: the same modules and shapes, no memory."""

from __future__ import annotations

from torch import nn

from longvis_bench.ops.model_tensors import copy_with


def on_meta(model: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes and no storage."""
    return copy_with(model, lambda tensor: tensor.to("meta"))
