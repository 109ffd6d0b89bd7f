"""What building any model on the meta device needs, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class LinspaceOnCpu(TorchFunctionMode):
    """Make `torch.linspace` on the CPU whatever the default device.

    timm-style models compute their stochastic depth rates as
    `[x.item() for x in torch.linspace(...)]`, and a tensor on the meta device has no items.  These few
    numbers are all that ever leaves the default device while a model is built.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pin one function, leave the rest."""
        pinned = dict(kwargs or {})
        if func is torch.linspace:
            pinned.setdefault("device", "cpu")
        return func(*args, **pinned)
