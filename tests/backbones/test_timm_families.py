"""Families that are cards over timm: equal to timm's models, legal sizes, and costs counted by others."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import timm
import torch

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import Count, count_variant
from longvis_bench.registry.registry import Registry

ANY_SIZE = ("davit", "focalnet", "efficientvit", "mambaout", "pvtv2", "pvtv2-li")
NANO = (*(f"{family}-n" for family in ANY_SIZE), "maxvit-n", "halonet-n", "xcit-n", "hiera-n", "dinov3-n")


def counted(name: str, resolution: int) -> Count:
    return count_variant(Registry().find(name), resolution, 1000)


@pytest.mark.parametrize(
    ("name", "resolution", "millions", "gmacs"),
    [
        ("maxvit-t", 224, 30.92, 5.55),
        ("davit-t", 224, 28.36, 4.52),
        ("focalnet-t", 224, 28.65, 4.47),
        ("focalnet-t-srf", 224, 28.43, 4.40),
        ("halonet-26t", 256, 12.48, 3.17),
        ("halonet-h1", 256, 8.10, 2.99),
        ("pvtv2-b2", 224, 25.36, 4.03),
        ("pvtv2-li-b2", 224, 22.55, 3.89),
        ("xcit-s12", 224, 26.25, 4.80),
        ("xcit-s12-p8", 224, 26.21, 18.62),
        ("hiera-t", 224, 27.91, 4.90),
        ("efficientvit-l2", 224, 63.71, 6.95),
        ("mambaout-t", 224, 26.55, 4.47),
        ("dinov3-s", 256, 21.97, 6.25),
        ("maxvit-t", 1024, 30.9, 117),
        ("davit-t", 1024, 28.36, 96.8),
        ("halonet-h1", 1024, 8.10, 47.8),
        ("hiera-t", 1024, 33.9, 184),
        ("dinov3-s", 1024, 21.97, 243),
    ],
)
def test_costs_are_those_counted_by_others(name: str, resolution: int, millions: float, gmacs: float) -> None:
    """Counted on timm's models with another counter; dinov3's have no classifier there."""
    here = counted(name, resolution)
    assert here.params / 1e6 == pytest.approx(millions, abs=0.45 if name == "dinov3-s" else 0.06)
    assert here.macs / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert here.coverage == 1


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [("maxvit-t", 1871), ("davit-t", 1519), ("focalnet-t", 1496), ("halonet-26t", 811.7), ("xcit-s12", 1602),
     ("efficientvit-l2", 2319), ("pvtv2-b2", 17241), ("pvtv2-li-b2", 1228), ("hiera-t", 23426)],
)  # fmt: skip
def test_costs_at_4096_px(name: str, gmacs: float) -> None:
    assert counted(name, 4096).macs / 1e9 == pytest.approx(gmacs, rel=0.005)


@pytest.mark.slow
def test_timms_maxvit_has_windows_that_grow() -> None:
    ours, theirs = counted("maxvit-t", 4096), counted("maxvit-t[windows='image']", 4096)
    assert theirs.macs / 1e9 == pytest.approx(33264, rel=1e-3)
    assert (ours.params / 1e6, theirs.params / 1e6) == pytest.approx((30.9, 41.8), abs=0.05)


def test_maxvit_keeps_its_windows() -> None:
    sides = {r: Registry().find("maxvit-t").plan(r).arguments["windows"] for r in (224, 256, 896, 1024, 1792)}
    assert sides == {224: 7, 256: 8, 896: 7, 1024: 8, 1792: 8}


def test_rows_of_timms_own_maxvit_say_that_windows_grew() -> None:
    find = Registry().find
    assert "windows and grids of 32 grow" in find("timm:maxvit_tiny_tf_224").plan(1024).reach
    assert "windows and grids of 32 that grow" in find("maxvit-t[windows='image']").plan(1024).reach
    fixed = "timm:maxvit_tiny_tf_224[transformer_window_size=(8,8),transformer_grid_size=(8,8)]"
    assert find(fixed).plan(1024).reach == "built for the size" == find("timm:resnet18").plan(1024).reach


@pytest.mark.parametrize(
    ("name", "timms", "arguments"),
    [
        ("focalnet-t", "focalnet_tiny_lrf", {}),
        ("focalnet-s-srf", "focalnet_small_srf", {}),
        ("halonet-26t", "halonet26t", {"img_size": 256}),
        ("maxvit-t[windows=8]", "maxvit_tiny_tf_224", {"img_size": 256}),
        ("davit-t", "davit_tiny", {}),
    ],
)
def test_a_variant_is_timms_model(name: str, timms: str, arguments: dict[str, Any]) -> None:
    """At 256 px timm's own rule gives MaxViT windows of 8, too."""
    with torch.device("meta"):
        ours = Registry().find(name).build(resolution=256, num_classes=10)
    theirs = timm.create_model(timms, num_classes=10, **arguments)
    shapes = [{key: tuple(t.shape) for key, t in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("family", ANY_SIZE)
def test_any_size_from_32_px_runs(family: str) -> None:
    model = Registry().find(f"{family}-n").build(resolution=104, num_classes=3).eval()
    with torch.no_grad():
        for side in (32, 104, 225):
            assert model(torch.randn(1, 3, side, side)).shape == (1, 3)
    with pytest.raises(IllegalSize, match="32"):
        Registry().find(f"{family}-n").plan(31)


@pytest.mark.parametrize(
    ("name", "size", "legal"),
    [
        ("maxvit-n", 1000, "896, 1120, 768, 1024|768, 896, 1024, 1120"),
        ("maxvit-n[windows=4]", 200, "128, 256"),
        ("halonet-n", 896, "768, 1024"),
        ("xcit-n", 1000, "992, 1008"),
        ("hiera-n", 1000, "992, 1024"),
        ("dinov3-n", 1000, "992, 1008"),
    ],
)
def test_illegal_sizes_name_legal_ones(name: str, size: int, legal: str) -> None:
    with pytest.raises(IllegalSize, match=legal):
        Registry().find(name).plan(size)


def test_windows_that_are_none_are_refused() -> None:
    with pytest.raises(IllegalArgument, match="fixed, image or tokens per side"):
        Registry().find("maxvit-n[windows='wide']").plan(256)


def test_davits_padding_is_in_the_row() -> None:
    plan = Registry().find("davit-t").plan(1024)
    assert plan.padding_ratio == pytest.approx((ceil(32 / 7) * 7 / 32) ** 2 - 1)
    assert Registry().find("davit-t").plan(896).padding_ratio is None
    assert Registry().find("davit-t[window_size=8]").plan(1024).padding_ratio is None


@pytest.mark.parametrize("name", NANO)
def test_nano_variants_train(name: str) -> None:
    torch.manual_seed(0)
    side = 256 if name in ("maxvit-n", "halonet-n") else 128
    model = Registry().find(name).build(resolution=side, num_classes=3).train()
    model(torch.randn(2, 3, side, side)).square().sum().backward()
    trained = [p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()]
    assert sum(trained) > 0.95 * len(trained)
