"""Runs at the start of every process under the driver: `arithmetic` is active while a cell is measured."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CELL = "longvis_bench.measure.cell"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module that measures cells, and wraps `measure_cell` once it is loaded."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != CELL:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            measure = module.measure_cell

            def measure_with_arithmetic(*args: Any, **kwargs: Any) -> Any:
                from arithmetic import HostArithmetic

                with HostArithmetic():  # type: ignore[no-untyped-call]
                    return measure(*args, **kwargs)

            module.measure_cell = measure_with_arithmetic  # type: ignore[attr-defined]

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
