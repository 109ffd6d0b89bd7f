"""MSCSA equals the first author's layers, a naive form of itself, and a written count."""

from __future__ import annotations

from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvis_bench.backbones.mscsa import MSCSA, CrossScaleAttention, MSCSAOverHost, attend
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution, sides
from tests.backbones.family_vectors import FORMULA, load, paths, read, shapes

ARGUMENTS = (
    "depth",
    "channel_ratio",
    "heads",
    "head_dim",
    "attn_ratio",
    "mlp_ratio",
    "grid_stage",
    "shared",
)


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ARGUMENTS}


def map_of(batch: int, channels: int, side: int) -> Tensor:
    """The formula of a vector's images, with any number of channels."""
    places = [torch.arange(n, dtype=torch.float64) for n in (batch, channels, side, side)]
    b, c, y, x = torch.meshgrid(*places, indexing="ij")
    first = torch.sin(2 * torch.pi * ((c + 1) * 3 * x + (b + 1) * 5 * y) / side + 0.7 * c)
    second = torch.cos(2 * torch.pi * ((b + 2) * 11 * x - (c + 1) * 7 * y) / side)
    return (first + 0.5 * second).float()


@pytest.mark.parametrize("path", paths("mscsa_*_maps"), ids=lambda path: path.stem)
def test_maps_equal_the_authors(path: Path) -> None:
    config, tensors = read(path)
    expected = [tensors.pop(f"expected.maps.{i}") for i in range(len(config["channels"]))]
    module = MSCSA(config["channels"], **arguments(config)).eval()
    load(module, tensors)
    maps = [
        map_of(config["batch"], channels, side)
        for channels, side in zip(config["channels"], config["sides"], strict=True)
    ]
    with torch.inference_mode():
        fused = module(maps)
    assert max((ours - theirs).abs().max() for ours, theirs in zip(fused, expected, strict=True)) < 1e-4


@pytest.mark.parametrize("path", paths("mscsa_over_*"), ids=lambda path: path.stem)
def test_over_a_host_of_timm(path: Path) -> None:
    config, vector = read(path)
    model = MSCSAOverHost(
        resolution=config["resolution"], num_classes=10, host=config["host"], **arguments(config)
    ).eval()
    weights = FORMULA.weights(shapes(vector))
    for prefix, part in (("backbone.", model.backbone), ("mscsa.", model.mscsa)):
        assert part is not None
        part.load_state_dict(
            {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        )
    with torch.inference_mode():
        image = FORMULA.image(config["batch"], config["resolution"])
        maps, fused = model.backbone(image)[-4:], model.forward_features(image)
    for kind, found in (("backbone", maps), ("mscsa", fused)):
        for i, ours in enumerate(found):
            assert (FORMULA.sample(ours) - vector[f"tokens.{kind}.{i}"]).abs().max() < 1e-4


def naive(attention: CrossScaleAttention, x: Tensor) -> Tensor:
    """Head by head, scores and all, with the three scales written out."""
    y = attention.norm(x)
    scales = [y, attention.downsample_1(y), attention.downsample_2(y)]
    ks = [attention.k] * 3 if attention.shared else list(attention.k)
    vs = [attention.v] * 3 if attention.shared else list(attention.v)
    q = attention.q(y).flatten(2)
    k = torch.cat([project(s).flatten(2) for project, s in zip(ks, scales, strict=True)], dim=2)
    v = torch.cat([project(s).flatten(2) for project, s in zip(vs, scales, strict=True)], dim=2)
    d, wide = attention.head_dim, v.shape[1] // attention.heads
    heads = []
    for h in range(attention.heads):
        own = slice(h * d, (h + 1) * d)
        weights = torch.softmax(q[:, own].mT @ k[:, own] / d**0.5, dim=-1)
        heads.append((weights @ v[:, h * wide : (h + 1) * wide].mT).mT)
    mixed = torch.cat(heads, dim=1).view(len(x), -1, *x.shape[2:]) + attention.v_conv(vs[0](y))
    return attention.proj(F.hardswish(attention.attn_norm(mixed)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_equal_those_of_naive_attention(shared: bool) -> None:
    torch.manual_seed(0)
    attention = CrossScaleAttention(6, 2, 5, 10, shared).double().train()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64, requires_grad=True)
    asked = [x, *attention.parameters()]
    results = [fn(x) for fn in (attention, lambda x: naive(attention, x))]
    torch.testing.assert_close(*results)
    weight = torch.randn_like(results[0])
    for ours, theirs in zip(*(torch.autograd.grad((y * weight).sum(), asked) for y in results), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(5, 8), (8, 5), (6, 6)])
def test_unequal_widths_change_no_product(head_dim: int, value_dim: int) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, 3, n, head_dim, dtype=torch.float64) for n in (7, 9))
    v = torch.randn(2, 3, 9, value_dim, dtype=torch.float64)
    slow = torch.softmax(0.3 * q @ k.mT, dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v, scale=0.3), slow)


def written_count(
    channels: list[int], grids: list[list[int]], *, grid: int, heads: int, d: int, dv: int, ratio: float
) -> int:
    """MACs of depth 1 with a channel ratio of 1: every product of the definition."""
    total, n = sum(channels), prod(grids[grid])
    half, third = (prod(ceil(side / step) for side in grids[grid]) for step in (2, 3))
    keys = n + half + third
    attention = total * (9 * half + 25 * third)  # the two strided depthwise convolutions
    attention += total * heads * (d * n + (d + dv) * keys)  # q, k, v
    attention += heads * n * keys * (d + dv)  # scores and their products with v
    attention += heads * dv * n * (9 + total)  # v's convolution, the projection out

    def ffn(width: int) -> int:
        hidden = int(ratio * width)
        return n * hidden * (2 * width + 9)

    injection = sum(2 * width * width * n for width in channels)
    return 2 * attention + sum(map(ffn, channels)) + ffn(total) + injection


@pytest.mark.parametrize(
    "resolution",
    [
        224,
        pytest.param(1024, marks=pytest.mark.slow),
        2048,
        pytest.param(4096, marks=pytest.mark.slow),
        (512, 1024),
    ],
)
@pytest.mark.parametrize("grid", [-2, -1])
def test_macs_follow_the_written_formula(resolution: AnyResolution, grid: int) -> None:
    channels = [64, 128, 320, 512]
    name = f"mscsa-pvt-b1[grid_stage={grid}]"

    def macs(name: str) -> int:
        with torch.device("meta"):
            model = Registry().find(name).build(resolution=resolution, num_classes=10)
        return count(model, resolution=resolution).macs

    added = macs(name) - macs("mscsa-pvt-b1[attach=False]")
    grids = [[side // stride for side in sides(resolution)] for stride in (4, 8, 16, 32)]
    expected = written_count(channels, grids, grid=grid, heads=16, d=40, dv=80, ratio=3)
    assert added == expected
    if grid == -2 and isinstance(resolution, int):  # measured with another counter
        others = {224: 3.89e9, 1024: 165e9, 2048: 1712e9, 4096: 23706e9}
        assert added == pytest.approx(others[resolution], rel=5e-3)


@pytest.mark.parametrize(
    ("host", "channels", "millions"),
    [
        ("pvt_v2_b0", [32, 64, 160, 256], 10.35),
        ("pvt_v2_b1", [64, 128, 320, 512], 25.33),
        ("convnext_tiny", [96, 192, 384, 768], 41.13),
        ("resnet50", [256, 512, 1024, 2048], 192.7),
    ],
)
def test_parameters_over_each_host(host: str, channels: list[int], millions: float) -> None:
    with torch.device("meta"):
        module = MSCSA(channels)
        over = MSCSAOverHost(num_classes=10, host=host, grid_stage=-2).mscsa
    parameters = sum(p.numel() for p in module.parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=1e-3)
    assert isinstance(over, MSCSA)
    assert sum(p.numel() for p in over.parameters()) == parameters


def test_a_host_without_a_pyramid_is_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(IllegalArgument, match="maps at strides 4, 8, 16 and 32"):
            MSCSAOverHost(num_classes=10, host="vit_tiny_patch16_224", host_arguments={"img_size": 64})
        with pytest.raises(IllegalArgument, match="like 'pvt_v2_b1'"):
            MSCSAOverHost(num_classes=10, host="pvt_v9")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"attn_ratio": 1.5, "head_dim": 7}, "whole number of value channels"),
        ({"grid_stage": 4}, "one of 4 maps, -4 to 3"),
        ({"channel_ratio": 0}, "channel_ratio must be a positive number"),
        ({"channel_ratio": 0.1}, "leaves a map of"),
        ({"shared": 1}, "shared must be True or False"),
    ],
)
def test_arguments_that_make_no_module_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        MSCSA([8, 16, 24, 32], **wrong)


def test_illegal_sizes_name_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="992, 1024"):
        Registry().find("mscsa-n").plan(1000)


def test_the_row_says_how_many_tokens_attend() -> None:
    assert Registry().find("mscsa-n").plan(1024).reach.startswith("1,024 tokens attend to 1,401")


def test_stochastic_depth_acts_in_training_only() -> None:
    torch.manual_seed(0)
    module = MSCSA([4, 4], depth=2, heads=1, head_dim=4, grid_stage=0, drop_path=0.9)
    maps = [torch.randn(8, 4, 8, 8), torch.randn(8, 4, 4, 4)]
    drops = [m.drop_prob for m in module.modules() if hasattr(m, "drop_prob")]
    assert drops == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert not torch.equal(module(maps)[0], module(maps)[0])
    module.eval()
    torch.testing.assert_close(module(maps)[0], module(maps)[0], rtol=0, atol=0)
    assert isinstance(module, nn.Module)
