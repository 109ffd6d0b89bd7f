"""Modules that overwrite their input where no gradient will ask for it: nothing else may read that input.

At large resolutions most of what a normalisation or an activation costs is the tensor it makes: a page of
fresh memory takes longer to get than its numbers take to compute.  Where gradients are on these are torch's
own modules, whose parameters, names and results they have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GELU(nn.GELU):
    """`nn.GELU`, in place under `no_grad` and `inference_mode`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if torch.is_grad_enabled():
            return super().forward(x)
        out: Tensor = torch.ops.aten.gelu_(x, approximate=self.approximate)
        return out


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, in place in eval mode under `no_grad` and `inference_mode`, on a CPU.

    Other devices have their own kernels for it (cuDNN's), and allocators that keep freed memory at hand.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same."""
        if self.training or torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        unused = x.new_empty(0)  # where the statistics of a batch would go
        torch.native_batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=False,
            momentum=0.0,
            eps=self.eps,
            out=(x, unused, unused),
        )
        return x
