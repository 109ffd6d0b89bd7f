"""Indices of the elements that are sampled of a tensor: first, last, random, and beyond a limit.

Elements are counted in memory order, whatever the order of dimensions, as an index overflows in memory.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from longvis_bench.ops.model_tensors import is_dense, storages

INT32_ELEMENTS = 2**31
"""A 32-bit index overflows at this element."""
SEGMENT = 1024
"""Neighbours along the last dimension that are sampled together."""

Index = tuple[int, ...]


def is_past(tensor: Tensor, limit: int) -> bool:
    """Whether an index into a tensor can reach a limit: its elements, or the memory that a view spans.

    For a sparse tensor, the bytes of its values and indices are an upper bound.
    """
    if not is_dense(tensor):
        return any(storage.nbytes() >= limit for storage in storages(tensor))
    spans = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() > 0 and max(tensor.numel(), spans + 1) >= limit


def sample_indices(tensor: Tensor, limit: int) -> list[Index]:
    """The first, the last and a random index; past the limit also that at it and a random one beyond it."""
    count = tensor.numel()
    if not count:
        return []
    flat = {0, count - 1, random.randrange(count)}
    if count > limit:
        flat |= {limit, random.randrange(limit, count)}
    return [_unravel(offset, tensor) for offset in sorted(flat)]


def _unravel(offset: int, tensor: Tensor) -> Index:
    """The index of the element at an offset of a dense tensor's memory."""
    index, strides = [0] * tensor.ndim, tensor.stride()
    for d in sorted(range(tensor.ndim), key=lambda d: (strides[d], -d)):
        offset, index[d] = divmod(offset, tensor.shape[d])
    return tuple(index)


def segments(tensor: Tensor, limit: int) -> list[tuple[int | slice, ...]]:
    """The indices with their neighbours along the last dimension."""
    if tensor.ndim == 0:
        return [()]
    size = max(1, min(SEGMENT, limit // 8))
    return [
        (*index[:-1], _around(index[-1], tensor.shape[-1], size)) for index in sample_indices(tensor, limit)
    ]


def _around(position: int, length: int, size: int) -> slice:
    start = max(0, min(position, length - size))
    return slice(start, min(length, start + size))


def shadow(shape: torch.Size) -> Tensor:
    """A tensor of a shape, without memory."""
    return torch.empty(shape, device="meta")
