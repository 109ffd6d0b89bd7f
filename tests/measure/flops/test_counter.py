"""Counting: known answers, every attention path, the three operator lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from longvis_bench.measure.flops.counter import count, count_variant
from longvis_bench.registry.registry import Registry


class Wrap(nn.Module):
    """A module that calls a function on the input's mean over rows: (1, 3, R, R) -> (1, 3, R)."""

    def __init__(self, function: object, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), 32 * 32 * 8 * 3 * 9),
        (nn.Conv2d(3, 9, 3, padding="same", groups=3), 32 * 32 * 9 * 1 * 9),
        (nn.Conv2d(3, 8, 3, dilation=2, padding=2), 32 * 32 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 4, stride=4), 8 * 8 * 8 * 3 * 16),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), 32 * 32 * 3 * 8 * 4),
        (nn.Linear(32, 7), 3 * 32 * 32 * 7),
        (nn.Linear(32, 7, bias=False), 3 * 32 * 32 * 7),
    ],
)
def test_layers(layer: nn.Module, macs: int) -> None:
    result = count(layer, 32)
    assert result.macs == macs
    assert result.flops == 2 * macs
    assert result.coverage == 1.0


def test_an_unknown_operator_is_named_and_lowers_the_coverage() -> None:
    result = count(Wrap(lambda m, x: m.head(torch.fft.fft(x).real), head=nn.Linear(32, 32)), 32)
    assert result.ledger.unknown == {"aten::_fft_r2c": 3 * 32 * 32}
    assert result.coverage == 0.5


WHOLE = torch.complex64
"""Matrix products of complex numbers -> complex multiply-adds of one."""
COMPLEX = {
    "matmul": (Wrap(lambda m, x: x.to(WHOLE) @ x.to(WHOLE)), 3 * 16**3),
    "einsum": (Wrap(lambda m, x: torch.einsum("bchw,bcwk->bchk", x.to(WHOLE), x.to(WHOLE))), 3 * 16**3),
    "linear": (Wrap(lambda m, x: m.head(x.to(WHOLE)), head=nn.Linear(16, 8, dtype=WHOLE)), 3 * 16 * 16 * 8),
    "vdot": (Wrap(lambda m, x: torch.vdot(x.to(WHOLE).flatten(), x.to(WHOLE).flatten())), 3 * 16 * 16),
    "vector": (Wrap(lambda m, x: x.to(WHOLE)[0, 0] @ x.to(WHOLE)[0, 0, 0]), 16 * 16),
}


@pytest.mark.parametrize("product", COMPLEX)
def test_a_complex_multiply_add_is_four_real_ones(product: str) -> None:
    model, macs = COMPLEX[product]
    assert count(model, 16).macs == 4 * macs


def test_a_complex_convolution_is_the_three_real_ones_that_run() -> None:
    layer = nn.Conv2d(3, 8, 3, dtype=WHOLE)
    assert count(Wrap(lambda m, x: m.layer(x.to(WHOLE)), layer=layer), 16).macs == 3 * 14 * 14 * 8 * 27


F = nn.functional
ELEMENTWISE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "grid_sample": lambda m, x: F.grid_sample(x, x.new_zeros(1, 4, 4, 2), align_corners=False),
    "glu": lambda m, x: F.glu(x),
    "cumprod": lambda m, x: x.cumprod(1),
    "cummax": lambda m, x: x.cummax(1)[0],
    "prelu": lambda m, x: F.prelu(x, x.new_ones(3)),
    "logsigmoid": lambda m, x: F.logsigmoid(x),
    "celu": lambda m, x: F.celu(x),
    "softshrink": lambda m, x: F.softshrink(x),
    "cross": lambda m, x: torch.linalg.cross(x, x, dim=1),
    "shifts": lambda m, x: (x.int() << 1) >> 1,
    "polynomials": lambda m, x: torch.special.chebyshev_polynomial_t(x, 2),
    "local responses": lambda m, x: nn.CrossMapLRN2d(3)(x),
    "atan2": lambda m, x: torch.atan2(x, x),
    "i0": lambda m, x: torch.special.i0(x),
    "logcumsumexp": lambda m, x: x.logcumsumexp(1),
    "median": lambda m, x: x.median(1)[0],
    "index_add": lambda m, x: x.index_add(1, torch.zeros(3, dtype=torch.long, device=x.device), x),
    "scatter_reduce": lambda m, x: x.scatter_reduce(1, x.long(), x, "amax"),
    "reflection of volumes": lambda m, x: F.pad(x[None], (1, 1, 1, 1, 1, 1), mode="reflect"),
    "pooling of volumes": lambda m, x: F.max_pool3d(x, 2),
    "nearest-exact": lambda m, x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "trilinear": lambda m, x: F.interpolate(x[None], scale_factor=2, mode="trilinear"),
    "unpooling": lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_multiplies_no_matrices_is_no_reason_for_a_warning(name: str) -> None:
    function = ELEMENTWISE[name]
    result = count(Wrap(lambda m, x: (function(m, x), m.head(x))[1], head=nn.Linear(16, 2)), 16)
    assert result.ledger.unknown == {}
    assert result.coverage == 1.0
    assert result.macs == 3 * 16 * 16 * 2


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_is_elementwise(norm: Callable[[nn.Module], nn.Module]) -> None:
    result = count(norm(nn.Linear(16, 2)), 16)
    assert result.coverage == 1.0
    assert result.macs == 3 * 16 * 16 * 2


MADE_ON_THE_CPU: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "zeros": lambda m, x: x + torch.zeros(16),
    "zeros on the CPU by name": lambda m, x: x + torch.zeros(16, device="cpu"),
    "an index": lambda m, x: x[..., torch.arange(16).flip(0)],
    "a mask": lambda m, x: torch.where(torch.ones(16, 16).tril() > 0, x, torch.tensor(-torch.inf)),
    "a list of numbers": lambda m, x: x * sum(torch.linspace(0, 1, 3).tolist()) + torch.zeros(16),
    "from numpy": lambda m, x: x + torch.from_numpy(numpy.zeros(16, numpy.float32)),
    "written into": lambda m, x: torch.zeros(1, 3, 16, 16).copy_(x),
    "written into by index": lambda m, x: write_rows(x),
    "concatenated": lambda m, x: torch.cat([x, torch.zeros(1, 3, 16, 16)])[:1],
}


def write_rows(x: Tensor) -> Tensor:
    out = torch.zeros(1, 3, 16, 16)
    out[:, :, :] = x
    return out


@pytest.mark.parametrize("case", MADE_ON_THE_CPU)
def test_a_tensor_that_the_forward_makes_is_on_the_model_s_device(case: str) -> None:
    function = MADE_ON_THE_CPU[case]
    assert count(Wrap(lambda m, x: m.head(function(m, x)), head=nn.Linear(16, 2)), 16).macs == 3 * 16 * 16 * 2


def test_a_tensor_that_a_model_keeps_without_registering_it_is_counted_with_it() -> None:
    model: Any = Wrap(lambda m, x: m.head(x + m.table + m.more[0]), head=nn.Linear(16, 2))
    model.table = torch.from_numpy(numpy.zeros(16, numpy.float32))
    model.more = [torch.zeros(16)]
    assert count(model, 16).macs == 3 * 16 * 16 * 2


def test_a_model_in_another_dtype_is_counted_alike() -> None:
    assert count(nn.Linear(16, 2, dtype=torch.float64), 16).macs == 3 * 16 * 16 * 2
    assert count(nn.Linear(16, 2, dtype=torch.bfloat16), 16).macs == 3 * 16 * 16 * 2


def test_a_deformable_convolution_counts_as_a_convolution() -> None:
    from torchvision.ops import DeformConv2d

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.bend(x, m.offsets(x))  # type: ignore[operator, no-any-return]

    model = Wrap(forward, offsets=nn.Conv2d(3, 18, 3, padding=1), bend=DeformConv2d(3, 8, 3, padding=1))
    result = count(model, 16)
    assert result.macs == 16 * 16 * 27 * (18 + 8)
    assert result.coverage == 1.0


def test_a_model_without_arithmetic_has_no_coverage() -> None:
    result = count(nn.Identity(), 32)
    assert result.macs == 0
    assert result.coverage is None


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(32, 32)
    result = count(nn.Sequential(layer, layer), 32)
    assert result.params == 32 * 33
    assert result.macs == 2 * 3 * 32 * 32 * 32


def test_modules_add_up() -> None:
    result = count(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())), 16)
    assert result.by_module[""] == result.macs
    assert result.by_module["0"] + result.by_module["1"] == result.macs
    assert result.by_module["1.0"] == result.by_module["1"]


def test_lists_of_modules_add_up_too() -> None:
    blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, 3, 1)]), nn.ModuleList([nn.Conv2d(3, 3, 1)])])
    result = count(Wrap(lambda m, x: m.blocks[1][0](m.blocks[0][0](x)), blocks=blocks), 16)
    assert list(result.by_module) == ["", "blocks", "blocks.0", "blocks.0.0", "blocks.1", "blocks.1.0"]
    assert result.by_module["blocks"] == 2 * result.by_module["blocks.0"] == result.macs


def test_a_module_may_be_given_a_parameter() -> None:
    """As CaiT and PiT give theirs class tokens."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(self.token)  # type: ignore[no-any-return]

    result = count(Tokens(), 8)
    assert result.by_module == {"": 16, "embed": 16}


def test_counting_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, 16)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("resolution", [224, 1024, 2048])
def test_vit_against_its_formula(resolution: int) -> None:
    """ViT-S/16: patch embedding, 12 blocks of 4 projections, an MLP of ratio 4 and attention, a head."""
    n, d, classes = (resolution // 16) ** 2 + 1, 384, 10
    block = n * d * d * (4 + 8) + 2 * n * n * d
    expected = (n - 1) * d * 3 * 256 + 12 * block + d * classes
    assert count_variant(Registry().find("vit-s"), resolution, classes).macs == expected


def test_vit_s_at_1024_is_the_number_fvcore_misses() -> None:
    """242.9 GMACs with attention; fvcore's trace of fused attention shows 88.4."""
    assert count_variant(Registry().find("vit-s"), 1024, 1000).macs / 1e9 == pytest.approx(242.9, abs=0.05)


def test_selective_scan_stands_in_its_own_column() -> None:
    """9 x B x L x D x N over every scan block of mambavision-t at 224 px (one window of 14 and of 7)."""
    result = count_variant(Registry().find("mambavision-t"), 224, 10)
    stage3, stage4 = 4 * 196 * 160 * 8, 2 * 49 * 320 * 8
    assert result.scan_flops == 9 * (stage3 + stage4)
    assert "longvis::selective_scan" not in result.by_operator


def test_comparison_with_fvcore_agrees_where_nothing_is_hidden() -> None:
    from longvis_bench.measure.flops.fvcore_check import compare

    assert "agree within 1 %" in compare(Registry().find("convnext-n"), 128, 10)


def test_comparison_with_fvcore_does_not_agree_on_what_neither_counts(
    model_file: Callable[..., Path],
) -> None:
    from longvis_bench.measure.flops.fvcore_check import compare

    file = model_file("waves", "x = torch.fft.fft2(x).real.mean(dim=(2, 3))", "return self.head(x)")
    told = compare(Registry(working_dir=file.parent).find(f"{file.name}:build"), 32, 10)
    assert "they agree within 1 %:" not in told
    assert "on operators that both count they agree within 1 %" in told
    assert "Neither counts aten::_fft_c2c" in told or "longvis does not count aten::_fft" in told


def test_comparison_with_fvcore_does_not_agree_where_fvcore_skips_a_product(
    model_file: Callable[..., Path],
) -> None:
    from longvis_bench.measure.flops.fvcore_check import compare

    file = model_file(
        "small_attention",
        "x = torch.nn.functional.scaled_dot_product_attention(*[x.mean(dim=(2, 3))[:, None]] * 3)[:, 0]",
        "x = torch.nn.functional.conv2d(x[:, :, None, None].expand(-1, -1, 64, 64), x.new_ones(64, 3, 3, 3))",
        "return self.head(x.mean(dim=(2, 3))[:, :3])",
    )
    told = compare(Registry(working_dir=file.parent).find(f"{file.name}:build"), 32, 10)
    assert "on operators that both count they agree within 1 %" in told
    assert "fvcore does not count 1 aten::scaled_dot_product_attention calls" in told


def test_comparison_with_fvcore_explains_products_of_complex_numbers(model_file: Callable[..., Path]) -> None:
    from longvis_bench.measure.flops.fvcore_check import compare

    file = model_file(
        "complex_product",
        "z = torch.complex(x[:, 0], x[:, 1])",
        "x = (z @ z).abs()[:, :3].mean(2)",
        "return self.head(x)",
    )
    told = compare(Registry(working_dir=file.parent).find(f"{file.name}:build"), 32, 10)
    assert told.endswith("fvcore counts a product of two complex numbers as one MAC, this as four real ones.")


def test_comparison_with_fvcore_names_what_it_cannot_see() -> None:
    from longvis_bench.measure.flops.fvcore_check import compare

    assert "fvcore does not count 4 aten::scaled_dot_product_attention calls" in compare(
        Registry().find("vit-n"), 256, 10
    )
