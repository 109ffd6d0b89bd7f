"""Measure accuracy, throughput, memory and FLOPs of vision backbones on 1024-4096 px images.

    import longvis_bench as lv

    frame = lv.bench(models=["atlas-s", "mambavision-s"], resolutions=[1024, 2048])
    model = lv.build("atlas-s", resolution=2048, num_classes=100)
    lv.count(model, resolution=2048).macs

Importing this package imports none of torch, timm, pandas and matplotlib; its functions import them on call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from longvis_bench.version import __version__

if TYPE_CHECKING:
    from longvis_bench.api import (
        bench,
        build,
        claims,
        compare,
        count,
        fit,
        list_models,
        load_results,
        load_weights,
        reach,
    )

__all__ = [
    "__version__",
    "bench",
    "build",
    "claims",
    "compare",
    "count",
    "fit",
    "list_models",
    "load_results",
    "load_weights",
    "reach",
]


def __getattr__(name: str) -> object:
    """Import the public functions on first use."""
    if name in __all__:
        return getattr(importlib.import_module("longvis_bench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
