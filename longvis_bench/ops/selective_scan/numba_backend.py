"""Selective scan on the CPU, compiled by numba, whose wheel contains LLVM: no C compiler is needed.

Shapes and equations are in `operator.py`.  A task is one image and at most `WIDTH` channels of one group.
Within a task, every innermost loop runs over channels: the recurrence couples steps of one channel only, so
LLVM vectorises these loops.  One exponential per step, channel and state takes most of the time; LLVM has no
vector form of libm's, so `_exp2` provides one.  Softplus and D x are computed in the loop over steps, and
inputs are read with their own strides, so that only the outputs allocate tensors as large as x.

The backend uses as many threads as torch.  They are plain Python threads (the kernels release the GIL),
because numba's threading layers do not survive a fork; each process starts its own threads on first use.

Computes in float32, also for half precision; float64 runs in the torch backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from longvis_bench.ops.selective_scan.operator import Backend, Gradients, grouped, like_given

WIDTH = 64
"""Channels per task: enough to fill vector registers, few enough to keep states in the L2 cache."""

PIECES = 4
"""Pieces per thread's share of the tasks.  A thread that is ahead takes the pieces of others: torch's threads
spin for a while after an operation and slow down one of the scan's threads."""

_ROWS = 12
_BIAS, _SKIP, _STEP, _X, _DRIVE, _SIGMOID, _Y, _G, _DRIVEN, _D_STEP, _D_SKIP, _D_BIAS = (
    WIDTH * i for i in range(_ROWS)
)
"""Offsets in `rows`, the single array for all values per channel of a task; with two, LLVM would have to
assume that they overlap.  In order: delta's bias, D; of one step dt, x, dt x, the slope of softplus, y, its
gradient and the sum of dh B; then gradients."""

_LOG2_E, _LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)

_SHIFT = np.float32(3 * 2**22 + 127)
"""Adding it to a float32 below 2^22 puts the nearest integer, plus 127, into the lowest bits."""

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def _compiled(function: Function) -> Function:
    """Compile at the first call, and cache the machine code on disk if a directory is writable.

    `contract` allows fused multiply-add only: the order of sums and the rules of NaN and infinity stay.
    """
    njit: Any = numba.njit
    try:
        compiled: Function = njit(function, cache=True, fastmath={"contract"}, **_OPTIONS)
    except RuntimeError:  # no writable directory for the cache
        compiled = njit(function, fastmath={"contract"}, **_OPTIONS)
    return compiled


def _inlined(function: Function) -> Function:
    """Compile as a part of the callers, with their floating-point options."""
    njit: Any = numba.njit
    inlined: Function = njit(function, inline="always", **_OPTIONS)
    return inlined


def _called(*fastmath: str) -> Callable[[Function], Function]:
    """Compile once for all callers, with floating-point options of its own."""
    njit: Any = numba.njit
    decorator: Callable[[Function], Function] = njit(fastmath=set(fastmath), **_OPTIONS)
    return decorator


def _bits_as_float(context: Any, bits: Any) -> Any:
    """Numba's typing and code generation of `_float_of_bits`: reinterpret 32 bits as a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


def _float_as_bits(context: Any, number: Any) -> Any:
    """Numba's typing and code generation of `_bits_of_float`: reinterpret a float32 as 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


_float_of_bits: Any = intrinsic(_bits_as_float)
_bits_of_float: Any = intrinsic(_float_as_bits)


@_inlined
def _exp2(x: np.float32) -> np.float32:
    """2^x for x <= 0 to about one unit in the last place: 2^k 2^f with k whole and |f| <= 1/2.

    A minimax polynomial approximates 2^f with a relative error of at most 9.2e-8.  Below -126 the result is
    that at -126.
    """
    x = max(x, np.float32(-126.0))
    shifted = x + _SHIFT
    f = x - (shifted - _SHIFT)
    p = np.float32(0.00132647367)
    p = p * f + np.float32(0.00967151256)
    p = p * f + np.float32(0.0555073372)
    p = p * f + np.float32(0.240222421)
    p = p * f + np.float32(0.693146978)
    p = p * f + np.float32(1.0)
    return np.float32(p * _float_of_bits(_bits_of_float(shifted) << np.int32(23)))


@_inlined
def _softplus(x: np.float32) -> tuple[np.float32, np.float32]:
    """log(1 + exp(x)) and its slope, the logistic function of x.

    With e = exp(-|x|) in (0, 1], log(1 + e) = 2 artanh(r) for r = e / (2 + e); the series of artanh is cut
    off where the remainder at r = 1/3 is 1e-8.
    """
    e = _exp2(-abs(x) * _LOG2_E)
    r = e / (np.float32(2) + e)
    z = r * r
    p = np.float32(2 / 13)
    p = p * z + np.float32(2 / 11)
    p = p * z + np.float32(2 / 9)
    p = p * z + np.float32(2 / 7)
    p = p * z + np.float32(2 / 5)
    p = p * z + np.float32(2 / 3)
    p = p * z + np.float32(2)
    small = np.float32(1) / (np.float32(1) + e)
    return max(x, np.float32(0)) + p * r, small if x >= 0 else e * small


@_inlined
def _read(
    rows: Any, offset: int, array: Any, strides: Any, image: int, start: int, t: int, lanes: int
) -> None:
    """Copy the channels of one step into the rows, from an array (batch, channels, length) with strides."""
    first = image * strides[0] + start * strides[1] + t * strides[2]
    for i in range(lanes):
        rows[offset + i] = array[first + i * strides[1]]


@_called("contract")
def _read_step(
    rows: Any, x: Any, xs: Any, delta: Any, ds: Any, image: int, start: int, t: int, lanes: int
) -> None:
    """Store x_t, dt_t, dt_t x_t and the slope of dt_t in the rows."""
    _read(rows, _X, x, xs, image, start, t, lanes)
    _read(rows, _STEP, delta, ds, image, start, t, lanes)
    for i in range(lanes):
        step, slope = _softplus(rows[_STEP + i] + rows[_BIAS + i])
        rows[_STEP + i], rows[_SIGMOID + i] = step, slope
        rows[_DRIVE + i] = step * rows[_X + i]


@_called("contract")
def _begin(rows: Any, state: Any, rate: Any, skip: Any, bias: Any, start: int, lanes: int) -> None:
    """Initialise a task: zero states, A / ln 2, D and delta's bias."""
    states = state.shape[0]
    for n in range(states):
        for i in range(lanes):
            state[n, i] = state[n, 2 * WIDTH + i] = np.float32(0)
            state[n, WIDTH + i] = rate[(start + i) * states + n] * _LOG2_E
    for i in range(lanes):
        rows[_BIAS + i], rows[_SKIP + i] = bias[start + i], skip[start + i]
        rows[_D_BIAS + i] = rows[_D_SKIP + i] = np.float32(0)


@_compiled
def _forward(first, last, sizes, x, xs, delta, ds, rate, b, bs, c, cs, skip, bias, y):  # type: ignore[no-untyped-def]
    """Tasks first ... last - 1 of the scan.

    sizes: channels, length, states, groups.  All arrays are flat; x and delta are followed by their strides
    for (batch, channels, length), b and c for (batch, groups, states, length); rate: (channels, states);
    y: (batch, length, channels).
    """
    channels, length, states, groups = sizes
    width = channels // groups
    chunks = -(-width // WIDTH)
    rows, state = np.zeros(_ROWS * WIDTH, np.float32), np.zeros((states, 3 * WIDTH), np.float32)
    for task in range(first, last):
        image, group = task // chunks // groups, task // chunks % groups
        start = group * width + task % chunks * WIDTH
        lanes = min(WIDTH, (group + 1) * width - start)
        first_b, first_c = image * bs[0] + group * bs[1], image * cs[0] + group * cs[1]
        _begin(rows, state, rate, skip, bias, start, lanes)
        for t in range(length):
            _read_step(rows, x, xs, delta, ds, image, start, t, lanes)
            for i in range(lanes):
                rows[_Y + i] = rows[_SKIP + i] * rows[_X + i]
            for n in range(states):
                bn = b[first_b + n * bs[2] + t * bs[3]]
                cn = c[first_c + n * cs[2] + t * cs[3]]
                s = state[n]
                for i in range(lanes):
                    s[i] = _exp2(rows[_STEP + i] * s[WIDTH + i]) * s[i] + rows[_DRIVE + i] * bn
                    rows[_Y + i] += cn * s[i]
            for i in range(lanes):
                y[(image * length + t) * channels + start + i] = rows[_Y + i]


@_called("contract", "reassoc")
def _step_back(
    rows: Any, s: Any, k: Any, bn: np.float32, cn: np.float32, lanes: int
) -> tuple[np.float32, np.float32]:
    """One step backwards of one state; returns the gradients of B and C, summed in the fastest order."""
    d_b = d_c = np.float32(0)
    for i in range(lanes):
        before, decay = k[i], k[WIDTH + i]
        dh = s[i] + rows[_G + i] * cn
        s[i] = dh * decay
        d_exponent = s[i] * before
        rows[_DRIVEN + i] += dh * bn
        rows[_D_STEP + i] += d_exponent * s[WIDTH + i]
        s[2 * WIDTH + i] += d_exponent * rows[_STEP + i]
        d_b += dh * rows[_DRIVE + i]
        d_c += rows[_G + i] * (decay * before + rows[_DRIVE + i] * bn)
    return d_b, d_c


@_compiled
def _backward(  # type: ignore[no-untyped-def]
    first,
    last,
    sizes,
    g,
    gs,
    x,
    xs,
    delta,
    ds,
    rate,
    b,
    bs,
    c,
    cs,
    skip,
    bias,
    d_x,
    d_delta,
    d_shared,
    d_b,
    d_c,
):
    """Tasks first ... last - 1 of the gradients; recomputes the states and stores them with their decays.

    Arrays are those of `_forward`, with g, the gradient of y, in the layout of x; d_x, d_delta in that of y;
    d_shared: (batch, states + 2, channels), of A, D and delta's bias; d_b, d_c: (batch, groups, tasks per
    group, length, states).  The caller sums d_shared over images, and d_b and d_c over tasks.
    """
    channels, length, states, groups = sizes
    width = channels // groups
    chunks = -(-width // WIDTH)
    rows, state = np.zeros(_ROWS * WIDTH, np.float32), np.zeros((states, 3 * WIDTH), np.float32)
    kept = np.zeros((length, states, 2 * WIDTH), np.float32)
    for task in range(first, last):
        image, group = task // chunks // groups, task // chunks % groups
        start = group * width + task % chunks * WIDTH
        lanes = min(WIDTH, (group + 1) * width - start)
        first_b, first_c = image * bs[0] + group * bs[1], image * cs[0] + group * cs[1]
        _begin(rows, state, rate, skip, bias, start, lanes)
        for t in range(length):
            _read_step(rows, x, xs, delta, ds, image, start, t, lanes)
            for n in range(states):
                bn = b[first_b + n * bs[2] + t * bs[3]]
                s, k = state[n], kept[t, n]
                for i in range(lanes):
                    decay = _exp2(rows[_STEP + i] * s[WIDTH + i])
                    k[i], k[WIDTH + i] = s[i], decay
                    s[i] = decay * s[i] + rows[_DRIVE + i] * bn
        for n in range(states):
            for i in range(lanes):
                state[n, i] = np.float32(0)
        for t in range(length - 1, -1, -1):
            _read_step(rows, x, xs, delta, ds, image, start, t, lanes)
            _read(rows, _G, g, gs, image, start, t, lanes)
            for i in range(lanes):
                rows[_DRIVEN + i] = rows[_D_STEP + i] = np.float32(0)
            for n in range(states):
                bn = b[first_b + n * bs[2] + t * bs[3]]
                cn = c[first_c + n * cs[2] + t * cs[3]]
                s, k = state[n], kept[t, n]
                offset = (task * length + t) * states + n
                d_b[offset], d_c[offset] = _step_back(rows, s, k, bn, cn, lanes)
            for i in range(lanes):
                d_step = rows[_D_STEP + i] * _LN_2 + rows[_DRIVEN + i] * rows[_X + i]
                rows[_D_STEP + i] = d_step * rows[_SIGMOID + i]
                rows[_D_BIAS + i] += rows[_D_STEP + i]
                rows[_D_SKIP + i] += rows[_G + i] * rows[_X + i]
                rows[_DRIVEN + i] = rows[_DRIVEN + i] * rows[_STEP + i] + rows[_G + i] * rows[_SKIP + i]
            offset = (image * length + t) * channels + start
            for i in range(lanes):
                d_delta[offset + i] = rows[_D_STEP + i]
            for i in range(lanes):
                d_x[offset + i] = rows[_DRIVEN + i]
        offset = image * (states + 2) * channels + start
        for n in range(states):
            for i in range(lanes):
                d_shared[offset + n * channels + i] = state[n, 2 * WIDTH + i]
        for i in range(lanes):
            d_shared[offset + states * channels + i] = rows[_D_SKIP + i]
            d_shared[offset + (states + 1) * channels + i] = rows[_D_BIAS + i]


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the scan; returns (batch, channels, length)."""
    batch, channels, length = x.shape
    y = x.new_empty(batch, length, channels, dtype=torch.float32)
    _run(_forward, x, A, B, *_inputs(x, delta, A, B, C, D, delta_bias), _flat(y))
    return y.to(x.dtype).mT


def backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    """Gradients of all seven inputs."""
    (batch, channels, length), states, groups = x.shape, A.shape[1], grouped(B).shape[1]
    empty = partial(torch.empty, dtype=torch.float32)
    d_x, d_delta = empty(batch, length, channels), empty(batch, length, channels)
    chunks = -(-channels // groups // WIDTH)
    d_b, d_c = (empty(batch, groups, chunks, length, states) for _ in range(2))
    d_shared = empty(batch, states + 2, channels)
    given = (*_strided(grad), *_inputs(x, delta, A, B, C, D, delta_bias))
    _run(_backward, x, A, B, *given, *map(_flat, (d_x, d_delta, d_shared, d_b, d_c)))
    shared = d_shared.sum(0)
    return (
        d_x.to(x.dtype).mT,
        d_delta.to(delta.dtype).mT,
        shared[:states].mT.to(A.dtype, copy=True, memory_format=torch.contiguous_format),
        like_given(d_b.sum(2).to(B.dtype).mT, B),
        like_given(d_c.sum(2).to(C.dtype).mT, C),
        shared[states].to(D.dtype, copy=True),
        shared[states + 1].to(delta_bias.dtype, copy=True),
    )


def _inputs(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Any, ...]:
    """The seven inputs in the form that the kernels take."""
    sequences = (*_strided(x), *_strided(delta), _flat(A), *_strided(grouped(B)), *_strided(grouped(C)))
    return (*sequences, _flat(D), _flat(delta_bias))


def _strided(t: Tensor) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """The memory of a tensor from its first to its last element, as float32, and its strides."""
    t = t.detach().float()
    span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    flat = torch.as_strided(t, (span if t.numel() else 0,), (1,))
    return flat.numpy(), t.stride()


def _flat(t: Tensor) -> NDArray[np.float32]:
    """A tensor as a flat float32 array."""
    return t.detach().float().contiguous().view(-1).numpy()


def _run(kernel: Callable[..., None], x: Tensor, A: Tensor, B: Tensor, *arrays: Any) -> None:
    """Run the tasks on several threads, one of which is the caller's."""
    (batch, channels, length), groups = x.shape, grouped(B).shape[1]
    tasks = batch * groups * -(-channels // groups // WIDTH)
    threads = min(torch.get_num_threads(), tasks)
    if tasks == 0:
        return
    sizes = (channels, length, A.shape[1], groups)
    # one iterator for all threads: each takes the next piece, under the GIL
    pieces = min(tasks, PIECES * threads if threads > 1 else 1)
    bounds = pairwise([tasks * i // pieces for i in range(pieces + 1)])

    def work() -> None:
        for low, high in bounds:
            kernel(low, high, sizes, *arrays)

    pool = _pool(os.getpid(), threads)
    others = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; the process id is part of the cache key because a fork inherits no threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="longvis-scan")


BACKEND = Backend(forward, backward)
