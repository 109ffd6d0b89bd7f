"""Attention as an NVIDIA GPU would run it, on a machine that has none: for executing shapes on its behalf.

torch asks the driver which attention kernel a GPU takes.  Without a driver it falls back to products, whose
logits grow with the square of the tokens: 385 GiB for a ViT-B at 4096 px that really runs in 2.  `plan_for`
names the GPU instead.  Inside, `F.scaled_dot_product_attention` of tensors on `cuda` runs the operator that
torch chooses on that GPU, from its compute capability, the dtype, the head size and the mask.

The rules are those of torch 2.15 (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp) with its CUDA 13
build, whose cuDNN is new enough to be preferred at 9.x and 10.x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from longvis_bench.ops.kernel_trace import ATTENTION, note

Capability = tuple[int, int]
"""Compute capability, e.g. (9, 0) of an H100."""
Kernel = Literal["cudnn", "flash", "efficient", "math"]

aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_OLDEST, _NEWEST = (8, 0), (12, 1)
"""Compute capabilities with flash and cuDNN attention, both included."""
_MOST_CUDNN_CHANNELS, _MOST_FLASH_CHANNELS = 128, 256
_MASK_ALIGNMENT = 16
"""Elements that a row of a mask is padded to for the memory-efficient kernel."""

_planned: ContextVar[Capability | None] = ContextVar("longvis_planned_gpu", default=None)


@contextmanager
def plan_for(capability: Capability) -> Iterator[None]:
    """Choose attention kernels for a GPU of this compute capability, whatever this machine has."""
    token = _planned.set(capability)
    try:
        with _Attention():
            yield
    finally:
        _planned.reset(token)


def planned_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    causal: bool = False,
    padded: bool = True,
) -> Kernel | None:
    """The kernel that torch takes on the planned GPU; None outside `plan_for`.

    Arguments:
        query, key, value: (batch, heads, tokens, channels).
        mask: boolean or added to the logits.
        dropout: share of the weights.
        causal: whether each token attends to those before it only.
        padded: whether channels may be padded for flash attention, as `F.scaled_dot_product_attention` does.
    """
    capability = _planned.get()
    if capability is None:
        return None
    tensors = (query, key, value)
    if any(t.ndim != 4 or t.stride(-1) != 1 or t.numel() == 0 for t in tensors):
        return "math"
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    preferred: list[tuple[Kernel, bool]] = [
        ("flash", mask is None and _takes_flash(capability, query, key, value, trained, dropout, padded)),
        ("efficient", _takes_efficient(capability, query, value)),
    ]
    if capability[0] in (9, 10) and not (causal and mask is not None):
        preferred.insert(0, ("cudnn", padded and _takes_cudnn(capability, query, key, value, dropout)))
    return next((kernel for kernel, takes in preferred if takes), "math")


def _is_half(capability: Capability, dtype: torch.dtype) -> bool:
    """Whether it is a 16-bit dtype that this GPU's attention kernels take."""
    return dtype in (_HALF if capability >= (8, 0) else (torch.float16,))


def _takes_flash(
    capability: Capability,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    trained: bool,
    dropout: float,
    padded: bool,
) -> bool:
    channels = query.shape[-1]
    if not (_OLDEST <= capability <= _NEWEST and _is_half(capability, query.dtype)):
        return False
    if not channels == key.shape[-1] == value.shape[-1] <= _MOST_FLASH_CHANNELS:
        return False
    if not padded and channels % 8:
        return False
    small = (8, 6) <= capability <= (8, 9) or capability >= (12, 0)  # less shared memory for the backward
    return not (trained and small) or channels <= 192 or (dropout == 0 and channels > 224)


def _takes_cudnn(capability: Capability, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    channels = (query.shape[-1], value.shape[-1])
    if not (_OLDEST <= capability <= _NEWEST and _is_half(capability, query.dtype)):
        return False
    if key.shape[2] == 1 or max(query.shape[:2]) > 65535 or (16 * dropout) % 1:
        return False
    return max(channels) <= _MOST_CUDNN_CHANNELS and not any(width % 8 for width in channels)


def _takes_efficient(capability: Capability, query: Tensor, value: Tensor) -> bool:
    if not (capability >= (5, 0) and (query.dtype == torch.float32 or _is_half(capability, query.dtype))):
        return False
    alignment = 1
    if capability >= (8, 0):
        alignment = 16 // query.element_size()
    elif capability >= (7, 0) and query.dtype in _HALF:
        alignment = 8
    return query.shape[-1] % alignment == 0 and value.shape[-1] % alignment == 0


class _Attention(TorchFunctionMode):
    """Runs `F.scaled_dot_product_attention` on `cuda` by the operator of the planned GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        query = args[0] if args else options.get("query")
        if func is F.scaled_dot_product_attention and isinstance(query, Tensor) and query.is_cuda:
            return _attend(func, *args, **options)
        return func(*args, **options)


def _attend(
    plain: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the operator of the planned GPU, with the copies that torch makes for it."""
    query, key, value = _autocast(query, key, value)
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        copies = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(copies, -3), value.repeat_interleave(copies, -3)
    kernel = planned_kernel(query, key, value, attn_mask, dropout=dropout_p, causal=is_causal)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if kernel is not None:
        note(ATTENTION, kernel)
    if kernel == "flash":
        width = value.shape[-1]
        padded = (_pad_channels(t) for t in (query, key, value))
        wide = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, scale=factor)[0]
        read: Tensor = wide[..., :width]
        return read
    if kernel in ("cudnn", "efficient"):
        bias = None if attn_mask is None else _bias(attn_mask, query, key)
        name = f"_scaled_dot_product_{kernel}_attention"
        out: Tensor = getattr(aten, name)(
            query, key, value, bias, trained, dropout_p, is_causal, scale=factor
        )[0]
        return out
    result: Tensor = aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=factor
    )[0]
    return result


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast casts attention's inputs."""
    if not torch.is_autocast_enabled("cuda"):
        return tensors
    dtype = torch.get_autocast_dtype("cuda")
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)


def _pad_channels(tensor: Tensor) -> Tensor:
    """Channels padded to a multiple of 8, which flash attention needs."""
    missing = -tensor.shape[-1] % 8
    return F.pad(tensor, (0, missing)) if missing else tensor


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as what is added to the logits, its rows aligned, broadcast over batch and heads."""
    bias = mask
    if mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -torch.inf)
    elif mask.dtype != query.dtype:
        bias = mask.to(query.dtype)
    columns = bias.shape[-1]
    if columns % _MASK_ALIGNMENT:
        bias = F.pad(bias, (0, -columns % _MASK_ALIGNMENT))[..., :columns]
    return bias.expand(*query.shape[:2], query.shape[2], key.shape[2])
