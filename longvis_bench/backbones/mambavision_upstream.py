"""MambaVision in the authors' package, `name@upstream`, as an alternative to the native implementation.

The package (`mambavision`, NVIDIA Source Code License-NC) imports the CUDA kernels of mamba-ssm on its first
line, so it cannot be imported without them.  This module provides a stub of mamba-ssm whose scan is
`longvis_bench.ops.selective_scan.operator`; the stub is in `sys.modules` only during the import.  If
mamba-ssm is installed and works, its kernel handles CUDA tensors, and the operator all others, because the
kernel supports neither the CPU nor the meta device, on which operations are counted.
`model.scan_backend(device)` returns the name of the backend in use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.errors import MissingDependency
from longvis_bench.ops.selective_scan.operator import backend_for, selective_scan
from longvis_bench.sizes.mambavision import check_mambavision

INSTALL = "python -m pip install mambavision"
KERNEL = "mamba_ssm.ops.selective_scan_interface"


def mambavision(
    *,
    resolution: int,
    num_classes: int,
    in_chans: int = 3,
    dim: int,
    in_dim: int,
    depths: Sequence[int],
    window_size: Sequence[int],
    mlp_ratio: float = 4,
    num_heads: Sequence[int],
    layer_scale: float | None = None,
    drop_path: float = 0.0,
) -> nn.Module:
    """MambaVision as its authors' package builds it; the arguments are those of `mambavision.MambaVision`.

    Raises:
        IllegalArgument: the arguments do not fit together.
        MissingDependency: the package, or einops that it needs, is not installed.
    """
    check_mambavision(
        dim=dim,
        in_dim=in_dim,
        depths=depths,
        window_size=window_size,
        mlp_ratio=mlp_ratio,
        num_heads=num_heads,
        layer_scale=layer_scale,
        in_chans=in_chans,
        drop_path=drop_path,
    )
    package, kernel = mambavision_package()
    with LinspaceOnCpu():
        model: Any = package.MambaVision(
            dim=dim,
            in_dim=in_dim,
            depths=list(depths),
            window_size=list(window_size),
            mlp_ratio=mlp_ratio,
            num_heads=list(num_heads),
            drop_path_rate=drop_path,
            in_chans=in_chans,
            num_classes=num_classes,
            layer_scale=layer_scale,
        )
    model.scan_backend = functools.partial(_scan_backend, kernel is not None)
    built: nn.Module = model
    return built


def _scan_backend(has_kernel: bool, device: torch.device | str) -> str:
    """What runs the scan on a device."""
    if has_kernel and torch.device(device).type == "cuda":
        return "mamba-ssm"
    return backend_for(device)


@functools.cache
def mambavision_package() -> tuple[Any, Callable[..., Any] | None]:
    """The module that defines the model, and mamba-ssm's scan if it can be imported."""
    for name in ("mambavision", "einops"):
        if importlib.util.find_spec(name) is None:
            raise MissingDependency(name, "mambavision@upstream", INSTALL)
    kernel = _kernel()
    with _standing_in(kernel), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Importing from timm.models", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Overwriting .* in registry", category=UserWarning)
        package: Any = importlib.import_module("mambavision.models.mamba_vision")
    package.selective_scan_fn = functools.partial(_scan, kernel)
    return package, kernel


def _kernel() -> Callable[..., Any] | None:
    """mamba-ssm's scan; None where it is missing or was built for another machine."""
    try:
        found: Callable[..., Any] = importlib.import_module(KERNEL).selective_scan_fn
    except ImportError:
        return None
    return found


@contextmanager
def _standing_in(kernel: Callable[..., Any] | None) -> Iterator[None]:
    """Answer `from mamba_ssm.ops.selective_scan_interface import selective_scan_fn` for a while."""
    if kernel is not None:
        yield
        return
    names = ("mamba_ssm", "mamba_ssm.ops", KERNEL)
    before = {name: sys.modules.get(name) for name in names}
    stand_ins: dict[str, Any] = {name: ModuleType(name) for name in names}
    stand_ins[KERNEL].selective_scan_fn = functools.partial(_scan, None)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _scan(
    kernel: Callable[..., Any] | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    return_last_state: bool | None = None,
) -> Tensor:
    """`selective_scan_fn` as MambaVision calls it: no gate, softplus on, no last state."""
    if kernel is not None and u.is_cuda:
        out: Tensor = kernel(u, delta, A, B, C, D, z, delta_bias, delta_softplus, bool(return_last_state))
        return out
    assert z is None
    assert delta_bias is not None
    assert delta_softplus
    assert not return_last_state
    return selective_scan(u, delta, A, B, C, D, delta_bias)
