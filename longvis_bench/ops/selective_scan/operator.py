"""The selective scan of Mamba (arXiv:2312.00752, algorithm 2) as a torch operator, `longvis::selective_scan`.

For every image b and channel d, a state of N values is updated along the sequence:

    dt_t = softplus(delta_t + delta_bias)
    h_t  = exp(dt_t A) h_{t-1} + dt_t B_t x_t          h_0 = 0, elementwise in N
    y_t  = <C_t, h_t> + D x_t

Shapes, here and in every backend:

    x, delta, y   (batch, channels, length)
    A             (channels, states), negative
    B, C          (batch, states, length), or (batch, groups, states, length)
    D, delta_bias (channels,)

With groups, each group has its own B and C and an equal number of adjacent channels; a scan of several
directions of one image has one group per direction.

Outputs with a length are token-major in memory, as a Linear needs them, whatever the inputs' strides.

The operator is opaque to torch.  It has a fake implementation (for torch.compile and the meta device),
autograd (the backward is an operator as well, which recomputes the states instead of saving them), autocast
(float32, as mamba-ssm) and a formula for torch's FLOPs counter.  Device and dtype, or `use_backend`, select
the backend: `backend_for` names it beforehand, and `ops/kernel_trace.py` records which one ran.
`measure/flops/` counts the FLOPs of rows: 9 x batch x length x channels x states.

`reference` is the slow form that the backends are tested against.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longvis_bench.errors import MissingDependency, UnknownName
from longvis_bench.ops import c_toolchain
from longvis_bench.ops.kernel_trace import SCAN, note

Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gradients of x, delta, A, B, C, D, delta_bias."""

SPAN = 16
"""Steps between the states that the backward in Triton stores."""


class ScanSize(NamedTuple):
    """The sizes for which a scan's kernels are compiled."""

    channels: int
    length: int
    states: int
    groups: int = 1

    @property
    def shortest(self) -> ScanSize:
        """The shortest sequence that runs the same compiled kernels.

        Triton compiles a kernel separately for integer arguments equal to 1 and for multiples of 16: here the
        length, and in the backward the number of spans.
        """

        def kinds(length: int) -> list[bool]:
            numbers = length, -(-length // SPAN)
            return [kind for number in numbers for kind in (number == 1, number % 16 == 0)]

        lengths = 1, 2, SPAN, SPAN + 1, 2 * SPAN, 15 * SPAN + 1, 16 * SPAN
        same = [length for length in lengths if kinds(length) == kinds(self.length)]
        return self._replace(length=same[0])


_INPUTS = "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias"


class Backend(NamedTuple):
    """An implementation of the scan."""

    forward: Callable[..., Tensor]
    """The seven inputs -> y."""
    backward: Callable[..., Gradients]
    """The gradient of y, then the seven inputs -> the seven gradients."""


class Source(NamedTuple):
    """The module of a backend, which is imported when it first runs, and what it needs."""

    module: str
    package: str
    """The package that it needs."""
    devices: frozenset[str]
    """Types of devices that use it by default, if the package is installed."""

    def runs(self, kind: str, dtype: torch.dtype) -> bool:
        """Whether it is a default for a type of device and a dtype; only `torch` supports float64."""
        return kind in self.devices and dtype != torch.float64 and is_installed(self.package)


MAMBA_SSM = "mamba_ssm"
TRITON = "triton"

SOURCES = {
    "numba": Source("longvis_bench.ops.selective_scan.numba_backend", "numba", frozenset({"cpu"})),
    "mamba-ssm": Source("longvis_bench.ops.selective_scan.mamba_ssm_backend", MAMBA_SSM, frozenset({"cuda"})),
    "triton": Source("longvis_bench.ops.selective_scan.triton_backend", TRITON, frozenset({"cuda"})),
    "torch": Source("longvis_bench.ops.selective_scan.torch_backend", "torch", frozenset()),
}
"""Backends by name; a device uses the first that is installed.  `torch` runs on every device."""

_forced: str | None = None


def backend_for(device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """Name of the backend for a device now: the one of `use_backend`, else the device's default.

    Float64 always uses `torch`.
    """
    if _forced is not None and dtype != torch.float64:
        return _forced
    kind = torch.device(device).type
    return next((name for name, source in SOURCES.items() if source.runs(kind, dtype)), "torch")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every scan inside with one backend.

    Raises:
        UnknownName: there is no such backend.
        MissingDependency: the package it needs is not installed.
    """
    global _forced
    if name not in SOURCES:
        raise UnknownName("scan backend", name, SOURCES)
    package = SOURCES[name].package
    if not is_installed(package):
        install = (
            f"pip install {package.replace('_', '-')}" if package == MAMBA_SSM else f"pip install {package}"
        )
        raise MissingDependency(package, f"the scan backend {name}", install)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@cache
def is_installed(package: str) -> bool:
    """Whether a package can be used: mamba-ssm must load on this machine, and Triton needs a C compiler."""
    if importlib.util.find_spec(package) is None:
        return False
    if package == TRITON:
        return os.environ.get("TRITON_INTERPRET") == "1" or c_toolchain.missing() is None
    if package != MAMBA_SSM:
        return True
    try:
        importlib.import_module(f"{MAMBA_SSM}.ops.selective_scan_interface")
    except ImportError:
        return False
    return True


def _backend(x: Tensor) -> Backend:
    name = backend_for(x.device, x.dtype)
    note(SCAN, name)
    backend = importlib.import_module(SOURCES[name].module).BACKEND
    assert isinstance(backend, Backend)
    return backend


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the scan; see the module's docstring for shapes.

    Returns:
        y (batch, channels, length), in the dtype of x.
    """
    out: Tensor = torch.ops.longvis.selective_scan(x, delta, A, B, C, D, delta_bias)
    return out


@torch.library.custom_op("longvis::selective_scan", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    return _backend(x).forward(x, delta, A, B, C, D, delta_bias)


@torch.library.custom_op(
    "longvis::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}) -> ({', '.join(['Tensor'] * 7)})",
)
def _scan_backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    return _backend(x).backward(grad, x, delta, A, B, C, D, delta_bias)


@_scan.register_fake
def _fake_scan(x: Tensor, *parameters: Tensor) -> Tensor:
    return _token_major(x)


@_scan_backward.register_fake
def _fake_backward(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(_token_major(t) if t.ndim >= 3 else t.new_empty(t.shape) for t in inputs)


def _token_major(t: Tensor) -> Tensor:
    return t.new_empty(t.mT.shape).mT


def grouped(t: Tensor) -> Tensor:
    """B or C with its groups, of which there is one where none are given: (batch, groups, states, length)."""
    return t if t.ndim == 4 else t.unsqueeze(1)


def like_given(t: Tensor, given: Tensor) -> Tensor:
    """Undo `grouped`: a gradient in the dimensions of what it is of."""
    return t if given.ndim == 4 else t.squeeze(1)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Gradients:
    saved: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
    gradients: Gradients = torch.ops.longvis.selective_scan_backward(grad, *saved)
    return gradients


_scan.register_autograd(_differentiate, setup_context=_save)
for _device in ("cpu", "cuda"):
    _scan.register_autocast(_device, torch.float32)


@register_flop_formula(torch.ops.longvis.selective_scan)
def _flops(x: Sequence[int], delta: Sequence[int], A: Sequence[int], *_: Any, **__: Any) -> int:
    """For torch's FlopCounterMode, from shapes: 9 x batch x channels x length x states."""
    return 9 * prod(x) * A[1]


def reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The definition, one step at a time, in differentiable torch (memory grows quadratically; for tests)."""
    dt = F.softplus(delta + delta_bias[:, None])
    B, C = (grouped(t).repeat_interleave(x.shape[1] // grouped(t).shape[1], dim=1) for t in (B, C))
    state = x.new_zeros(x.shape[0], x.shape[1], A.shape[1])
    outputs = []
    for t in range(x.shape[2]):
        decay = torch.exp(dt[:, :, t, None] * A)
        state = decay * state + dt[:, :, t, None] * B[..., t] * x[:, :, t, None]
        outputs.append((state * C[..., t]).sum(-1) + D * x[:, :, t])
    return torch.stack(outputs, dim=2)


def warm_up_scan(
    device: torch.device | str,
    sizes: Iterable[ScanSize] = (),
    *,
    dtype: torch.dtype = torch.float32,
    backward: bool = True,
) -> None:
    """Run short scans, so that a backend compiles before memory is measured.

    Arguments:
        device: of the scans.
        sizes: sizes of a model's scans, whose kernels are compiled; by default those of a tiny scan.
        dtype: of the inputs.
        backward: compile the kernels of the backward, too.
    """
    for channels, length, states, groups in dict.fromkeys(
        size.shortest for size in tuple(sizes) or (ScanSize(2, 4, 2),)
    ):
        x, delta = (torch.zeros(1, channels, length, device=device, dtype=dtype) for _ in range(2))
        inner = torch.zeros(1, groups, states, length, device=device, dtype=dtype)
        rate = -torch.ones(channels, states, device=device)
        y = selective_scan(
            x.requires_grad_(backward), delta, rate, inner, inner, *torch.zeros(2, channels, device=device)
        )
        if backward:
            torch.autograd.backward(y.sum())
