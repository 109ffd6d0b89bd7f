"""Values of CUDA tensors, computed on the CPU: under the driver their memory is the host's.

Every operator runs on the device first, where torch checks it, allocates, and launches kernels that compute
nothing.  Then it runs on the CPU in the same memory, unless its tensors have more than FAKE_COMPUTE elements
together (20,000); with 0 nothing is computed.  torch.compile compiles nothing while such a mode is active.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

LIMIT = int(os.environ.get("FAKE_COMPUTE", "20000"))
_ONLY_ON_THE_DEVICE = (
    *("empty", "set_", "resize_", "record_stream", "pin_memory"),
    *("_local_scalar_dense", "_fused_sdp_choice"),
)
"""Parts of the names of operators that read or arrange memory, or choose a kernel."""


class HostArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators on the device, then on the CPU in the same memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.dynamic_output_shape in func.tags and _is_computed(func, (args, kwargs), ()):
            return _as_shaped_by_values(func, args, kwargs)
        result = func(*args, **kwargs)
        if not _is_computed(func, (args, kwargs), result):
            return result
        try:
            computed = _computed(func, args, kwargs)
        except (
            RuntimeError,
            NotImplementedError,
            TypeError,
            IndexError,
        ):  # not on the CPU, or uncomputed input
            return result
        leaves = tree_leaves(result)
        for there, value in zip(leaves, tree_leaves(computed), strict=False):
            if isinstance(there, Tensor) and isinstance(value, Tensor):
                _write(there, value)
        return result if any(isinstance(leaf, Tensor) for leaf in leaves) or result is None else computed


def _as_shaped_by_values(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator whose shape depends on values, e.g. a mask's: only the host has them."""
    device = next(t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_cuda)
    return tree_map(lambda value: _on_device(value, device), _computed(func, args, kwargs))


def _on_device(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    there = torch.empty(value.shape, dtype=value.dtype, device=device)
    _write(there, value)
    return there


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """What the CPU computes, in a thread without this mode, autocast, or whatever else is active."""
    host_args, host_kwargs = tree_map(_on_host, (args, kwargs))
    return _thread().submit(_compute, func, host_args, host_kwargs).result()


def _is_computed(func: Any, inputs: Any, result: Any) -> bool:
    name = func.overloadpacket.__name__
    read, made = ([t for t in tree_leaves(values) if isinstance(t, Tensor)] for values in (inputs, result))
    tensors = [*read, *made]
    return (
        any(t.is_cuda for t in tensors)
        and all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type in ("cuda", "cpu") for t in tensors)
        and sum(t.numel() for t in tensors) <= LIMIT
        and not any(part in name for part in _ONLY_ON_THE_DEVICE)
        and (func._schema.is_mutable or not _storages(made) & _storages(read))  # views hold it already
    )


def _storages(tensors: list[Tensor]) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors}


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    with torch.no_grad():
        if not name.startswith(("_scaled_dot_product_flash", "_scaled_dot_product_efficient")):
            return func(*args, **kwargs)
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        return _attention_backward(**named, **kwargs) if "backward" in name else _attention(**named, **kwargs)


def _scores(query: Tensor, key: Tensor, scale: float | None, bias: Tensor | None) -> Tensor:
    scores = query.float() @ key.float().mT * (scale or query.shape[-1] ** -0.5)
    return scores if bias is None else scores + bias.float()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    *,
    scale: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """The output and the logarithm of the softmax's denominator, of flash and efficient attention."""
    assert not others.get("is_causal")
    assert not others.get("dropout_p")
    scores = _scores(query, key, scale, attn_bias)
    return scores.softmax(-1) @ value.float(), scores.logsumexp(-1)


def _attention_backward(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    attn_bias: Tensor | None = None,
    scale: float | None = None,
    **others: Any,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and bias, from the output and denominator that the caller gives."""
    grad = others["grad_out" if "grad_out" in others else "grad_out_"].float()
    scores = _scores(query, key, scale, attn_bias)
    weights = torch.exp(scores - logsumexp[..., : query.shape[-2], None])
    d_scores = weights * (grad @ value.float().mT - (grad * out.float()).sum(-1, keepdim=True))
    scaled = d_scores * (scale or query.shape[-1] ** -0.5)
    return scaled @ key.float(), scaled.mT @ query.float(), weights.mT @ grad, d_scores


def _on_host(value: Any) -> Any:
    """The same memory as a CPU tensor; the CPU for a CUDA device."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if not isinstance(value, Tensor) or not value.is_cuda:
        return value
    storage = value.untyped_storage()
    if not storage.nbytes() or not value.numel():
        return torch.empty(value.shape, dtype=value.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    with torch.inference_mode(False):
        whole = torch.frombuffer(memory, dtype=value.dtype, count=storage.nbytes() // value.element_size())
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())


def _write(result: Tensor, computed: Tensor) -> None:
    """Put what the CPU computed where the device would have put it."""
    if result.numel() < computed.numel():  # left out, as denominators that no gradient needs
        return
    there = _on_host(result)
    with torch.inference_mode(False), torch.no_grad():  # denominators of the efficient kernel are padded
        (there if there.shape == computed.shape else there[..., : computed.shape[-1]]).copy_(computed)
