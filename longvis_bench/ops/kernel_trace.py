"""Which kernels truly ran: attention as torch dispatched it, selective scans as their operator chose them.

`scaled_dot_product_attention` picks its kernel from shapes, dtype, layout and settings; asking it beforehand
would be a guess.  `observe` runs a call and looks at the operators that it dispatched, in every family alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
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
"""torch's attention operators: torch.nn.attention.SDPBackend's names, in lower case; the math one is composed
of products and shows as an attention call that none of these answered."""

Kernels = dict[str, set[str]]
"""Kernel names by what they compute: `attention`, `scan`."""

_kernels: ContextVar[Kernels | None] = ContextVar("longvis_kernels", default=None)


def note(kind: str, kernel: str) -> None:
    """Say that a kernel runs; heard inside `observe` only."""
    kernels = _kernels.get()
    if kernels is not None:
        kernels.setdefault(kind, set()).add(kernel)


@contextmanager
def observe() -> Iterator[Kernels]:
    """Collect the kernels that run inside, in eager mode: compiled models run their Python code."""
    kernels: Kernels = {}
    token = _kernels.set(kernels)
    try:
        with torch.compiler.set_stance("force_eager"), _Calls(), _Operators():  # type: ignore[no-untyped-call]
            yield kernels
    finally:
        _kernels.reset(token)


def observing_once(call: Callable[[], object]) -> tuple[Callable[[], object], Kernels]:
    """A call that observes itself the first time, and the kernels, which are there from then on."""
    kernels: Kernels = {}
    seen = False

    def run() -> object:
        nonlocal seen
        if seen:
            return call()
        seen = True
        with observe() as found:
            result = call()
        kernels.update(found)
        return result

    return run, kernels


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes torch's attention operators."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kernel = KERNELS.get(func.overloadpacket.__name__)
        if kernel is not None:
            note(ATTENTION, kernel)
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Notes calls of scaled_dot_product_attention that no fused operator answers: products and a softmax."""

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
        for kernel in inner.get(ATTENTION, {"math"}):
            note(ATTENTION, kernel)
        return out
