"""Selective scan in plain torch: runs on every device and dtype, one step of the sequence at a time.

Shapes and equations are in `selective_scan.py`.  Half precision is computed in float32.  The backward makes
the states anew and keeps them: memory grows linearly with the sequence, where autograd through a loop of
slices would grow quadratically.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.ops.selective_scan.operator import Backend, Gradients


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the scan: (batch, channels, length)."""
    wide = _working_dtype(x)
    u, step, b, c = (_steps(t, wide) for t in (x, _softplus(delta, delta_bias, wide), B, C))
    decay_rate, state = A.to(wide), u.new_zeros(*u.shape[1:], A.shape[1])
    y = torch.empty_like(u)
    for t in range(u.shape[0]):
        state = _advance(state, u[t], step[t], decay_rate, b[t])
        torch.sum(state * c[t, :, None], dim=-1, out=y[t])
    return _back(y + u * D.to(wide), x)


def backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Gradients:
    """Gradients of all seven inputs, by the reverse recurrence dh_t = g_t C_t + exp(dt_{t+1} A) dh_{t+1}."""
    wide = _working_dtype(x)
    g, u, step, b, c = (_steps(t, wide) for t in (grad, x, _softplus(delta, delta_bias, wide), B, C))
    rate = A.to(wide)
    states = _all_states(u, step, rate, b)
    d_u, d_step, d_b, d_c = g * D.to(wide), torch.empty_like(u), torch.empty_like(b), torch.empty_like(c)
    d_rate, carried = torch.zeros_like(rate), torch.zeros_like(states[0])
    for t in reversed(range(u.shape[0])):
        d_c[t] = (g[t, :, :, None] * states[t + 1]).sum(1)
        d_state = carried + g[t, :, :, None] * c[t, :, None]
        decay = torch.exp(step[t, :, :, None] * rate)
        d_exponent = d_state * states[t] * decay
        driven = (d_state * b[t, :, None]).sum(-1)
        d_u[t] += driven * step[t]
        d_step[t] = (d_exponent * rate).sum(-1) + driven * u[t]
        d_b[t] = (d_state * (step[t] * u[t])[:, :, None]).sum(1)
        d_rate += (d_exponent * step[t, :, :, None]).sum(0)
        carried = d_state * decay
    d_delta = d_step * torch.sigmoid(_steps(delta, wide) + delta_bias.to(wide))
    d_D = (g * u).sum((0, 1))
    return (
        _back(d_u, x),
        _back(d_delta, delta),
        d_rate.to(A.dtype),
        _back(d_b, B),
        _back(d_c, C),
        d_D.to(D.dtype),
        d_delta.sum((0, 1)).to(delta_bias.dtype),
    )


def _all_states(u: Tensor, step: Tensor, rate: Tensor, b: Tensor) -> Tensor:
    """h_0 ... h_L: (length + 1, batch, channels, states)."""
    states = u.new_zeros(u.shape[0] + 1, *u.shape[1:], rate.shape[1])
    for t in range(u.shape[0]):
        states[t + 1] = _advance(states[t], u[t], step[t], rate, b[t])
    return states


def _advance(state: Tensor, u: Tensor, step: Tensor, rate: Tensor, b: Tensor) -> Tensor:
    """One step: state (batch, channels, states), u and step (batch, channels), b (batch, states)."""
    decay = torch.exp(step[:, :, None] * rate)
    return torch.addcmul(decay * state, (step * u)[:, :, None], b[:, None])


def _softplus(delta: Tensor, delta_bias: Tensor, dtype: torch.dtype) -> Tensor:
    return F.softplus(delta.to(dtype) + delta_bias.to(dtype)[:, None])


def _steps(t: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, channels, length) -> (length, batch, channels), so that a step is one block of memory."""
    return t.to(dtype).permute(2, 0, 1).contiguous()


def _back(steps: Tensor, like: Tensor) -> Tensor:
    """(length, batch, channels) -> (batch, channels, length), token after token in memory."""
    return steps.transpose(0, 1).to(like.dtype, memory_format=torch.contiguous_format, copy=True).mT


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


BACKEND = Backend(forward, backward)
