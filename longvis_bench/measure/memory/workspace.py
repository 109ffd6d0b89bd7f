"""What convolutions take besides their tensors: images laid out as matrices, weights put in another order.

One more iteration runs, after the peak has been read, and each kind of convolution in it is watched alone:
the process's or device's peak while it runs, minus what was held before and minus what it gives back.
Buffers that a library keeps from its first call on are not seen: they are a part of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longvis_bench.measure.memory.tensor_peak import TensorPeak, is_convolution, signature
from longvis_bench.ops.model_tensors import storages

Meter = Callable[[], Callable[[], int]]
"""Starts watching a device's memory; what it returns gives the bytes above the start at the peak."""


def convolution_workspace(tensors: TensorPeak, iteration: Callable[[], object], meter: Meter) -> int:
    """By how much the workspace of convolutions raises the peak above that of the tensors, in bytes.

    Arguments:
        tensors: of the same iteration; says how much was alive at each convolution.
        iteration: runs one batch, without inference mode, which hides operators inside others.
        meter: watches the device.
    """
    with _Watch(meter) as watch:
        iteration()
    raised = (tensors.convolutions.get(name, 0) + size for name, size in watch.workspaces.items())
    return max(0, max(raised, default=0) - tensors.peak_bytes)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The workspace of every convolution that runs while it is active, each kind watched once."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.workspaces: dict[str, int] = {}
        self._meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = signature(func, args) if is_convolution(func) else None
        if name is None or name in self.workspaces:
            return func(*args, **(kwargs or {}))
        read = self._meter()
        result = func(*args, **(kwargs or {}))
        given_back = sum(
            storage.nbytes() for t in tree_leaves(result) if isinstance(t, Tensor) for storage in storages(t)
        )
        self.workspaces[name] = max(0, read() - given_back)
        return result
