"""Values of small CUDA tensors, computed on the CPU: under the driver their memory is the host's.

So logits are finite, losses are numbers and `.item()` returns something; larger tensors keep whatever their
memory held.  cuDNN is disabled, because the driver cannot answer its checks of the device.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

LIMIT = 20_000
"""Elements of all tensors of a call that is computed."""
_NOT_ARITHMETIC = (
    "empty",
    "attention",
    "_copy",
    "copy_",
    "set_",
    "resize_",
    "_local_scalar",
    "record_stream",
)

torch.backends.cudnn.enabled = False
torch.backends.cuda.enable_cudnn_sdp(False)


class SmallArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators on small CUDA tensors on the CPU, in place where they are in place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_computed(func, args, kwargs):
            return func(*args, **kwargs)
        hosts: list[tuple[Tensor, Tensor]] = []

        def to_host(value: Any) -> Any:
            if isinstance(value, torch.device):
                return torch.device("cpu")
            if not isinstance(value, Tensor) or not value.is_cuda:
                return value
            hosts.append((_on_host(value), value))
            return hosts[-1][0]

        def to_device(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            same = next((there for here, there in hosts if here is value), None)
            if same is not None:
                return same
            made = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=hosts[0][1].device
            )
            if made.numel():
                _on_host(made).copy_(value)
            return made

        try:
            host_args, host_kwargs = tree_map(to_host, (args, kwargs))
            with torch.inference_mode(False), torch.no_grad():
                result = func(*host_args, **host_kwargs)
        except (RuntimeError, NotImplementedError, TypeError):  # no such kernel on the CPU
            return func(*args, **kwargs)
        return tree_map(to_device, result)


def _is_computed(func: Any, args: Any, kwargs: Any) -> bool:
    name = func.overloadpacket.__name__
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    on_cuda = [t for t in tensors if t.is_cuda and type(t) in (Tensor, torch.nn.Parameter)]
    return bool(
        on_cuda
        and func.namespace == "aten"
        and not func.is_view
        and all(t.is_cuda or (t.device.type == "cpu" and t.ndim == 0) for t in tensors)
        and len(on_cuda) == sum(t.is_cuda for t in tensors)
        and torch.device(kwargs.get("device") or "cuda").type == "cuda"
        and sum(t.numel() for t in on_cuda) <= LIMIT
        and not any(word in name for word in _NOT_ARITHMETIC)
    )


def _on_host(t: Tensor) -> Tensor:
    """The same memory as a CPU tensor."""
    storage = t.untyped_storage()
    if storage.nbytes() < t.element_size():
        return torch.empty(t.shape, dtype=t.dtype)
    whole = storage.nbytes() // t.element_size() * t.element_size()
    memory = (ctypes.c_char * whole).from_address(storage.data_ptr())
    return torch.frombuffer(memory, dtype=t.dtype).as_strided(t.shape, t.stride(), t.storage_offset())
