"""The tensors of a model, registered ones and plain attributes: their memory, and their dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """The storages of a tensor; of a sparse one those of its indices and values; empty if torch has none."""
    try:
        return [tensor.untyped_storage()]
    except (NotImplementedError, RuntimeError):
        return [storage for part in _components(tensor) for storage in storages(part)]


def _components(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a sparse one is made of."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is one block of memory with sizes and strides."""
    return tensor.layout == torch.strided and not tensor.is_nested


def copy_with(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a model with every tensor replaced by the result of `replace`.

    Parameters stay parameters.  Tensors that a module keeps without registering them are replaced, too:
    tensors from numpy, and results of weight norm, which `copy.deepcopy` alone rejects.

    Arguments:
        model: not changed.
        replace: maps a tensor to one without gradient, of any device and dtype.
    """
    memo: dict[int, Any] = {id(kept): replace(kept.detach()) for kept in _kept(model)}
    memo |= {id(buffer): replace(buffer) for buffer in model.buffers()}
    memo |= {id(p): nn.Parameter(replace(p.detach()), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _kept(model: nn.Module) -> Iterator[Tensor]:
    """Tensors among a module's plain attributes, also in lists and dicts."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers")}
        yield from (leaf for leaf in tree_leaves(own) if isinstance(leaf, Tensor))


def to_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model's floating-point tensors in place; `nn.Module.to` would drop imaginary parts.

    Complex tensors become complex128 for float64 and complex64 otherwise, as they have no 16-bit dtype.

    Arguments:
        model: changed in place.
        dtype: float16, bfloat16, float32 or float64.
    """
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(wide)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    apply: Any = model._apply
    apply(convert)
    return model


def to_memory_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Convert a model's tensors of four dimensions in place; `nn.Module.to` also tries those of five.

    Arguments:
        model: changed in place.
        memory_format: torch.channels_last or torch.contiguous_format.
    """

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=memory_format) if tensor.dim() == 4 else tensor

    apply: Any = model._apply
    apply(convert)
    return model
