"""Selective scan on CUDA, in Triton.

Shapes and equations are in `operator.py`.  One program processes one image and `LANES` channels of a group
along the whole sequence, with its states (LANES, states) in registers; channels are adjacent in memory, so
its loads are contiguous.  The backward stores the state at the start of every `SPAN` steps only, and
recomputes those in between, span by span from the last, in scratch memory that stays in the cache.

Computes in float32, also for half precision; offsets are 64-bit, also within one image.  With
TRITON_INTERPRET=1 in the environment before triton is imported, the kernels run on the CPU, slowly; the tests
use this on machines without a GPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from longvis_bench.ops.selective_scan.operator import SPAN, Backend, Gradients, grouped, like_given

LANES = 32
"""Channels per program."""


@triton.jit  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    u, step, rate, b, c, y, length, channels, states, groups, LANES: tl.constexpr, STATES: tl.constexpr
):
    """Scan without D x.

    u, step, y: (batch, length, channels); rate: (channels, states); b, c: (batch, groups, length, states).
    """
    image = tl.program_id(0).to(tl.int64)
    group, lane, is_lane = _lanes(channels, groups, LANES)
    state = tl.arange(0, STATES)
    is_state = state < states
    is_both = is_lane[:, None] & is_state[None, :]
    a = tl.load(rate + lane[:, None] * states + state[None, :], mask=is_both, other=0.0)
    h = tl.zeros((LANES, STATES), tl.float32)
    row, column = image * length * channels + lane, (image * groups + group) * length * states + state
    for _ in range(length):
        dt = tl.load(step + row, mask=is_lane, other=0.0)
        ut = tl.load(u + row, mask=is_lane, other=0.0)
        bt = tl.load(b + column, mask=is_state, other=0.0)
        ct = tl.load(c + column, mask=is_state, other=0.0)
        h = tl.exp(dt[:, None] * a) * h + (dt * ut)[:, None] * bt[None, :]
        tl.store(y + row, tl.sum(h * ct[None, :], axis=1), mask=is_lane)
        row += channels
        column += states


@triton.jit  # type: ignore[untyped-decorator]
def _lanes(channels, groups, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The program's group, its channels, and which of them the group has."""
    width = channels // groups
    blocks = tl.cdiv(width, LANES)
    group, block = tl.program_id(1) // blocks, tl.program_id(1) % blocks
    lane = group * width + block * LANES + tl.arange(0, LANES)
    return group, lane, lane < (group + 1) * width


@triton.jit
def _advance(h, a, u, step, b, row, column, is_lane, is_state):  # type: ignore[no-untyped-def]
    """One step of the states."""
    dt = tl.load(step + row, mask=is_lane, other=0.0)
    ut = tl.load(u + row, mask=is_lane, other=0.0)
    bt = tl.load(b + column, mask=is_state, other=0.0)
    return tl.exp(dt[:, None] * a) * h + (dt * ut)[:, None] * bt[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def backward_kernel(  # type: ignore[no-untyped-def]
    g,
    u,
    step,
    rate,
    b,
    c,
    d_u,
    d_step,
    d_rate,
    d_b,
    d_c,
    starts,
    scratch,
    length,
    channels,
    states,
    groups,
    spans,
    LANES: tl.constexpr,
    STATES: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Gradients without those of D x.

    d_rate: (batch, channels, states); d_b, d_c: (batch, programs, length, states);
    starts: (batch, programs, spans, LANES, STATES), the states before each span;
    scratch: (batch, programs, SPAN, LANES, STATES), the states before each step of one span.
    """
    image, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    origin = image * 0  # 64-bit, so that products of steps and channels are 64-bit as well
    group, lane, is_lane = _lanes(channels, groups, LANES)
    state = tl.arange(0, STATES)
    is_state = state < states
    is_both = is_lane[:, None] & is_state[None, :]
    offset = lane[:, None] * states + state[None, :]
    tile = tl.arange(0, LANES)[:, None] * STATES + state[None, :]
    size: tl.constexpr = LANES * STATES
    starts += (image * blocks + block) * spans * size
    scratch += (image * blocks + block) * SPAN * size
    partial = (image * blocks + block) * length * states + state
    first_row = image * length * channels + lane
    first_column = (image * groups + group) * length * states + state
    a = tl.load(rate + offset, mask=is_both, other=0.0)

    h = tl.zeros((LANES, STATES), tl.float32)
    for step_number in range(length):
        t = origin + step_number
        if t % SPAN == 0:
            tl.store(starts + (t // SPAN) * size + tile, h)
        h = _advance(h, a, u, step, b, first_row + t * channels, first_column + t * states, is_lane, is_state)

    carried = tl.zeros((LANES, STATES), tl.float32)
    d_a = tl.zeros((LANES, STATES), tl.float32)
    for back in range(spans):
        span = spans - 1 - back
        begin = origin + span * SPAN
        steps = tl.minimum(SPAN, length - begin)
        tl.debug_barrier()
        h = tl.load(starts + (origin + span) * size + tile)
        for i in range(steps):
            tl.store(scratch + i * size + tile, h)
            row, column = first_row + (begin + i) * channels, first_column + (begin + i) * states
            h = _advance(h, a, u, step, b, row, column, is_lane, is_state)
        tl.debug_barrier()
        for j in range(steps):
            i = steps - 1 - j
            t = begin + i
            row, column = first_row + t * channels, first_column + t * states
            gt = tl.load(g + row, mask=is_lane, other=0.0)
            dt = tl.load(step + row, mask=is_lane, other=0.0)
            ut = tl.load(u + row, mask=is_lane, other=0.0)
            bt = tl.load(b + column, mask=is_state, other=0.0)
            ct = tl.load(c + column, mask=is_state, other=0.0)
            before = tl.load(scratch + i * size + tile)
            dh = carried + gt[:, None] * ct[None, :]
            carried = dh * tl.exp(dt[:, None] * a)
            d_exponent = carried * before
            driven = tl.sum(dh * bt[None, :], axis=1)
            tl.store(d_u + row, driven * dt, mask=is_lane)
            tl.store(d_step + row, tl.sum(d_exponent * a, axis=1) + driven * ut, mask=is_lane)
            tl.store(d_b + partial + t * states, tl.sum(dh * (dt * ut)[:, None], axis=0), mask=is_state)
            tl.store(d_c + partial + t * states, tl.sum(h * gt[:, None], axis=0), mask=is_state)
            d_a += d_exponent * dt[:, None]
            h = before
    tl.store(d_rate + image * channels * states + offset, d_a, mask=is_both)


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the scan; returns (batch, channels, length)."""
    u, step = _steps(x), F.softplus(_steps(delta) + delta_bias.float())
    y = torch.empty_like(u)
    arrays, groups = (u, step, A.float().contiguous(), _steps(B), _steps(C), y), grouped(B).shape[1]
    with _on(x):
        forward_kernel[_programs(u, groups)](
            *arrays, *u.shape[1:], A.shape[1], groups, LANES, _power(A.shape[1]), num_warps=1
        )
    return torch.addcmul(y, u, D.float()).to(x.dtype).mT


def backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    """Gradients of all seven inputs."""
    g, u, shifted = _steps(grad), _steps(x), _steps(delta) + delta_bias.float()
    groups, spans, lanes = grouped(B).shape[1], triton.cdiv(u.shape[1], SPAN), (LANES, _power(A.shape[1]))
    batch, blocks = _programs(u, groups)
    d_u, d_step = torch.empty_like(u), torch.empty_like(u)
    d_rate = u.new_empty(batch, *A.shape)
    d_b, d_c = (u.new_empty(batch, blocks, u.shape[1], A.shape[1]) for _ in range(2))
    starts, scratch = (u.new_empty(batch, blocks, n, *lanes) for n in (spans, SPAN))
    inputs = (g, u, F.softplus(shifted), A.float().contiguous(), _steps(B), _steps(C))
    outputs = (d_u, d_step, d_rate, d_b, d_c, starts, scratch)
    with _on(x):
        backward_kernel[batch, blocks](
            *inputs, *outputs, *u.shape[1:], A.shape[1], groups, spans, *lanes, SPAN, num_warps=1
        )
    d_delta = d_step * torch.sigmoid(shifted)
    return (
        torch.addcmul(d_u, g, D.float()).to(x.dtype).mT,
        d_delta.to(delta.dtype).mT,
        d_rate.sum(0).to(A.dtype),
        like_given(torch.unflatten(d_b, 1, (groups, -1)).sum(2).to(B.dtype).mT, B),
        like_given(torch.unflatten(d_c, 1, (groups, -1)).sum(2).to(C.dtype).mT, C),
        (g * u).sum((0, 1)).to(D.dtype),
        d_delta.sum((0, 1)).to(delta_bias.dtype),
    )


def _programs(u: Tensor, groups: int) -> tuple[int, int]:
    """Grid of programs for (batch, length, channels): one per image and LANES channels of a group."""
    return u.shape[0], groups * triton.cdiv(u.shape[2] // groups, LANES)


def _power(states: int) -> int:
    """The smallest power of two that is at least the number of states."""
    power: int = triton.next_power_of_2(states)
    return power


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Launch on the tensor's device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _steps(t: Tensor) -> Tensor:
    """(..., channels, length) -> float32 (..., length, channels), contiguous."""
    return t.float().mT.contiguous()


BACKEND = Backend(forward, backward)
