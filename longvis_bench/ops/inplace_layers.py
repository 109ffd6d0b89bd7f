"""Activations and normalisations that overwrite their input in inference; nothing else may read that input.

At large resolutions such a layer spends most of its time on the tensor that it allocates: touching a new page
of memory takes longer than computing its values.  With gradients enabled, and while a model is traced or
exported, the layers behave as torch's own, whose parameters, names and results they share.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _may_overwrite() -> bool:
    """Whether the input is not needed again: no gradient, and no graph that must be free of mutations."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not (traced or torch.is_grad_enabled() or torch.compiler.is_exporting())


class GELU(nn.GELU):
    """`nn.GELU`, in place under `no_grad` and `inference_mode`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if not _may_overwrite():
            return super().forward(x)
        out: Tensor = torch.ops.aten.gelu_(x, approximate=self.approximate)
        return out


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, in place in eval mode under `no_grad` and `inference_mode`, on a CPU.

    Other devices have better kernels for it (cuDNN's), and allocators that keep freed memory.  The in-place
    kernel needs input and statistics in one dtype; under autocast they differ.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same."""
        if self.training or not _may_overwrite() or x.device.type != "cpu" or not self._has_dtype(x.dtype):
            return super().forward(x)
        unused = x.new_empty(0)  # would hold the batch statistics
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

    def _has_dtype(self, dtype: torch.dtype) -> bool:
        """Whether the layer has running statistics in this dtype."""
        return self.running_mean is not None and self.running_mean.dtype == dtype
