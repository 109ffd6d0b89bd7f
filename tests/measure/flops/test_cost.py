"""What counting costs: every shipped variant at 4096 px in under 2 s, with no activations anywhere."""

from __future__ import annotations

import time
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.registry.registry import Registry

REGISTRY = Registry()
EVERY = [name for found in REGISTRY.cards for name in found.card.variants]
QUICK = ("atlas-n", "fastervit-4", "mambavision-l2", "vit-l")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
LIMIT_S = 2.0


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest tensor with a storage that any operator makes, in bytes."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        real = [t.nbytes for t in tree_leaves(result) if isinstance(t, Tensor) and not t.is_meta]
        self.found = max(self.found, *real, 0)
        return result


@pytest.mark.parametrize("name", NAMES)
def test_counting_at_4096_px_is_quick(name: str) -> None:
    """In seconds of this process, so that other jobs count less; the best of three, still less."""
    count_variant(REGISTRY.find("fastervit-n"), 256, 10)  # imports
    times: list[float] = []
    while len(times) < 3 and min(times, default=LIMIT_S) >= LIMIT_S:
        start = time.process_time()
        count_variant(REGISTRY.find(name), 4096, 1000)
        times.append(time.process_time() - start)
    assert min(times) < LIMIT_S


@pytest.mark.parametrize("name", NAMES)
def test_counting_at_4096_px_allocates_no_activations(name: str) -> None:
    with Largest() as largest:  # type: ignore[no-untyped-call]
        count_variant(REGISTRY.find(name), 4096, 1000)
    assert largest.found < 1024  # one channel of a token grid has 256 KiB
