"""Attention over a grid with biases by relative position, without a table of all pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_BIASES = 2**25
"""Relative biases that are written out at once, at most, but for one query's: 128 MiB in float32."""


def biased_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, carriers: int = 0, most: int = MOST_BIASES
) -> Tensor:
    """Attention with a bias by relative position that is written out for some queries at a time.

    Arguments:
        q, k, v: (batch, heads, carriers + rows x columns, channels per head).
        table: (heads, 2 rows - 1, 2 columns - 1), bias by query's minus key's row and column.
        carriers: tokens before those of the grid; pairs with one of them have no bias.
        most: biases that are written out at once, but for one query's.

    Returns:
        (batch, heads, carriers + rows x columns, channels per head).
    """
    tokens = q.shape[2]
    queries = max(1, most // (table.shape[0] * tokens))
    if queries >= tokens:
        return _attend(q, k, v, table, carriers, 0)
    parts = []
    for start in range(0, tokens, queries):
        some = q[:, :, start : start + queries]
        if torch.is_grad_enabled():  # else the backward would keep the biases and scores of all queries
            parts.append(checkpoint(_attend, some, k, v, table, carriers, start, use_reentrant=False))
        else:
            parts.append(_attend(some, k, v, table, carriers, start))
    return torch.cat(parts, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor, carriers: int, start: int) -> Tensor:
    """What the queries `q`, which begin at token `start`, attend to."""
    bias = relative_biases(table, carriers, start, start + q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])


def relative_biases(table: Tensor, carriers: int, start: int, stop: int) -> Tensor:
    """Biases of the queries from `start` to `stop`: (heads, queries, carriers + rows x columns)."""
    rows, columns = ((distances + 1) // 2 for distances in table.shape[1:])
    first, last = max(start - carriers, 0), max(stop - carriers, 0)
    query = torch.arange(first, last, device=table.device)[:, None]
    key = torch.arange(rows * columns, device=table.device)[None, :]
    down = query // columns - key // columns + rows - 1
    right = query % columns - key % columns + columns - 1
    bias = table.flatten(1)[:, down * (2 * columns - 1) + right]
    unbiased = stop - start - (last - first)
    return F.pad(bias, (carriers, 0, unbiased, 0)) if carriers else bias
