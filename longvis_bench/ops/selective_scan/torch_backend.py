"""Selective scan in plain torch, for every device and dtype, one step of the sequence at a time.

Shapes and equations are in `operator.py`.  Half precision is computed in float32.  The backward recomputes
the states and stores them: its memory grows linearly with the sequence, while that of autograd through a loop
of slices would grow quadratically.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.ops.selective_scan.operator import Backend, Gradients, grouped, like_given


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the scan; returns (batch, channels, length)."""
    wide, groups = _working_dtype(x), grouped(B).shape[1]
    u, step = (_steps(t, wide, groups) for t in (x, _softplus(delta, delta_bias, wide)))
    b, c = (_columns(t, wide) for t in (B, C))
    rate = torch.unflatten(A.to(wide), 0, (groups, -1))
    state, y = u.new_zeros(*u.shape[1:], A.shape[1]), torch.empty_like(u)
    for t in range(u.shape[0]):
        state = _advance(state, u[t], step[t], rate, b[t])
        torch.sum(state * c[t, :, :, None], dim=-1, out=y[t])
    return _back(y + u * D.to(wide).view(groups, -1), x)


def backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    """Gradients of all seven inputs, by the reverse recurrence dh_t = g_t C_t + exp(dt_{t+1} A) dh_{t+1}."""
    wide, groups = _working_dtype(x), grouped(B).shape[1]
    g, u, step = (_steps(t, wide, groups) for t in (grad, x, _softplus(delta, delta_bias, wide)))
    b, c = (_columns(t, wide) for t in (B, C))
    rate = torch.unflatten(A.to(wide), 0, (groups, -1))
    states = _all_states(u, step, rate, b)
    d_u, d_step = g * D.to(wide).view(groups, -1), torch.empty_like(u)
    d_b, d_c = torch.empty_like(b), torch.empty_like(c)
    d_rate, carried = torch.zeros_like(rate), torch.zeros_like(states[0])
    for t in reversed(range(u.shape[0])):
        d_c[t] = (g[t, ..., None] * states[t + 1]).sum(2)
        d_state = carried + g[t, ..., None] * c[t, :, :, None]
        decay = torch.exp(step[t, ..., None] * rate)
        d_exponent = d_state * states[t] * decay
        driven = (d_state * b[t, :, :, None]).sum(-1)
        d_u[t] += driven * step[t]
        d_step[t] = (d_exponent * rate).sum(-1) + driven * u[t]
        d_b[t] = (d_state * (step[t] * u[t])[..., None]).sum(2)
        d_rate += (d_exponent * step[t, ..., None]).sum(0)
        carried = d_state * decay
    slope = torch.sigmoid(_steps(delta, wide, groups) + delta_bias.to(wide).view(groups, -1))
    d_delta = d_step * slope
    d_D = (g * u).sum((0, 1)).flatten()
    return (
        _back(d_u, x),
        _back(d_delta, delta),
        d_rate.flatten(0, 1).to(A.dtype),
        like_given(_token_major(d_b, B), B),
        like_given(_token_major(d_c, C), C),
        d_D.to(D.dtype),
        d_delta.sum((0, 1)).flatten().to(delta_bias.dtype),
    )


def _all_states(u: Tensor, step: Tensor, rate: Tensor, b: Tensor) -> Tensor:
    """h_0 ... h_L: (length + 1, batch, groups, channels of a group, states)."""
    states = u.new_zeros(u.shape[0] + 1, *u.shape[1:], rate.shape[-1])
    for t in range(u.shape[0]):
        states[t + 1] = _advance(states[t], u[t], step[t], rate, b[t])
    return states


def _advance(state: Tensor, u: Tensor, step: Tensor, rate: Tensor, b: Tensor) -> Tensor:
    """One step: state (batch, groups, channels of a group, states); u and step lack states, b channels."""
    decay = torch.exp(step[..., None] * rate)
    return torch.addcmul(decay * state, (step * u)[..., None], b[:, :, None])


def _softplus(delta: Tensor, delta_bias: Tensor, dtype: torch.dtype) -> Tensor:
    return F.softplus(delta.to(dtype) + delta_bias.to(dtype)[:, None])


def _steps(t: Tensor, dtype: torch.dtype, groups: int) -> Tensor:
    """(batch, channels, length) -> (length, batch, groups, channels per group), each step contiguous."""
    return torch.unflatten(t.to(dtype).permute(2, 0, 1).contiguous(), 2, (groups, -1))


def _columns(t: Tensor, dtype: torch.dtype) -> Tensor:
    """B or C -> (length, batch, groups, states)."""
    return grouped(t).to(dtype).permute(3, 0, 1, 2).contiguous()


def _back(steps: Tensor, like: Tensor) -> Tensor:
    """(length, batch, groups, channels per group) -> (batch, channels, length), token-major in memory."""
    return _copied(steps.flatten(2).transpose(0, 1), like).mT


def _token_major(columns: Tensor, like: Tensor) -> Tensor:
    """(length, batch, groups, states) -> (batch, groups, states, length), token-major in memory."""
    return _copied(columns.permute(1, 2, 0, 3), like).mT


def _copied(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.dtype, memory_format=torch.contiguous_format, copy=True)


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


BACKEND = Backend(forward, backward)
