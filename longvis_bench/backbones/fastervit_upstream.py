"""FasterViT in the authors' package, `name@upstream`, as an alternative to the native implementation.

The model is `fastervit.models.faster_vit_any_res` of the package `fastervit` (NVIDIA Source Code License-NC);
this module copies none of its code.  Unlike the native implementation it keeps the position bias among
carrier tokens, a table of (carrier tokens) squared for each head and block, as a buffer: 24 GiB for
FasterViT-4 at 4096 px with the published windows of 7.

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
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.backbones.fastervit import DERIVED, is_derived
from longvis_bench.errors import MissingDependency
from longvis_bench.sizes.fastervit import check_fastervit

INSTALL = "python -m pip install fastervit"


def fastervit(
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
    """FasterViT as its authors' package builds it; the arguments are those of the native `FasterViT`.

    Raises:
        IllegalArgument: the arguments do not fit together.
        MissingDependency: the package is not installed.
    """
    check_fastervit(
        dim=dim,
        in_dim=in_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        ct_size=ct_size,
        mlp_ratio=mlp_ratio,
        layer_scale=layer_scale,
        do_propagation=do_propagation,
        in_chans=in_chans,
        drop_path=drop_path,
    )
    if importlib.util.find_spec("fastervit") is None:
        raise MissingDependency("fastervit", "fastervit@upstream", INSTALL)
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
    """Names, as in a state dict, of buffers that follow from the weights and the size, and of second names.

    State dicts of models from `fastervit` lack the buffers; those of the package's own models and official
    weights have them.
    """
    second = {name for name in model.state_dict() if is_derived(name)}
    return second | {
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
