"""Counting: known answers, every attention path, the three operator lists."""

from __future__ import annotations

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
    result = count(Wrap(lambda m, x: m.head(torch.special.i0(x)), head=nn.Linear(32, 32)), 32)
    assert result.ledger.unknown == {"aten::i0": 3 * 32 * 32}
    assert result.coverage == 0.5


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


def test_second_opinion_agrees_where_nothing_is_hidden() -> None:
    from longvis_bench.measure.flops.fvcore_check import compare

    assert "agree within 1 %" in compare(Registry().find("convnext-n"), 128, 10)


def test_second_opinion_names_what_it_cannot_see() -> None:
    from longvis_bench.measure.flops.fvcore_check import compare

    assert "fvcore does not see 4 aten::scaled_dot_product_attention calls" in compare(
        Registry().find("vit-n"), 256, 10
    )
