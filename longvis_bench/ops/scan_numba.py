"""Selective scan on the CPU, compiled by numba: no compiler is needed, its wheel carries LLVM.

Shapes and equations are in `selective_scan.py`.  The work is cut into tasks of one image and `LANES`
channels.  Within a task, the innermost loop runs over channels, which lie side by side in memory: the
recurrence couples steps of one channel only, so that loop becomes vector instructions.  What takes the time
is one exponential a step, channel and state; LLVM knows no vector form of libm's, so `_exp` is one.

Tasks are shared among as many threads as torch uses.  They are plain Python threads (the kernels release the
GIL): numba's own threading layers do not survive a fork, ours are made in the process that first needs them.

Float32 inside, half precision included; float64 goes to the torch backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from longvis_bench.ops.selective_scan import Backend, Gradients

LANES = 32
"""Channels of a task: fills vector registers, and keeps a task's states in the L2 cache."""

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def _compiled(function: Function) -> Function:
    """Compile at the first call, and keep the machine code on disk where some directory is writable.

    `contract` allows fused multiply-add and nothing else: sums keep their order, nan and inf their meaning.
    """
    njit: Any = numba.njit
    try:
        compiled: Function = njit(function, cache=True, fastmath={"contract"}, **_OPTIONS)
    except RuntimeError:  # no directory to keep it in
        compiled = njit(function, fastmath={"contract"}, **_OPTIONS)
    return compiled


def _inlined(*fastmath: str) -> Callable[[Function], Function]:
    """Compile as part of the callers."""
    njit: Any = numba.njit
    decorator: Callable[[Function], Function] = njit(inline="always", fastmath=set(fastmath), **_OPTIONS)
    return decorator


def _bits_as_float(context: Any, bits: Any) -> Any:
    """Numba's typing and code of `_float_of_bits`, the float32 that 32 bits are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


_float_of_bits: Any = intrinsic(_bits_as_float)


@_inlined("contract")
def _exp(x: np.float32) -> np.float32:
    """exp(x) for x <= 0 to about one unit in the last place: 2^k exp(r) with |r| <= ln(2) / 2.

    ln(2) is subtracted in two parts, the first exact in few bits (Cody and Waite); exp(r) is its Taylor
    polynomial of degree 6, whose remainder there is at most 1.2e-7.  Below -87 the result is that at -87.
    """
    x = max(x, np.float32(-87.0))
    k = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440054690583e-4)
    p = np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    return np.float32(p * _float_of_bits((np.int32(k) + np.int32(127)) << np.int32(23)))


@_inlined("contract", "reassoc")
def _sum(values: NDArray[np.float32]) -> np.float32:
    """Sum of LANES numbers in whatever order is fastest."""
    total = np.float32(0)
    for i in range(LANES):
        total += values[i]
    return total


@_compiled
def _forward(first, last, u, step, rate, b, c, y):  # type: ignore[no-untyped-def]
    """Tasks first ... last - 1 of the scan, without D x.

    u, step, y: (batch, length, channels); rate: (channels / LANES, states, LANES);
    b, c: (batch, length, states).

    `rows` holds what the innermost loop touches at fixed distances, so that LLVM sees that nothing overlaps.
    """
    length, channels = u.shape[1], u.shape[2]
    states, chunks = rate.shape[1], rate.shape[0]
    rows, state = np.zeros(3 * LANES, np.float32), np.empty((states, 2 * LANES), np.float32)
    for task in range(first, last):
        image, chunk = task // chunks, task % chunks
        start = chunk * LANES
        lanes = min(LANES, channels - start)
        for n in range(states):
            for i in range(LANES):
                state[n, i], state[n, LANES + i] = np.float32(0), rate[chunk, n, i]
        rows[:] = 0
        for t in range(length):
            for i in range(lanes):
                rows[i] = step[image, t, start + i]
                rows[LANES + i] = step[image, t, start + i] * u[image, t, start + i]
            for i in range(LANES):
                rows[2 * LANES + i] = 0
            for n in range(states):
                bn, cn, h = b[image, t, n], c[image, t, n], state[n]
                for i in range(LANES):
                    h[i] = _exp(rows[i] * h[LANES + i]) * h[i] + rows[LANES + i] * bn
                    rows[2 * LANES + i] += cn * h[i]
            for i in range(lanes):
                y[image, t, start + i] = rows[2 * LANES + i]


@_compiled
def _backward(first, last, g, u, step, rate, b, c, d_u, d_step, d_rate, d_b, d_c):  # type: ignore[no-untyped-def]
    """Tasks first ... last - 1 of the gradients, without those of D x; states are made anew.

    d_u, d_step: (batch, length, channels); d_rate: (batch, channels / LANES, states, LANES);
    d_b, d_c: (batch, channels / LANES, length, states).  What has no length or image is summed by the caller.

    `rows`: step, x, gradient of y, those of x and step, two products.  `state`: carried dh, A, its gradient.
    """
    length, channels = u.shape[1], u.shape[2]
    states, chunks = rate.shape[1], rate.shape[0]
    rows, state = np.zeros(7 * LANES, np.float32), np.empty((states, 3 * LANES), np.float32)
    kept = np.zeros((length + 1, states, LANES), np.float32)
    for task in range(first, last):
        image, chunk = task // chunks, task % chunks
        start = chunk * LANES
        lanes = min(LANES, channels - start)
        for n in range(states):
            for i in range(LANES):
                state[n, i] = state[n, 2 * LANES + i] = np.float32(0)
                state[n, LANES + i] = rate[chunk, n, i]
        rows[:] = 0
        for t in range(length):
            for i in range(lanes):
                rows[i] = step[image, t, start + i]
                rows[LANES + i] = step[image, t, start + i] * u[image, t, start + i]
            for n in range(states):
                bn, a, h, after = b[image, t, n], state[n], kept[t, n], kept[t + 1, n]
                for i in range(LANES):
                    after[i] = _exp(rows[i] * a[LANES + i]) * h[i] + rows[LANES + i] * bn
        for t in range(length - 1, -1, -1):
            for i in range(lanes):
                rows[i], rows[LANES + i] = step[image, t, start + i], u[image, t, start + i]
                rows[2 * LANES + i] = g[image, t, start + i]
            for i in range(2 * LANES):
                rows[3 * LANES + i] = 0
            for n in range(states):
                bn, cn, s = b[image, t, n], c[image, t, n], state[n]
                before, after = kept[t, n], kept[t + 1, n]
                for i in range(LANES):
                    decay = _exp(rows[i] * s[LANES + i])
                    dh = s[i] + rows[2 * LANES + i] * cn
                    d_exponent = dh * before[i] * decay
                    rows[3 * LANES + i] += dh * bn * rows[i]
                    rows[4 * LANES + i] += d_exponent * s[LANES + i] + dh * bn * rows[LANES + i]
                    rows[5 * LANES + i] = dh * (rows[i] * rows[LANES + i])
                    rows[6 * LANES + i] = rows[2 * LANES + i] * after[i]
                    s[i] = dh * decay
                    s[2 * LANES + i] += d_exponent * rows[i]
                d_b[image, chunk, t, n] = _sum(rows[5 * LANES : 6 * LANES])
                d_c[image, chunk, t, n] = _sum(rows[6 * LANES : 7 * LANES])
            for i in range(lanes):
                d_u[image, t, start + i] = rows[3 * LANES + i]
                d_step[image, t, start + i] = rows[4 * LANES + i]
        for n in range(states):
            for i in range(LANES):
                d_rate[image, chunk, n, i] = state[n, 2 * LANES + i]


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the scan: (batch, channels, length)."""
    u, step = _steps(x), F.softplus(_steps(delta) + delta_bias.float())
    y = torch.empty_like(u)
    _run(_forward, u, step, _chunked(A), _steps(B), _steps(C), y)
    return torch.addcmul(y, u, D.float()).to(x.dtype).mT


def backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    """Gradients of all seven inputs."""
    g, u, shifted = _steps(grad), _steps(x), _steps(delta) + delta_bias.float()
    rate, b, c = _chunked(A), _steps(B), _steps(C)
    d_u, d_step = torch.empty_like(u), torch.empty_like(u)
    d_rate = u.new_empty(u.shape[0], *rate.shape)
    d_b, d_c = (u.new_empty(u.shape[0], rate.shape[0], *b.shape[1:]) for _ in range(2))
    _run(_backward, g, u, F.softplus(shifted), rate, b, c, d_u, d_step, d_rate, d_b, d_c)
    d_delta = d_step * torch.sigmoid(shifted)
    return (
        torch.addcmul(d_u, g, D.float()).to(x.dtype).mT,
        d_delta.to(delta.dtype).mT,
        d_rate.sum(0).mT.flatten(0, 1)[: A.shape[0]].to(A.dtype).contiguous(),
        d_b.sum(1).to(B.dtype).mT,
        d_c.sum(1).to(C.dtype).mT,
        (g * u).sum((0, 1)).to(D.dtype),
        d_delta.sum((0, 1)).to(delta_bias.dtype),
    )


def _chunked(A: Tensor) -> Tensor:
    """(channels, states) -> (channels / LANES, states, LANES), float32, zero past the last channel."""
    short = -A.shape[0] % LANES
    return F.pad(A.float(), (0, 0, 0, short)).view(-1, LANES, A.shape[1]).mT.contiguous()


def _run(kernel: Callable[..., None], *tensors: Tensor) -> None:
    """Share the tasks among the threads; the caller is one of them.

    The kernel's first array of three dimensions is (batch, length, channels).
    """
    arrays = [t.detach().numpy() for t in tensors]
    batch, _, channels = tensors[0].shape
    tasks = batch * -(-channels // LANES)
    threads = min(torch.get_num_threads(), tasks)
    if tasks == 0:
        return
    bounds = [tasks * i // threads for i in range(threads + 1)]
    pool = _pool(os.getpid(), threads)
    others = [pool.submit(kernel, lo, hi, *arrays) for lo, hi in pairwise(bounds[1:])]
    kernel(bounds[0], bounds[1], *arrays)
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork starts with none and gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="longvis-scan")


def _steps(t: Tensor) -> Tensor:
    """(batch, channels, length) -> float32 (batch, length, channels), contiguous."""
    return t.float().mT.contiguous()


BACKEND = Backend(forward, backward)
