"""Recompute operators without matrix products on slices: elementwise, by rows, in windows, and copies.

Where an output depends on few inputs, the operator runs again on those, in higher precision; where it depends
on many (means, statistics of a group), they are summed in pieces; a copy is compared with its source.  So no
index of a recomputation comes near 2^31, whatever the size of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from longvis_bench.measure.validity.recompute_matmul import Call, Pair, Recompute
from longvis_bench.measure.validity.sample_indices import Index, segments, shadow

LARGEST_ROW = 2**26
"""Most elements converted at once; longer rows are recomputed for sums and means only."""
PIECE = 2**22
"""Most elements summed at once."""


class NotSampled(Exception):
    """The operator can be sampled, but not this call."""


# elementwise


def is_elementwise(func: Any) -> bool:
    """Whether each output element depends only on the input elements that are broadcast to it."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    return torch.Tag.pointwise in func.tags or func._overloadpacket.__name__ in ("copy_", "_to_copy", "gelu_")


def prepare_elementwise(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype, limit: int
) -> Callable[[Tensor], list[Pair]]:
    """Copy slices of the inputs, which an operator in place is about to overwrite, and compare later.

    Returns:
        A function from the operator's result to the pairs.
    """
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    shape = _broadcast(tensors)
    like = next((t for t in tensors if t.shape == shape), shadow(shape))
    taken = []
    for where in segments(like, limit):

        def take(t: object, where: tuple[int | slice, ...] = where) -> object:
            if not isinstance(t, Tensor):
                return t
            part = t.expand(shape)[where] if t.ndim else t
            return part.to(dtype if t.is_floating_point() else t.dtype, copy=True)

        taken.append((where, tree_map(take, (args, dict(kwargs)))))
    return lambda out: [(out[where], func(*some, **more)) for where, (some, more) in taken]


def _broadcast(tensors: list[Tensor]) -> torch.Size:
    """The shape to which tensors broadcast."""
    shapes: Callable[..., torch.Size] = torch.broadcast_shapes
    return shapes(*(t.shape for t in tensors))


# by rows


def _again(call: Call, name: str, part: Tensor) -> Tensor:
    """The operator's result on a part of its input, with all arguments in higher precision."""
    changed = {n: call.wide(t) if _is_float(t) else t for n, t in call.arguments.items() if n != name}
    changed |= {n: plain for n, plain in (("dtype", None), ("half_to_float", False)) if n in changed}
    result = call.func(**{name: call.wide(part)}, **changed)
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _rows(call: Call) -> list[Pair]:
    """Whole rows along the dimensions over which the operator sums, normalises or compares."""
    name = "self" if "self" in call.arguments else "input"
    source = call[name]
    dims = _row_dims(call, source.ndim)
    pairs = []
    for index in call.sample_indices(source):
        where = tuple(slice(None) if d in dims else slice(p, p + 1) for d, p in enumerate(index))
        kept = tuple(s for d, s in enumerate(where) if call.out.ndim == source.ndim or d not in dims)
        row = source[where]
        if call.func._overloadpacket.__name__ in ("sum", "mean"):
            total = sum(
                (piece.sum(dtype=call.dtype) for piece in _pieces(row)), row.new_zeros((), dtype=call.dtype)
            )
            mean = call.func._overloadpacket.__name__ == "mean"
            right = (total / row.numel() if mean else total).expand(call.out[kept].shape)
        elif row.numel() > LARGEST_ROW:
            raise NotSampled
        else:
            right = _again(call, name, row)
        pairs.append((call.out[kept], right))
    return pairs


def _row_dims(call: Call, ndim: int) -> set[int]:
    """The dimensions of a row."""
    if "normalized_shape" in call.arguments:
        return set(range(ndim - len(call["normalized_shape"]), ndim))
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        return set(range(ndim))
    return {d % ndim for d in ([dims] if isinstance(dims, int) else dims)} if ndim else set()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in views of at most `PIECE` elements."""
    if tensor.numel() <= PIECE:
        yield tensor
        return
    longest = max(range(tensor.ndim), key=lambda d: tensor.shape[d])
    for half in tensor.tensor_split(2, dim=longest):
        yield from _pieces(half)


def _group_norm(call: Call) -> list[Pair]:
    """Pixels of some channels, with the mean and variance of their group summed in pieces."""
    source, pairs = call["input"], []
    channels = source.shape[1] // call["group"]
    for where in segments(source, call.limit):
        batch, channel = where[:2]
        assert isinstance(batch, int)
        first = channel if isinstance(channel, int) else channel.start
        if not isinstance(channel, int):
            raise NotSampled  # without spatial dimensions, the groups are along the last one
        group = source[batch, first // channels * channels :][:channels]
        mean, variance = _moments(group, call.dtype)
        normal = (call.wide(source[where]) - mean) / torch.sqrt(variance + call["eps"])
        pairs.append((call.out[where], _affine(call, normal, channel)))
    return pairs


def _moments(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance over all elements."""
    zero, count = tensor.new_zeros((), dtype=dtype), tensor.numel()
    mean = sum((piece.sum(dtype=dtype) for piece in _pieces(tensor)), zero) / count
    squares = ((piece.to(dtype) - mean).square().sum() for piece in _pieces(tensor))
    return mean, sum(squares, zero) / count


def _batch_norm(call: Call) -> list[Pair]:
    """Some pixels, normalised with the running statistics."""
    if call.arguments.get("training", False) or call["running_mean"] is None:
        raise NotSampled
    a, source, pairs = call.arguments, call["input"], []
    eps = a["eps"] if "eps" in a else a["epsilon"]
    for where in segments(source, call.limit):
        channel = where[1]
        mean, variance = call.wide(call["running_mean"][channel]), call.wide(call["running_var"][channel])
        normal = (call.wide(source[where]) - mean) / torch.sqrt(variance + eps)
        pairs.append((call.out[where], _affine(call, normal, channel)))
    return pairs


def is_batch_norm_in_place(func: Any) -> bool:
    """Whether it is the variant of batch norm with an output argument, which may be its input."""
    return str(func) == "aten.native_batch_norm.out"


def prepare_batch_norm(call: Call) -> Callable[[Tensor], list[Pair]]:
    """Recompute before the input is overwritten; the pairs hold views of the output."""
    pairs = _batch_norm(call)
    return lambda out: pairs


def _affine(call: Call, normal: Tensor, channel: int | slice) -> Tensor:
    """Normalised values, scaled and shifted by the channel's weight and bias if there are any."""
    weight, bias = call["weight"], call["bias"]
    scaled = normal if weight is None else normal * call.wide(weight[channel])
    return scaled if bias is None else scaled + call.wide(bias[channel])


# windows


def _pool(call: Call) -> list[Pair]:
    """All channels at some indices of a pooled map."""
    pairs = []
    for index in call.sample_indices(call.out):
        where, size = _window(call, index)
        shown: tuple[int | slice, ...] = (*index[:-3], slice(None), *index[-2:])
        inside: tuple[int | slice, ...] = (*index[:-3], slice(None), *where)
        window = call.wide(call["self"][inside])
        largest = call.func._overloadpacket.__name__.startswith("max")
        pairs.append((call.out[shown], window.amax((-2, -1)) if largest else window.sum((-2, -1)) / size))
    return pairs


def _window(call: Call, index: Index) -> tuple[tuple[slice, ...], int]:
    """The part of the input under one index of the output, and what its sum is divided by."""
    slices, size = list[slice](), 1
    for d, p in ((-2, index[-2]), (-1, index[-1])):
        length = call["self"].shape[d]
        if "kernel_size" not in call.arguments:  # adaptive
            outputs = call.out.shape[d]
            start, stop = p * length // outputs, -(-(p + 1) * length // outputs)
            slices.append(slice(start, stop))
            size *= stop - start
            continue
        kernel = _side(call["kernel_size"], d)
        stride = _side(call["stride"] or call["kernel_size"], d)
        padding, dilation = _side(call["padding"], d), _side(call.arguments.get("dilation", [1]), d)
        start = p * stride - padding
        stop = min(start + dilation * (kernel - 1) + 1, length + padding)
        inside = slice(start % dilation if start < 0 else start, min(stop, length), dilation)
        slices.append(inside)
        padded = call.arguments.get("count_include_pad", True)
        size *= stop - start if padded else len(range(inside.start, inside.stop, dilation))
    return tuple(slices), call.arguments.get("divisor_override") or size


def _side(values: Any, d: int) -> int:
    """The value for a dimension; a single one holds for both."""
    return int(values[d] if len(values) > 1 else values[0])


# copies

Source = tuple[Tensor, Index] | float
"""The tensor and index that an element is copied from, or its value."""


def _copies(source_of: Callable[[Call, Index], Source]) -> Recompute:
    """Elements that are copied unchanged from another tensor."""

    def recompute(call: Call) -> list[Pair]:
        given, right = [], []
        for index in call.sample_indices(call.out):
            source = source_of(call, index)
            given.append(call.out[index])
            right.append(source[0][source[1]] if isinstance(source, tuple) else call.out.new_tensor(source))
        return [(torch.stack(given), torch.stack(right))] if given else []

    return recompute


def _cat(call: Call, index: Index) -> Source:
    parts = [t for t in call["tensors"] if t.shape != (0,)]
    dim = call["dim"] % call.out.ndim
    starts = [0, *accumulate(t.shape[dim] for t in parts)]
    which = max(i for i, start in enumerate(starts[:-1]) if start <= index[dim] and parts[i].shape[dim])
    return parts[which], _moved(index, dim, index[dim] - starts[which])


def _stack(call: Call, index: Index) -> Source:
    dim = call["dim"] % call.out.ndim
    return call["tensors"][index[dim]], (*index[:dim], *index[dim + 1 :])


def _moved(index: Index, dim: int, to: int) -> Index:
    return (*index[:dim], to, *index[dim + 1 :])


def _pad(call: Call, index: Index) -> Source:
    pad, shape = call["pad"], call["self"].shape
    before = [0] * (len(shape) - len(pad) // 2) + list(pad[-2::-2])
    index = tuple(p - b for p, b in zip(index, before, strict=True))
    inside = all(0 <= i < n for i, n in zip(index, shape, strict=True))
    return (call["self"], index) if inside else float(call["value"])


def _roll(call: Call, index: Index) -> Source:
    if not call["dims"]:
        raise NotSampled
    for shift, dim in zip(call["shifts"], call["dims"], strict=True):
        dim %= len(index)
        index = _moved(index, dim, (index[dim] - shift) % call.out.shape[dim])
    return call["self"], index


def _flip(call: Call, index: Index) -> Source:
    for dim in call["dims"]:
        dim %= len(index)
        index = _moved(index, dim, call.out.shape[dim] - 1 - index[dim])
    return call["self"], index


def _repeat(call: Call, index: Index) -> Source:
    shape = call["self"].shape
    return call["self"], tuple(p % n for p, n in zip(index[len(index) - len(shape) :], shape, strict=True))


def _index_select(call: Call, index: Index) -> Source:
    dim = call["dim"] % len(index)
    return call["self"], _moved(index, dim, int(call["index"][index[dim]]))


def _gather(call: Call, index: Index) -> Source:
    return call["self"], _moved(index, call["dim"] % len(index), int(call["index"][index]))


def _embedding(call: Call, index: Index) -> Source:
    return call["weight"], (int(call["indices"][index[:-1]]), index[-1])


def _index(call: Call, index: Index) -> Source:
    """Advanced indexing with adjacent integer tensors."""
    given = [d for d, index in enumerate(call["indices"]) if index is not None]
    indices = [call["indices"][d] for d in given]
    if given != list(range(given[0], given[-1] + 1)) or any(i.dtype == torch.bool for i in indices):
        raise NotSampled
    shape = _broadcast(indices)
    first, after = given[0], given[0] + len(shape)
    inner = index[first:after]
    chosen = [int(i.expand(shape)[inner]) for i in indices]
    return call["self"], (*index[:first], *chosen, *index[after:])


def _pixel_shuffle(call: Call, index: Index) -> Source:
    r = call["upscale_factor"]
    *batch, channel, y, x = index
    return call["self"], (*batch, channel * r * r + y % r * r + x % r, y // r, x // r)


def _filled(call: Call, index: Index) -> Source:
    """The value that a new tensor is filled with."""
    value = call.arguments.get("fill_value", call.arguments.get("value"))
    if value is None:
        value = "ones" in call.func._overloadpacket.__name__
    return float(value)


def _table(names: str, recompute: Recompute) -> dict[str, Recompute]:
    return {f"aten::{name}": recompute for name in names.split()}


SLICES: dict[str, Recompute] = {
    **_table("_softmax _log_softmax _safe_softmax cumsum logsumexp sum mean amax amin", _rows),
    **_table("native_layer_norm _fused_rms_norm linalg_vector_norm var_mean var std", _rows),
    **_table("native_group_norm", _group_norm),
    **_table("native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm", _batch_norm),
    **_table("max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d", _pool),
    "aten::cat": _copies(_cat),
    "aten::stack": _copies(_stack),
    "aten::constant_pad_nd": _copies(_pad),
    "aten::roll": _copies(_roll),
    "aten::flip": _copies(_flip),
    "aten::repeat": _copies(_repeat),
    "aten::index": _copies(_index),
    "aten::index_select": _copies(_index_select),
    "aten::gather": _copies(_gather),
    "aten::embedding": _copies(_embedding),
    "aten::pixel_shuffle": _copies(_pixel_shuffle),
    **_table("zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full", _copies(_filled)),
}
"""Operators recomputed on slices, besides the elementwise ones: qualified name -> recomputation."""
