"""Samples of operators: right ones pass, wrong ones are found, also those wrong only past a limit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from longvis_bench.errors import InvalidOutput
from longvis_bench.measure.validity.checks import TOLERANCE
from longvis_bench.measure.validity.operator_sampling import Samples, sample_operators
from longvis_bench.measure.validity.sample_indices import INT32_ELEMENTS, is_past, sample_indices
from longvis_bench.registry.registry import Registry

Plant = Callable[[str, int], "AbstractContextManager[object]"]


@cache
def honest(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, torch.dtype]:
    """A model that passes, its image, and the dtype that its operators are computed in again."""
    torch.manual_seed(0)
    model = Registry().find(name).build(resolution=128, num_classes=5).eval().to(dtype)
    images = torch.randn(1, 3, 128, 128, dtype=dtype)
    higher = torch.float64 if dtype == torch.float32 else torch.float32
    samples, _ = sample_operators(model, images, higher)
    assert samples.error < TOLERANCE[dtype]
    assert not samples.unsampled
    return model, images, higher


@pytest.mark.parametrize(
    ("name", "operator", "start"),
    [
        ("vit-n", "aten::convolution", 4000),
        ("vit-n", "aten::addmm", 4000),
        ("vit-n", "aten::_scaled_dot_product_flash_attention_for_cpu", 4000),
        ("vit-n", "aten::native_layer_norm", 4000),
        ("vit-n", "aten::gelu", 4000),
        ("swin-n", "aten::bmm", 100),
        ("swin-n", "aten::roll", 4000),
        ("mambavision-n", "longvis::selective_scan", 100),
        ("mambavision-n", "aten::native_batch_norm", 4000),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_wrong_operator_is_found_by_samples(
    name: str, operator: str, start: int, dtype: torch.dtype, plant: Plant
) -> None:
    model, images, higher = honest(name, dtype)
    with plant(operator, start):
        samples, _ = sample_operators(model, images, higher)
    assert samples.error > TOLERANCE[dtype]
    assert samples.worst == operator


class Runs(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1, stride=2, groups=2),
        nn.Conv2d(6, 6, 3, dilation=3, padding="same", groups=6),
        nn.Conv2d(6, 8, (1, 5), bias=False),
        nn.Conv1d(6, 8, 4, padding=2),
        nn.Conv3d(6, 8, 2),
        nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(6, 8, (2, 5), stride=(3, 2), dilation=2, groups=2, bias=False),
        nn.ConvTranspose2d(6, 6, 1, stride=4, groups=6),
        nn.ConvTranspose1d(6, 8, 4, padding=2),
        nn.ConvTranspose3d(6, 4, 2, stride=2),
    ],
)
def test_samples_of_convolutions_are_right(layer: nn.Module) -> None:
    dims = int(type(layer).__name__[-2])
    samples, _ = sample_operators(layer, torch.randn(2, 6, *[9] * dims), torch.float64)
    assert samples.kinds == {"convolutions": 1}
    assert 0 < samples.error < 1e-5


def test_samples_of_masked_and_grouped_attention_are_right() -> None:
    q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.randn(2, 1, 7, 7)

    def attend(x: Tensor) -> Tensor:
        F.scaled_dot_product_attention(q, k, k, enable_gqa=True, is_causal=True)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask, scale=0.3)

    samples, _ = sample_operators(Runs(attend), q, torch.float64)
    assert samples.kinds.total() >= 2
    assert 0 < samples.error < 1e-5


@pytest.mark.parametrize(
    "product",
    [
        lambda x: torch.baddbmm(x[:, :1, :1], x, x.mT, beta=0.5, alpha=2.0),
        lambda x: torch.baddbmm(torch.full((), torch.nan), x, x.mT, beta=0),
        lambda x: torch.addmm(x[0, 0, :1], x[0], x[1].mT, alpha=3.0),
    ],
)
def test_samples_of_added_products_are_right(product: Callable[[Tensor], Tensor]) -> None:
    samples, _ = sample_operators(Runs(product), torch.randn(4, 9, 5), torch.float64)
    assert samples.kinds["matrix products"] == 1
    assert 0 < samples.error < 1e-5


X = (2, 8, 12, 16)
"""3,072 elements, looked at as if indices overflowed at 1,000."""
LIMIT = 1000
ROWS = torch.randint(8, X)
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "aten::add": lambda x: x + x[:, :1],
    "aten::mul": lambda x: x * 3,
    "aten::mul_": lambda x: x.clone().mul_(x.flip(1)),
    "aten::copy_": lambda x: torch.empty_like(x).copy_(x[:1]),
    "aten::clone": lambda x: x.clone(),
    "aten::_to_copy": lambda x: x.to(torch.float16),
    "aten::where": lambda x: torch.where(x[0] > 0, x, x.mean()),
    "aten::masked_fill": lambda x: x.masked_fill(x[:, :1] > 1, 4.0),
    "aten::gelu": F.gelu,
    "aten::silu_": lambda x: F.silu(x.clone(), inplace=True),
    "aten::_softmax": lambda x: x.softmax(2),
    "aten::_log_softmax": lambda x: x.log_softmax(-1),
    "aten::cumsum": lambda x: x.cumsum(1),
    "aten::sum": lambda x: x.sum((0, 2)),
    "aten::mean": lambda x: x.mean(-1, keepdim=True),
    "aten::amax": lambda x: x.amax(2),
    "aten::logsumexp": lambda x: x.logsumexp(-1),
    "aten::linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "aten::var_mean": lambda x: torch.var_mean(x, 1)[0],
    "aten::native_layer_norm": lambda x: F.layer_norm(x, (12, 16), x[0, 0], x[0, 1]),
    "aten::native_group_norm": lambda x: F.group_norm(x, 4, x[0, :, 0, 0], x[0, :, 0, 1]),
    "aten::native_batch_norm": lambda x: F.batch_norm(x, x[0, :, 0, 0], x[0, :, 0, 1].abs()),
    "aten::max_pool2d_with_indices": lambda x: F.max_pool2d(x, 3, 1, padding=1, dilation=1),
    "aten::avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, padding=1),
    "aten::_adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (11, 7)),
    "aten::cat": lambda x: torch.cat([x[:, :3], x[:, :0], x[:, 3:].flip(3)], 1),
    "aten::stack": lambda x: torch.stack([x, x + 1], 2),
    "aten::constant_pad_nd": lambda x: F.pad(x, (1, 2, -1, 0), value=0.5),
    "aten::roll": lambda x: x.roll((3, -2), (2, -1)),
    "aten::flip": lambda x: x.flip((1, 3)),
    "aten::repeat": lambda x: x.repeat(2, 1, 1, 1, 3),
    "aten::index": lambda x: x[:, torch.tensor([[3, 1], [0, 2]]), torch.tensor([5, 7])],
    "aten::index_select": lambda x: x.index_select(2, torch.arange(11, -1, -1)),
    "aten::gather": lambda x: x.gather(1, ROWS),
    "aten::embedding": lambda x: F.embedding(torch.randint(24, (2, 90)), x.reshape(24, 128)),
    "aten::pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATORS)
def test_samples_of_other_operators_are_right(name: str, dtype: torch.dtype) -> None:
    higher = torch.float64 if dtype == torch.float32 else torch.float32
    for memory_format in torch.contiguous_format, torch.channels_last:
        x = torch.randn(X, dtype=dtype).contiguous(memory_format=memory_format)
        samples, _ = sample_operators(Runs(OPERATORS[name]), x, higher, limit=LIMIT)
        assert not samples.unsampled
        assert samples.kinds.total() >= 1
        assert samples.error < TOLERANCE[dtype] / 5


@pytest.mark.parametrize("name", OPERATORS)
def test_a_fault_past_the_limit_is_found_in_every_operator(name: str, plant: Plant) -> None:
    """Correct below the limit, wrong from there on, as an index that overflows is."""
    x = torch.randn(X)
    out = OPERATORS[name](x)
    start = min(LIMIT, out.numel() - 1) if out.numel() > 1 else 0
    with plant(name, start):
        samples, _ = sample_operators(Runs(OPERATORS[name]), x, torch.float64, limit=start)
    assert (samples.worst, samples.unsampled) == (name, set())
    assert samples.error > TOLERANCE[torch.float32]


def test_only_what_is_past_the_limit_is_looked_at_where_nothing_else_is_asked_for() -> None:
    x = torch.randn(X)
    samples = Samples(torch.float64, limit=x.numel(), everything=False)
    with samples:
        x.mul(2).relu_()
        x[0].exp().sort()
    assert samples.kinds.total() == samples.past_limit == 2
    assert not samples.unchecked


def test_operators_nobody_can_look_at_are_named_with_their_shape() -> None:
    x = torch.randn(X)
    samples = Samples(torch.float64, limit=x.numel(), everything=False)
    with samples:
        x.sort()
        torch.empty(99, 99)  # filled by code that no dispatcher sees
        torch.empty(99, 98).copy_(torch.ones(98))
        torch.rand_like(x)
    assert samples.unchecked == (
        "aten::empty (99, 99)",
        "aten::rand_like (2, 8, 12, 16)",
        "aten::sort (2, 8, 12, 16)",
    )


def test_views_reach_past_the_limit_by_their_strides() -> None:
    storage = torch.empty(INT32_ELEMENTS + 8, dtype=torch.uint8)  # untouched: takes no memory
    assert is_past(storage[:: 2**16], INT32_ELEMENTS)
    assert is_past(torch.empty(1).expand(INT32_ELEMENTS), INT32_ELEMENTS)
    assert not is_past(storage[:-16], INT32_ELEMENTS)


@pytest.mark.parametrize("shape", [(4, 5, 6), (120,), (1, 120, 1)])
def test_places_lie_where_memory_says(shape: tuple[int, ...]) -> None:
    for x in (
        torch.arange(120).reshape(shape),
        torch.arange(120).reshape(shape[::-1]).permute(*range(len(shape))[::-1]),
    ):
        found = {int(x[place]) for place in sample_indices(x, 100)}
        assert {0, 100, 119} <= found
        assert len([place for place in found if place >= 100]) >= 2


def test_an_operator_that_overflows_its_dtype_is_told() -> None:
    model = Runs(lambda x: x @ x)
    with pytest.raises(InvalidOutput, match="aten::mm gave NaN or infinity where float32 gives numbers"):
        sample_operators(model, torch.full((8, 8), 200.0, dtype=torch.float16), torch.float32)


@pytest.mark.slow
def test_a_live_tensor_past_2_31_elements(plant: Plant) -> None:
    """2 GiB of bytes: honest operators are ok there, one that wraps its index is found, and so is its sum."""

    def work(operator: str = "none") -> Samples:
        x = torch.empty(INT32_ELEMENTS + 4096, dtype=torch.uint8)
        x[:INT32_ELEMENTS], x[INT32_ELEMENTS:] = 1, 2
        samples = Samples(torch.float64, everything=False)
        with plant(operator, INT32_ELEMENTS), samples:
            x.add_(3)
            x.view(-1, 4096).amax(-1)
        return samples

    fine = work()
    assert (fine.kinds.total(), fine.past_limit, fine.error, fine.unchecked) == (2, 2, 0.0, ())
    wrong = work("aten::add_")
    assert (wrong.worst, wrong.error) == ("aten::add_", 1.0 / 5)


@pytest.mark.slow
def test_a_live_view_of_2_31_elements() -> None:
    """One number seen 2^31 + 4,096 times, which takes no memory."""
    samples = Samples(torch.float64, everything=False)
    with samples:
        total = torch.ones(1).expand(INT32_ELEMENTS + 4096).sum()
    assert total.item() == pytest.approx(INT32_ELEMENTS + 4096, rel=1e-6)
    assert (samples.past_limit, samples.unchecked) == (1, ())
    assert samples.error < 1e-6


class Shifted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds an error to the layer norms that run in float32."""

    def __init__(self, error: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.error = error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_layer_norm.default and result[0].dtype == torch.float32:
            result[0].add_(self.error)
        return result


@pytest.mark.parametrize(("error", "is_wrong"), [(5e-7, False), (0.5, True)])
def test_a_norm_over_one_value_may_round_but_not_be_wrong(error: float, is_wrong: bool) -> None:
    """Its exact output is 0, beside which any rounding error is infinitely large."""
    samples = Samples(torch.float64)
    with torch.no_grad(), Shifted(error), samples:
        nn.LayerNorm(1)(torch.randn(64, 1))
    assert samples.kinds.total()
    assert (samples.error > TOLERANCE[torch.float32]) is is_wrong
