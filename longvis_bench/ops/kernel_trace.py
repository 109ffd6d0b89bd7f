"""The kernels that ran: those that torch dispatched for attention, and the backends of selective scans.

`scaled_dot_product_attention` picks its kernel from shapes, dtype, layout and settings; a prediction would be
a guess.  `observe` records the operators that a model dispatches, in the same way for every family.

Under `torch.inference_mode` a dispatch mode sees that function as one operator, without its kernel.  Observe
under `torch.no_grad`, where torch picks the same kernel (a test compares both with the profiler).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ATTENTION = "attention"
SCAN = "scan"

KERNELS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_fused_attention_overrideable": "device",
    "_scaled_dot_product_attention_math_for_mps": "math",
}
"""torch's attention operators: torch.nn.attention.SDPBackend's names, in lower case.  The math kernel is
composed of products; it shows as a call of attention without any of these operators."""
UNFUSED = "unfused"
"""Attention that a model computes itself: a product, a softmax, and a product with its output."""
_SOFTMAX = frozenset({"_softmax", "_safe_softmax", "softmax"})
_PRODUCTS = frozenset({"bmm", "baddbmm", "mm", "matmul"})
_KEEP_WEIGHTS = frozenset({"_to_copy", "clone", "native_dropout", "mul", "div"})
"""Operators on attention weights between the softmax and the product: casts, copies, dropout."""

Kernels = dict[str, set[str]]
"""Names of kernels, by kind: `attention`, `scan`."""

_kernels: ContextVar[Kernels | None] = ContextVar("longvis_kernels", default=None)


def note(kind: str, kernel: str) -> None:
    """Record that a kernel runs; has an effect inside `observe` only."""
    kernels = _kernels.get()
    if kernels is not None:
        kernels.setdefault(kind, set()).add(kernel)


@contextmanager
def listen() -> Iterator[Kernels]:
    """Collect the kernels that are recorded by `note`, without watching operators, which takes time."""
    kernels: Kernels = {}
    token = _kernels.set(kernels)
    try:
        yield kernels
    finally:
        _kernels.reset(token)


@contextmanager
def observe() -> Iterator[Kernels]:
    """Collect the kernels that run inside, in eager mode: compiled models run their Python code."""
    with listen() as kernels, torch.compiler.set_stance("force_eager"), _Calls(), _Operators():
        yield kernels


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records torch's attention operators, and products with the output of a softmax."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights: set[StorageWeakRef] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in KERNELS:
            note(ATTENTION, KERNELS[name])
        reads_weights = (name in _PRODUCTS or name in _KEEP_WEIGHTS) and any(map(self._is_weights, args))
        if name in _PRODUCTS and reads_weights:
            note(ATTENTION, UNFUSED)
        result = func(*args, **(kwargs or {}))
        if name in _SOFTMAX or (name in _KEEP_WEIGHTS and reads_weights):
            self._weights.add(_reference(result[0] if isinstance(result, tuple) else result))
        return result

    def _is_weights(self, value: object) -> bool:
        return bool(self._weights) and isinstance(value, Tensor) and _reference(value) in self._weights


def _reference(tensor: Tensor) -> StorageWeakRef:
    """Identifies a tensor's storage, which views share; while it lives, no other storage equals it."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


class _Calls(TorchFunctionMode):
    """Records calls of scaled_dot_product_attention that run no fused operator, as `math`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        inner: Kernels = {}
        token = _kernels.set(inner)
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            _kernels.reset(token)
        for kernel in inner.get(ATTENTION, {UNFUSED}):
            note(ATTENTION, "math" if kernel == UNFUSED else kernel)
        return out
