"""Gradient checkpointing (Chen et al., arXiv:1604.06174) of a model's blocks.

A checkpointed block saves its input only, and the backward runs it again.  Outputs, gradients, random numbers
and the running statistics of batch norms equal those of a model without checkpointing: the second run does
not update the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Blocks(nn.Sequential):
    """Blocks in sequence, each checkpointed if `grad_checkpointing` is set and gradients are enabled."""

    grad_checkpointing = False

    def forward(self, x: Any) -> Any:
        """Input of the first block -> output of the last."""
        for block in self:
            x = (
                _run_checkpointed(block, x)
                if self.grad_checkpointing and torch.is_grad_enabled()
                else block(x)
            )
        return x


def set_grad_checkpointing(model: nn.Module, enable: bool = True) -> None:
    """Turn gradient checkpointing on or off in all `Blocks` of a model."""
    for module in model.modules():
        if isinstance(module, Blocks):
            module.grad_checkpointing = enable


def _run_checkpointed(block: nn.Module, x: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _keep_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Keep batch norms in train mode from updating their running statistics."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
