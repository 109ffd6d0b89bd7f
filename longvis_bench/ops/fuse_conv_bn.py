"""Fold batch norms into the convolutions before them, for inference, in any model.

In eval mode a batch norm is a fixed scale and shift per channel, so a convolution whose output only a batch
norm reads can include both in its weights, which saves one pass over the activations.  One forward on the
meta device, where tensors have shapes and no memory, finds these convolutions; no model needs to name them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longvis_bench.ops.inplace_layers import BatchNorm2d
from longvis_bench.ops.to_meta import on_meta
from longvis_bench.resolution import Resolution, sides

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm2d)
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Pair(NamedTuple):
    """A convolution and the only reader of its output, a batch norm, by their paths in the model."""

    convolution: str
    norm: str


def fold_batch_norms(model: nn.Module, resolution: Resolution, in_chans: int = 3) -> list[Pair]:
    """Fold every batch norm that can be folded, in place.

    Arguments:
        model: in eval mode, its weights loaded, in float32.
        resolution: pixels per side of the images.
        in_chans: channels of the images.

    Returns:
        The folded pairs; their batch norms are identities now.

    Raises:
        ValueError: the model is in train mode, where batch norms change.
    """
    if model.training:
        raise ValueError("batch norms can be folded in eval mode only: in training they learn.")
    pairs = find_pairs(model, resolution, in_chans)
    for pair in pairs:
        convolution, norm = model.get_submodule(pair.convolution), model.get_submodule(pair.norm)
        assert isinstance(convolution, CONVOLUTIONS)
        assert isinstance(norm, NORMS)
        _fold(convolution, norm)
        parent, _, name = pair.norm.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    return pairs


def _fold(convolution: Convolution, norm: Norm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    convolution.weight, convolution.bias = weight, bias


def find_pairs(model: nn.Module, resolution: Resolution, in_chans: int = 3) -> list[Pair]:
    """Convolutions called once whose output goes to a batch norm called once, and to no other operator."""
    shadow = on_meta(model).eval()
    watch = _Watch()
    handles = []
    for name, module in shadow.named_modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(watch.convolved(name)))
        elif type(module) in NORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(watch.normed(name)))
    try:
        with torch.enable_grad(), watch:  # without gradients some modules overwrite their input
            shadow(torch.empty(1, in_chans, *sides(resolution), device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return watch.pairs()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which convolution made a tensor and which batch norm read it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[str, Tensor]] = {}  # keeps the tensor, so that no other gets its id
        self._reads: Counter[int] = Counter()
        self._calls: Counter[str] = Counter()
        self._read_by: dict[int, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in self._made:
                self._reads[id(leaf)] += 1
        return func(*args, **(kwargs or {}))

    def convolved(self, name: str) -> Any:
        """A hook that records the output of a convolution."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._calls[name] += 1
            self._made[id(output)] = (name, output)

        return hook

    def normed(self, name: str) -> Any:
        """A hook that records the input of a batch norm."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._calls[name] += 1
            if id(inputs[0]) in self._made:
                self._read_by[id(inputs[0])] = name

        return hook

    def pairs(self) -> list[Pair]:
        """Pairs whose two modules are each called once, and whose norm is the only reader."""
        found = []
        for tensor, norm in self._read_by.items():
            pair = Pair(self._made[tensor][0], norm)
            if self._reads[tensor] == 1 and all(self._calls[name] == 1 for name in pair):
                found.append(pair)
        return found
