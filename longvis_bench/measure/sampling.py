"""The kernels a forward runs, recomputed in higher precision on a sample of their rows and windows.

Where a whole model in float64 would take too long or too much memory, its kernels can still be checked: every
convolution, matrix product, attention and selective scan of one forward is recomputed from the inputs it had,
at the first, the last and a random place of its output, with plain products.  What is not sampled
(normalisation, activation functions, copies) is not checked, and the verdict says what was.

The last place is also the canary for 32-bit indices: in a tensor past 2^31 elements it lies where they
overflow.  Such a tensor made by an operator that is not sampled leaves the cell unchecked.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longvis_bench.errors import InvalidOutput
from longvis_bench.measure.formulas import by_name
from longvis_bench.ops import selective_scan

INT32_ELEMENTS = 2**31
"""From here on a 32-bit index overflows."""
MOST_STEPS = 256
"""Tokens of a scan that are recomputed, from its start: later ones cannot change earlier ones."""

Arguments = Mapping[str, Any]
Pair = tuple[Tensor, Tensor]
"""What the kernel gave and what it should have given, at some places."""


class Samples(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Recompute samples of every kernel that runs while it is active.

    Arguments:
        dtype: of the recomputation.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.kinds: Counter[str] = Counter()
        """Calls that were sampled, by kind."""
        self.error = 0.0
        """Largest difference / largest element of the reference, over all calls."""
        self.worst = ""
        """The operator that gave it."""
        self.unsampled: set[str] = set()
        """Operators that made tensors past 2^31 elements and are not sampled."""
        self.past_int32 = 0
        """Sampled calls with a tensor past 2^31 elements."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._overloadpacket._qualified_op_name
        result = func(*args, **(kwargs or {}))
        huge = any(isinstance(t, Tensor) and t.numel() >= INT32_ELEMENTS for t in tree_leaves((args, result)))
        kind, recompute = KERNELS.get(name, ("", None))
        arguments = by_name(func, args, kwargs or {})
        if recompute is None or arguments.get("transposed", False):
            if huge and not func.is_view and name != "aten::_unsafe_view":
                self.unsampled.add(name)
            return result
        first = result[0] if isinstance(result, tuple | list) else result
        self._compare(name, recompute(arguments, first, self.dtype))
        self.kinds[kind] += 1
        self.past_int32 += huge
        return result

    def _compare(self, name: str, pairs: list[Pair]) -> None:
        for given, right in pairs:
            if not right.isfinite().all():
                continue  # rows masked throughout, or a model that overflows: nothing to compare with
            if not given.isfinite().all():
                raise InvalidOutput(
                    f"{name} gave NaN or infinity where {_name(self.dtype)} gives numbers; try fp32 or bf16."
                )
            scale = right.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            error = float((given.to(right.dtype) - right).abs().max() / scale)
            if error > self.error:
                self.error, self.worst = error, name

    def describe(self) -> str:
        """What was compared, for `validity_reference`."""
        kinds = ", ".join(f"{calls} {kind}" for kind, calls in self.kinds.items())
        canary = f", {self.past_int32} past 2^31 elements" if self.past_int32 else ""
        return f"{_name(self.dtype)} at sampled rows and windows of {kinds or 'no kernels'}{canary}"


def sample_kernels(model: nn.Module, image: Tensor, dtype: torch.dtype) -> Samples:
    """Run one forward and compare its kernels at sampled places.

    Arguments:
        model: in eval mode, on the device and in the dtype that was measured.
        image: (1, channels, height, width) on the same device, in the same dtype.
        dtype: of the recomputation.

    Raises:
        InvalidOutput: a kernel gave NaN or infinity where the recomputation gives numbers.
    """
    samples = Samples(dtype)
    # not in inference mode, where operators arrive whole instead of as the kernels that run
    with torch.inference_mode(False), torch.no_grad(), samples:
        model(image)
    return samples


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _places(length: int) -> list[int]:
    """The first, the last, and one between."""
    return sorted({0, length - 1, random.randrange(length)})


def _matmul(left: str, right: str, added: str | None = None) -> Callable[..., list[Pair]]:
    """Rows of (m, k) x (k, n) + added."""

    def recompute(a: Arguments, out: Tensor, dtype: torch.dtype) -> list[Pair]:
        rows = _places(len(out)) if len(out) else []
        product = a[left][rows].to(dtype) @ a[right].to(dtype)
        if added is not None:
            bias = a[added].expand(out.shape)[rows].to(dtype)
            product = a.get("beta", 1) * bias + a.get("alpha", 1) * product
        return [(out[rows], product)]

    return recompute


def _batched(a: Arguments, out: Tensor, dtype: torch.dtype) -> list[Pair]:
    """Rows of the first and the last product of a batch, and of one between."""
    left, right = a["self"], a["mat2"]
    return [
        (out[b, rows], left[b, rows].to(dtype) @ right[b].to(dtype))
        for b in _places(len(out))
        for rows in (_places(out.shape[1]),)
    ]


def _attention(a: Arguments, out: Tensor, dtype: torch.dtype) -> list[Pair]:
    """Some queries of some heads, with a plain softmax."""
    query, key, value = a["query"], a["key"], a["value"]
    mask = a.get("attn_mask", a.get("attn_bias"))
    scale = a.get("scale") or query.shape[-1] ** -0.5
    pairs = []
    for batch, head in {(0, 0), (len(query) - 1, query.shape[1] - 1)}:
        shared = head * key.shape[1] // query.shape[1]
        rows = _places(query.shape[2])
        scores = query[batch, head, rows].to(dtype) @ key[batch, shared].to(dtype).mT * scale
        if mask is not None:
            scores = scores + mask.expand(*query.shape[:2], *mask.shape[-2:])[batch, head].expand(
                query.shape[2], -1
            )[rows].to(dtype)
        if a.get("is_causal", False):
            later = (
                torch.arange(key.shape[2], device=query.device)
                > torch.tensor(rows, device=query.device)[:, None]
            )
            scores = scores.masked_fill(later, -torch.inf)
        pairs.append((out[batch, head, rows], scores.softmax(-1) @ value[batch, shared].to(dtype)))
    return pairs


def _convolution(a: Arguments, out: Tensor, dtype: torch.dtype) -> list[Pair]:
    """Windows of a convolution: the part of the input under one place of the output, all channels."""
    image, weight, bias = a["input"], a["weight"].to(dtype), a["bias"]
    kernel, dims = weight.shape[2:], weight.ndim - 2
    stride, padding, dilation = (_each(a[name], dims) for name in ("stride", "padding", "dilation"))
    pairs = []
    for batch, place in ((0, _corner(out, 0)), (len(out) - 1, _corner(out, -1)), (0, _corner(out, None))):
        window, margins = image[batch : batch + 1], list[int]()
        for d in range(dims):
            start = place[d] * stride[d] - padding[d]
            stop = start + dilation[d] * (kernel[d] - 1) + 1
            length = image.shape[2 + d]
            window = window.narrow(2 + d, max(start, 0), min(stop, length) - max(start, 0))
            margins = [max(-start, 0), max(stop - length, 0), *margins]
        patch = F.pad(window.to(dtype), margins)
        for d in range(dims):
            patch = patch[(slice(None),) * (2 + d) + (slice(None, None, dilation[d]),)]
        inputs = patch.reshape(a["groups"], -1, 1)
        right = (weight.reshape(a["groups"], -1, inputs.shape[1]) @ inputs).flatten()
        right = right if bias is None else right + bias.to(dtype)
        given = out[batch]
        for d in place:
            given = given[:, d]
        pairs.append((given, right))
    return pairs


def _each(values: Any, dims: int) -> list[int]:
    """One number a dimension, where one was given for all."""
    return list(values) * dims if len(values) == 1 else list(values)


def _corner(out: Tensor, where: int | None) -> tuple[int, ...]:
    """The first (0), the last (-1) or a random (None) place of a map."""
    lengths = out.shape[2:]
    return tuple(random.randrange(n) if where is None else where % n for n in lengths)


def _scan(a: Arguments, out: Tensor, dtype: torch.dtype) -> list[Pair]:
    """The first steps of the first and the last sequence, three channels each."""
    pairs = []
    for batch in {0, len(out) - 1}:
        rows, steps = _places(out.shape[1]), slice(MOST_STEPS)
        x, delta = (a[name][batch : batch + 1, rows, steps].to(dtype) for name in ("x", "delta"))
        B, C = (a[name][batch : batch + 1, :, steps].to(dtype) for name in ("B", "C"))
        A, D, bias = (a[name][rows].to(dtype) for name in ("A", "D", "delta_bias"))
        pairs.append(
            (out[batch : batch + 1, rows, steps], selective_scan.reference(x, delta, A, B, C, D, bias))
        )
    return pairs


_ATTENTIONS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
KERNELS: dict[str, tuple[str, Callable[..., list[Pair]] | None]] = {
    "aten::mm": ("matrix products", _matmul("self", "mat2")),
    "aten::addmm": ("matrix products", _matmul("mat1", "mat2", "self")),
    "aten::bmm": ("matrix products", _batched),
    "aten::convolution": ("convolutions", _convolution),
    "longvis::selective_scan": ("selective scans", _scan),
    **{f"aten::{name}": ("attentions", _attention) for name in _ATTENTIONS},
}
"""Operators that are sampled: their kind, and what recomputes some places of their output."""
