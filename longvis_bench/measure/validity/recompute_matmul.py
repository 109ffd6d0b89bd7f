"""Recompute matrix products, convolutions, attention and selective scans at some elements of their output.

Each function takes a finished call and returns pairs: the kernel's output at an index, and that of plain
products of the same inputs in higher precision.  No output is recomputed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.measure.validity.sample_indices import Index, is_past, sample_indices
from longvis_bench.ops.selective_scan import operator as selective_scan

MOST_STEPS = 256
"""Steps of a scan that are recomputed, from its start, as later steps do not affect earlier ones."""

Pair = tuple[Tensor, Tensor]
"""What the operator gave and what it should have given, at some indices."""


@dataclass(frozen=True)
class Call:
    """A finished call of an operator."""

    func: Any
    arguments: Mapping[str, Any]
    """Arguments by their names in the operator's schema, defaults included."""
    out: Tensor
    """The result; the first of several."""
    dtype: torch.dtype
    """The dtype of the recomputation."""
    limit: int
    """Number of elements above which an index may overflow."""

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def sample_indices(self, tensor: Tensor) -> list[Index]:
        """Indices to sample of one of the call's tensors."""
        return sample_indices(tensor, self.limit)

    def along(self, dim: int, *tensors: Tensor) -> list[int]:
        """The indices of some tensors of one length along a dimension."""
        return sorted({index[dim] for tensor in tensors for index in self.sample_indices(tensor)})

    def wide(self, tensor: Tensor) -> Tensor:
        """A tensor in the dtype of the recomputation."""
        return tensor.to(self.dtype)


Recompute = Callable[[Call], list[Pair]]


def _matmul(left: str, right: str, added: str | None = None) -> Recompute:
    """Rows of (m, k) x (k, n) + added; only some columns of a right factor past the limit."""

    def recompute(call: Call) -> list[Pair]:
        factor, rows = call[right], call.along(0, call.out, call[left])
        columns = call.along(1, call.out, factor) if is_past(factor, call.limit) else slice(None)
        product = call.wide(call[left][rows]) @ call.wide(factor[:, columns])
        if added is not None:
            product = _plus(call, call[added].expand(call.out.shape)[rows][:, columns], product)
        return [(call.out[rows][:, columns], product)]

    return recompute


def _batched(left: str, right: str, added: str | None = None) -> Recompute:
    """Rows of some products of a batch."""

    def recompute(call: Call) -> list[Pair]:
        pairs, rows = [], call.along(1, call.out, call[left])
        for b in call.along(0, call.out, call[left]):
            product = call.wide(call[left][b, rows]) @ call.wide(call[right][b])
            if added is not None:
                product = _plus(call, call[added].expand(call.out.shape)[b, rows], product)
            pairs.append((call.out[b, rows], product))
        return pairs

    return recompute


def _plus(call: Call, added: Tensor, product: Tensor) -> Tensor:
    """Return alpha * product + beta * addend; with beta 0 the addend is ignored, even if it is NaN."""
    beta, alpha = call.arguments.get("beta", 1), call.arguments.get("alpha", 1)
    scaled: Tensor = alpha * product
    return scaled + beta * call.wide(added) if beta else scaled


def _attention(call: Call) -> list[Pair]:
    """Some queries of some heads, with a plain softmax."""
    query, key, value = call["query"], call["key"], call["value"]
    a = call.arguments
    mask = a.get("attn_mask", a.get("attn_bias"))
    scale = a.get("scale") or query.shape[-1] ** -0.5
    pairs, rows = [], call.along(2, call.out, query)
    heads = {index[:2] for index in (*call.sample_indices(call.out), *call.sample_indices(query))}
    for batch, head in sorted(heads):
        shared = head * key.shape[1] // query.shape[1]
        scores = call.wide(query[batch, head, rows]) @ call.wide(key[batch, shared]).mT * scale
        if mask is not None:
            whole = mask.expand(*query.shape[:2], *mask.shape[-2:])[batch, head]
            scores = scores + call.wide(whole.expand(query.shape[2], -1)[rows])
        if a.get("is_causal", False):
            asked = torch.tensor(rows, device=query.device)[:, None]
            later = torch.arange(key.shape[2], device=query.device) > asked
            scores = scores.masked_fill(later, -torch.inf)
        pairs.append((call.out[batch, head, rows], scores.softmax(-1) @ call.wide(value[batch, shared])))
    return pairs


def _convolution(call: Call) -> list[Pair]:
    """All channels at some indices of the output."""
    bias = call["bias"]
    pairs = []
    for batch, _, *index in call.sample_indices(call.out):
        right = (_scattered if call["transposed"] else _gathered)(call, batch, index)
        given = call.out[batch]
        for d in index:
            given = given[:, d]
        pairs.append((given, right if bias is None else right + call.wide(bias)))
    return pairs


def _gathered(call: Call, batch: int, index: list[int]) -> Tensor:
    """One output pixel of a convolution: its window of the input times the weights."""
    image, weight = call["input"], call.wide(call["weight"])
    dims = len(index)
    stride, padding, dilation = (_each(call[name], dims) for name in ("stride", "padding", "dilation"))
    window, margins = image[batch : batch + 1], list[int]()
    for d in range(dims):
        start = index[d] * stride[d] - padding[d]
        stop, length = start + dilation[d] * (weight.shape[2 + d] - 1) + 1, image.shape[2 + d]
        window = window.narrow(2 + d, max(start, 0), min(stop, length) - max(start, 0))
        margins = [max(-start, 0), max(stop - length, 0), *margins]
    patch = F.pad(call.wide(window), margins)
    for d in range(dims):
        patch = patch[(slice(None),) * (2 + d) + (slice(None, None, dilation[d]),)]
    inputs = patch.reshape(call["groups"], -1, 1)
    return (weight.reshape(call["groups"], -1, inputs.shape[1]) @ inputs).flatten()


def _scattered(call: Call, batch: int, index: list[int]) -> Tensor:
    """One output pixel of a transposed convolution: every input that contributes, times its weight."""
    image, weight, groups = call["input"][batch], call["weight"], call["groups"]
    dims = len(index)
    stride, padding, dilation = (_each(call[name], dims) for name in ("stride", "padding", "dilation"))
    for d in range(dims):
        # input i reaches index i * stride - padding + k * dilation
        offsets = [index[d] + padding[d] - k * dilation[d] for k in range(weight.shape[2 + d])]
        reach = [
            (offset // stride[d], k)
            for k, offset in enumerate(offsets)
            if offset % stride[d] == 0 and 0 <= offset // stride[d] < call["input"].shape[2 + d]
        ]
        inputs, taps = torch.tensor(reach, dtype=torch.int64, device=weight.device).reshape(-1, 2).unbind(1)
        image, weight = image.index_select(1 + d, inputs), weight.index_select(2 + d, taps)
    channels = len(image) // groups
    sources = call.wide(image).reshape(groups, channels, -1)
    filters = call.wide(weight).reshape(groups, channels, weight.shape[1], -1)
    return torch.einsum("gcn,gcon->go", sources, filters).flatten()


def _each(values: Any, dims: int) -> list[int]:
    """One value per dimension; a single one holds for all."""
    return list(values) * dims if len(values) == 1 else list(values)


def _scan(call: Call) -> list[Pair]:
    """The first steps of some channels of some images; all steps where an index may overflow."""
    pairs, rows = [], call.along(1, call.out)
    steps = slice(None if is_past(call.out, call.limit) else MOST_STEPS)
    for batch in call.along(0, call.out):
        x, delta = (call.wide(call[name][batch : batch + 1, rows, steps]) for name in ("x", "delta"))
        B, C = (
            call.wide(_of_channels(call[name], batch, rows, call.out.shape[1], steps)) for name in ("B", "C")
        )
        A, D, bias = (call.wide(call[name][rows]) for name in ("A", "D", "delta_bias"))
        right = selective_scan.reference(x, delta, A, B, C, D, bias)
        pairs.append((call.out[batch : batch + 1, rows, steps], right))
    return pairs


def _of_channels(t: Any, batch: int, rows: Any, channels: int, steps: slice) -> Any:
    """B or C of one sequence for these channels: where channels have groups, each with that of its own."""
    if t.ndim == 3:
        return t[batch : batch + 1, :, steps]
    groups = [row * t.shape[1] // channels for row in rows]
    return t[batch, groups][None, ..., steps]


_ATTENTIONS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
KERNELS: dict[str, tuple[str, Recompute]] = {
    "aten::mm": ("matrix products", _matmul("self", "mat2")),
    "aten::addmm": ("matrix products", _matmul("mat1", "mat2", "self")),
    "aten::bmm": ("matrix products", _batched("self", "mat2")),
    "aten::baddbmm": ("matrix products", _batched("batch1", "batch2", "self")),
    "aten::convolution": ("convolutions", _convolution),
    "longvis::selective_scan": ("selective scans", _scan),
    **{f"aten::{name}": ("attentions", _attention) for name in _ATTENTIONS},
}
"""Operators that multiply: their kind, and what recomputes some indices of their output."""
