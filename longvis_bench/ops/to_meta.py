"""A model's shadow on the meta device: the same modules, shapes and no memory."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def on_meta(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and no storage."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)
