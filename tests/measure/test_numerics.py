"""fp32 is strict and tf32 is not, in products and in convolutions alike, and the row says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from longvis_bench.errors import Unsupported
from longvis_bench.measure import numerics
from longvis_bench.measure.numerics import read_numerics, rounds_to_tf32, set_numerics, tf32
from longvis_bench.measure.validity.checks import TF32_TOLERANCE, TOLERANCE, tolerance_for
from longvis_bench.records import Cell, Dtype
from longvis_bench.registry.global_state import preserved


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with preserved():
        yield


def cell(dtype: Dtype, device: str = "cuda") -> Cell:
    return Cell(
        model="vit-n",
        family="vit",
        variant="vit-n",
        implementation="timm",
        resolution=64,
        dtype=dtype,
        device=device,
    )


@pytest.mark.parametrize(
    ("dtype", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False), ("fp16", False)]
)
def test_products_and_convolutions_are_set_alike(
    dtype: Dtype, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    torch.backends.cuda.matmul.allow_tf32 = not allowed
    torch.backends.cudnn.allow_tf32 = not allowed
    set_numerics(cell(dtype))
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    found = read_numerics(torch.device("cuda"))
    assert found["matmul_allow_tf32"] == found["cudnn_allow_tf32"] == str(allowed).lower()
    assert {"cudnn_benchmark", "deterministic_algorithms", "float32_matmul_precision", "cudnn"} <= set(found)


@pytest.mark.parametrize(("device", "capability"), [("cpu", (9, 0)), ("cuda", (7, 5))])
def test_tf32_is_refused_where_there_is_none(
    device: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    with pytest.raises(Unsupported, match="--dtype fp32"):
        set_numerics(cell("tf32", device))


@pytest.mark.parametrize(("capability", "native"), [((7, 5), "false"), ((8, 0), "true")])
def test_the_row_says_whether_the_gpu_computes_bf16(
    capability: tuple[int, int], native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    found = read_numerics(torch.device("cuda"))
    assert (found["capability"], found["native_bf16"]) == ("{}.{}".format(*capability), native)


def test_a_tf32_cell_is_held_to_the_tolerance_of_its_mantissa(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    assert not rounds_to_tf32(torch.ones(1))
    monkeypatch.setattr("longvis_bench.measure.validity.checks.rounds_to_tf32", lambda images: True)
    assert tolerance_for(torch.ones(1)) == TF32_TOLERANCE > TOLERANCE[torch.float32]
    assert numerics.has_tf32(torch.device("cpu")) is False


BACKENDS = torch.backends
SETTINGS: list[Callable[[], object]] = [
    lambda: None,
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("change", SETTINGS)
@pytest.mark.parametrize("dtype", ["fp32", "tf32"])
def test_settings_are_read_and_set_whichever_way_code_set_them_before(
    change: Callable[[], object], dtype: Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has old switches and new precisions, and refuses to read the old ones where both differ."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    change()
    read_numerics(torch.device("cuda"))  # raises nothing
    set_numerics(cell(dtype))
    found = read_numerics(torch.device("cuda"))
    assert found["matmul_allow_tf32"] == found["cudnn_allow_tf32"] == str(dtype == "tf32").lower()
    assert BACKENDS.cuda.matmul.allow_tf32 is BACKENDS.cudnn.allow_tf32 is (dtype == "tf32")  # Inductor reads


@pytest.mark.parametrize("change", SETTINGS)
def test_the_callers_precision_is_restored(change: Callable[[], object]) -> None:
    def seen() -> list[str]:
        holders = BACKENDS, BACKENDS.cuda.matmul, BACKENDS.cudnn, BACKENDS.cudnn.conv  # type: ignore[attr-defined]
        return [holder.fp32_precision for holder in holders]

    change()
    before = seen()
    with tf32(False):
        assert "tf32" not in seen()
        with tf32(True):
            assert seen()[1] == seen()[3] == "tf32"
        assert "tf32" not in seen()
    assert seen() == before
