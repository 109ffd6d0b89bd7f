"""Support for building third-party models on the meta device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from longvis_bench.errors import IllegalArgument


class LinspaceOnCpu(TorchFunctionMode):
    """Create the result of `torch.linspace` on the CPU, whatever the default device is.

    timm-style models compute their stochastic depth rates as
    `[x.item() for x in torch.linspace(...)]`, and a tensor on the meta device has no values.  No other tensor
    of a build leaves the default device.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Set the device of `torch.linspace`; other functions are unchanged."""
        pinned = dict(kwargs or {})
        if func is torch.linspace:
            pinned.setdefault("device", "cpu")
        return func(*args, **pinned)


def require_fixed(family: str, given: Mapping[str, object], legal: Mapping[str, tuple[object, ...]]) -> None:
    """Raise IllegalArgument unless arguments of the authors' code have a value that is implemented here."""
    for name, value in given.items():
        if name not in legal:
            raise IllegalArgument(f"{family} has no argument {name}.")
        if value not in legal[name]:
            values = " or ".join(repr(one) for one in legal[name])
            raise IllegalArgument(f"{name} of {family} must be {values}, not {value!r}.")
