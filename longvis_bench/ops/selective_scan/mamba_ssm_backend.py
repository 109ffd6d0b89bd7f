"""Selective scan on CUDA by mamba-ssm's kernel, `selective_scan_fn`, where that package is installed.

The kernel uses the conventions of `operator.py` (shapes and equations), with the option for softplus of the
step sizes.  It returns outputs in channel-major memory; they are copied into the operator's layout.  The
backward runs the forward again, as in every backend.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longvis_bench.ops.selective_scan.operator import Backend, Gradients


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the scan in float32; returns (batch, channels, length)."""
    return _token_major(_kernel(x, delta, A, B, C, D, delta_bias).to(x.dtype))


def backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    """Gradients of all seven inputs."""
    inputs = [t.detach().requires_grad_() for t in (x, delta, A, B, C, D, delta_bias)]
    with _differentiable():
        out = _kernel(*inputs)
    dx, d_delta, dA, dB, dC, dD, d_bias = torch.autograd.grad(out, inputs, grad.to(out.dtype))
    return _token_major(dx), _token_major(d_delta), dA, _token_major(dB), _token_major(dC), dD, d_bias


@contextmanager
def _differentiable() -> Iterator[None]:
    """Enable autograd inside a custom operator, where torch disables it regardless of `enable_grad`."""
    included, excluded = (
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )
    with torch._C._ForceDispatchKeyGuard(included, excluded - excluded), torch.enable_grad():
        yield


def _kernel(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    module: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    single = [t.float() for t in (x, delta, A, B, C, D)]
    out: Tensor = module.selective_scan_fn(
        *single, z=None, delta_bias=delta_bias.float(), delta_softplus=True, return_last_state=False
    )
    return out


def _token_major(t: Tensor) -> Tensor:
    """A copy of (..., channels, length) in token-major memory."""
    return t.mT.clone(memory_format=torch.contiguous_format).mT


BACKEND = Backend(forward, backward)
