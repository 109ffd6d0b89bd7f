"""Workspace of convolutions: memory besides their tensors, for images as matrices and reordered weights.

After the peak has been read, one more iteration runs and measures each kind of convolution alone: the peak of
the process or device while it runs, minus the bytes held before and minus those it returns.
Buffers that a library keeps from its first call on do not show here; they are a part of their own.
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
"""Starts to watch a device's memory; calling the result gives the peak in bytes above the start."""


def convolution_workspace(tensors: TensorPeak, iteration: Callable[[], object], meter: Meter) -> int:
    """Bytes by which the workspace of convolutions raises the peak above that of the tensors.

    Arguments:
        tensors: tensor peak of the same iteration, with the bytes alive at each convolution.
        iteration: runs one batch, not in inference mode, which hides inner operators.
        meter: watches the device's memory.
    """
    with _Watch(meter) as watch:
        iteration()
    raised = (tensors.convolutions.get(name, 0) + size for name, size in watch.workspaces.items())
    return max(0, max(raised, default=0) - tensors.peak_bytes)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The workspace of every convolution that runs while the mode is active, measured once per kind."""

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
