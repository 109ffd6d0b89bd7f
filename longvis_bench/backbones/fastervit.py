"""FasterViT (Hatamizadeh et al., arXiv:2306.06189), in the any-resolution form of its authors' package.

The model is `fastervit.models.faster_vit_any_res` of the package `fastervit` (NVIDIA Source Code License-NC);
this module copies none of its code.  Four stages at strides 4, 8, 16 and 32: residual convolutions in the
first two, window attention in the last two.  In stage 3 each window also has `ct_size` squared carrier
tokens, which attend to those of all windows and so exchange information between windows.

Peculiarities:

- the window is an argument, and at large sizes not the published 7: see `sizes/fastervit.py`.  The position
  bias among carrier tokens is a table of (carrier tokens) squared for each head and block, kept as a buffer.
- if one window covers stage 3 (up to 192 px), there are no carrier tokens; the layer that creates them is
  still computed and gets no gradient.

Workarounds in this module, which do not change the arithmetic:

- the package keeps each forward's position biases, with their autograd graph, as buffers.  That holds memory
  between steps, makes `copy.deepcopy` fail after a forward, and makes `load_state_dict` fail after a forward
  in inference mode.  This module detaches them after each forward, and leaves them out of the state dict,
  because they follow from weights and size.
- its constructor reads a tensor's value (see `LinspaceOnCpu`), and it calls deprecated functions of timm and
  torch, whose warnings do not help users of longvis.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from longvis_bench.backbones.building import LinspaceOnCpu

DERIVED = ("relative_coords_table", "relative_position_index", "relative_bias")
"""Buffers of the package's position modules; all follow from weights and window size."""


def build(
    *,
    resolution: int,
    num_classes: int,
    in_chans: int = 3,
    dim: int,
    in_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: Sequence[int],
    ct_size: int = 2,
    mlp_ratio: float = 4,
    layer_scale: float | None = None,
    do_propagation: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a variant.

    Arguments:
        resolution: pixels per side.
        num_classes: logits.
        in_chans: channels of the image.
        dim: channels of stage 1; each later stage has twice those of the one before.
        in_dim: channels after the stem's first convolution.
        depths: blocks of each stage.
        num_heads: attention heads of each stage; stages 1 and 2 ignore theirs.
        window_size: tokens per window side of each stage, as `sizes.fastervit.plan` gives them for the size;
            stages 1 and 2 ignore theirs.
        ct_size: carrier tokens per window side.
        mlp_ratio: hidden width of the MLPs over the block's width.
        layer_scale: first value of the scales of stages 3 and 4's residual branches; None: no scales.
        do_propagation: whether stage 3's last block adds its carrier tokens to the map.
        drop_path: stochastic depth of the last block; grows linearly from 0 at the first.
    """
    with without_deprecations(), LinspaceOnCpu():
        package: Any = importlib.import_module("fastervit.models.faster_vit_any_res")
        model: nn.Module = package.FasterViT(
            dim=dim,
            in_dim=in_dim,
            depths=list(depths),
            num_heads=list(num_heads),
            window_size=list(window_size),
            ct_size=ct_size,
            mlp_ratio=mlp_ratio,
            resolution=[resolution, resolution],
            drop_path_rate=drop_path,
            in_chans=in_chans,
            num_classes=num_classes,
            layer_scale=layer_scale,
            do_propagation=do_propagation,
            hat=[False, False, True, False],
        )
    for module in _position_modules(model):
        module._non_persistent_buffers_set.update(name for name in DERIVED if name in module._buffers)
        module.register_forward_hook(_let_go)
    return model


def derived_buffers(model: nn.Module) -> set[str]:
    """Names, as in a state dict, of buffers that follow from the weights and the size.

    State dicts of models from `build` lack them; those of the package's own models and official weights have
    them.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if _is_position_module(module)
        for name in DERIVED
        if name in module._buffers
    }


def _position_modules(model: nn.Module) -> Iterator[nn.Module]:
    return filter(_is_position_module, model.modules())


def _is_position_module(module: nn.Module) -> bool:
    """Whether a module is a PosEmbMLPSwinv1D or PosEmbMLPSwinv2D: only these have such a buffer."""
    return "relative_bias" in module._buffers and type(module).__module__.startswith("fastervit.")


def _let_go(module: nn.Module, _inputs: object, _output: object) -> None:
    """Detach the tensors that a position module keeps from their autograd graph."""
    kept: Any = module
    kept.pos_emb = None
    kept.relative_bias = kept.relative_bias.detach()


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Silence the warnings on the package's calls of deprecated functions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Importing from timm.models", category=FutureWarning)
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
        warnings.filterwarnings("ignore", message="Overwriting .* in registry", category=UserWarning)
        yield
