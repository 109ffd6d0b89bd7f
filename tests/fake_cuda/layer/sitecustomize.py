"""Runs at the start of every process under the driver: torch without cuDNN, and `arithmetic` in cells."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _disable_cudnn(torch: Any) -> None:
    """The driver cannot answer cuDNN's checks of the device."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def _compute_values(cell: Any) -> None:
    """Wrap the function that measures a cell; FAKE_COMPUTE=0 leaves it alone."""
    measure = cell.measure_cell

    def measure_with_arithmetic(*args: Any, **kwargs: Any) -> Any:
        import arithmetic

        if not arithmetic.LIMIT:
            return measure(*args, **kwargs)
        with arithmetic.HostArithmetic():  # type: ignore[no-untyped-call]
            return measure(*args, **kwargs)

    cell.measure_cell = measure_with_arithmetic


ONCE_LOADED: dict[str, Callable[[Any], None]] = {
    "torch": _disable_cudnn,
    "longvis_bench.measure.cell": _compute_values,
}
"""Module -> what is done to it once it is loaded."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of `ONCE_LOADED` as Python would, and changes them once they are loaded."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        change = ONCE_LOADED.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
