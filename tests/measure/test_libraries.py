"""cuBLAS and cuBLASLt are called in the way that makes them take their workspaces."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longvis_bench.data.protocol import ImageData
from longvis_bench.measure import libraries
from longvis_bench.measure.libraries import start_blas
from longvis_bench.records import Cell, Mode


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes matrix products: their name and dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            self.seen.append((name, args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backward", [False, True])
def test_products_with_and_without_bias_run_forward_and_backward(backward: bool) -> None:
    with Products() as products:
        start_blas(torch.device("cpu"), torch.bfloat16, backward=backward)
    assert products.seen[:2] == [("mm", torch.bfloat16), ("addmm", torch.bfloat16)]
    assert (len(products.seen) > 2) is backward


@pytest.mark.parametrize(("device", "mode", "started"), [("cuda", "train", True), ("cpu", "train", False)])
def test_cublas_starts_with_the_other_libraries_of_a_cell_on_cuda(
    device: str, mode: Mode, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(
        model="m",
        family="m",
        variant="m",
        implementation="native",
        resolution=64,
        device=device,
        mode=mode,
        dtype="bf16",
    )
    calls: list[tuple[torch.device, torch.dtype, bool]] = []

    class Data:
        def batch(self, split: str, indices: list[int], side: int, device: torch.device) -> Any:
            return torch.ones(1, 3, side, side), torch.zeros(1)

    def start(device: torch.device, dtype: torch.dtype, *, backward: bool) -> None:
        calls.append((device, dtype, backward))

    monkeypatch.setattr(libraries, "start_blas", start)
    libraries.start_libraries(cell, cast(ImageData, Data()))
    assert calls == ([(torch.device(device), torch.bfloat16, True)] if started else [])
