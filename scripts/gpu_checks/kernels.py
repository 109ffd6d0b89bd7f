"""Checks of the kernels: errors against float64, and which attention kernel runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_checks.check import Context, Figures, check
from longvis_bench.ops import dilated_attention as dilated
from longvis_bench.ops.kernel_trace import ATTENTION, KERNELS, observe
from longvis_bench.ops.selective_scan.operator import reference, selective_scan, use_backend

HALVES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Accepted error of attention by dtype, as a share of the largest exact value."""
SCANS = {torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""The same for the scan, which computes in float32 throughout."""


def error(ours: Tensor, exact: Tensor) -> float:
    """Largest absolute error over the largest absolute exact value."""
    difference = (ours.detach().double() - exact.detach().double()).abs().max()
    return float(difference / exact.detach().double().abs().max().clamp_min(1e-30))


def worst_gradient_error(
    ours: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor]
) -> float:
    """Largest error of the output and of all gradients, against float64."""
    narrow = [t.clone().requires_grad_() for t in inputs]
    wide = [t.double().requires_grad_() for t in inputs]
    y, z = ours(*narrow), exact(*wide)
    weight = torch.randn_like(y)
    gradients = torch.autograd.grad(y, narrow, weight), torch.autograd.grad(z, wide, weight.double())
    return max(error(y, z), *(error(a, b) for a, b in zip(*gradients, strict=True)))


@check(60)
def scan(context: Context) -> tuple[bool, Figures]:
    """The Triton scan's output and gradients are near float64: 5e-6 in fp32, 1e-2 in bf16, 2e-3 in fp16."""
    errors = {
        f"{str(dtype)[6:]} {shape}": (_scan_error(context.device, dtype, *shape), limit)
        for dtype, limit in SCANS.items()
        for shape in ((2, 33, 17, 8), (1, 5, 15, 16), (25, 320, 196, 8))
    }
    return _within(errors), {"error_and_limit": errors}


def _scan_error(
    device: str, dtype: torch.dtype, batch: int, channels: int, length: int, states: int
) -> float:
    token, state = (batch, channels, length), (batch, states, length)
    shapes = (token, token, (channels, states), state, state, (channels,), (channels,))
    inputs = [torch.randn(shape, device=device) for shape in shapes]
    inputs[2] = -inputs[2].abs() - 0.1
    with use_backend("triton"):
        return worst_gradient_error(selective_scan, reference, [t.to(dtype) for t in inputs])


def _within(errors: dict[str, tuple[float, float]]) -> bool:
    return all(found <= limit for found, limit in errors.values())


@check(60)
def dilated_attention(context: Context) -> tuple[bool, Figures]:
    """Dilated attention is near float64, padded or not: 1e-4 in fp32, 3e-2 in bf16, 4e-3 in fp16."""
    errors, kernels = {}, set()
    for dtype, limit in HALVES.items():
        for sizes, flags in _dilations():
            tokens, heads, channels, segments, ratios = sizes
            inputs = [torch.randn(2, tokens, heads, channels, device=context.device).to(dtype) for _ in "qkv"]
            with observe() as seen:
                found = worst_gradient_error(
                    lambda *t, s=segments, r=ratios, f=flags: dilated.dilated_attention(*t, s, r, **f),  # type: ignore[call-arg]
                    lambda *t, s=segments, r=ratios, f=flags: dilated.reference(*t, s, r, **f),  # type: ignore[call-arg]
                    inputs,
                )
            kernels |= seen.get(ATTENTION, set())
            errors[f"{str(dtype)[6:]} {tokens} tokens {flags}"] = (found, limit)
    return _within(errors), {"error_and_limit": errors, "kernels": sorted(kernels)}


def _dilations() -> Iterator[tuple[tuple[int, int, int, tuple[int, ...], tuple[int, ...]], dict[str, bool]]]:
    for flags in ({}, {"mask_padding": True}, {"differentiable_mixing": True}):
        yield (64, 4, 16, (16, 64), (1, 2)), flags
        yield (100, 6, 12, (32, 100), (2, 4)), flags
        yield (256, 12, 64, (64, 128, 256), (1, 2, 4)), flags


@check(30)
def attention_names(context: Context) -> tuple[bool, Figures]:
    """The attention kernel that a row would name is the one that the profiler shows, in every dtype."""
    named = {
        f"{str(dtype)[6:]}": (_named_kernel(context.device, dtype), _profiled_kernel(context.device, dtype))
        for dtype in HALVES
    }
    return all(said == shown for said, shown in named.values()), {"named_and_profiled": named}


def _attend(device: str, dtype: torch.dtype, mode: Callable[[], AbstractContextManager[object]]) -> None:
    q = torch.randn(1, 12, 1024, 64, device=device, dtype=dtype)
    with mode():
        F.scaled_dot_product_attention(q, q, q)


def _named_kernel(device: str, dtype: torch.dtype) -> list[str]:
    with observe() as seen:
        _attend(device, dtype, torch.no_grad)
    return sorted(seen.get(ATTENTION, ()))


def _profiled_kernel(device: str, dtype: torch.dtype) -> list[str]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        _attend(device, dtype, torch.inference_mode)
    shown = {event.key.removeprefix("aten::") for event in profile.key_averages()}
    return [kernel for name, kernel in KERNELS.items() if name in shown] or ["math"]
