"""Backbones without their heads: shapes, values, counts and gradients of every family's maps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.errors import IllegalSize, NoMaps
from longvis_bench.measure.flops.counter import Count, count_variant
from longvis_bench.ops.feature_maps import Backbone, last_of_each, offers_maps, stage_maps, without_head
from longvis_bench.registry.output import build_output
from longvis_bench.registry.registry import Registry

REGISTRY = Registry()
CARDS = {found.card.nano: found.card for found in REGISTRY.cards if found.card.nano}
NANO = sorted(CARDS)
CLASSES = 10


def backbone_of(name: str, resolution: int) -> Backbone:
    built = build_output(REGISTRY.find(name), "features", resolution=resolution, num_classes=CLASSES)
    assert isinstance(built, Backbone)
    return built.eval()


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("resolution", [512, 1024])
def test_maps_have_the_sides_that_their_strides_say(name: str, resolution: int) -> None:
    with torch.device("meta"):
        backbone = backbone_of(name, resolution)
        maps = backbone(torch.empty(2, 3, resolution, resolution))
    strides = backbone.strides
    assert list(strides) == sorted(set(strides))
    assert [(len(one), *one.shape[2:]) for one in maps] == [
        (2, resolution // s, resolution // s) for s in strides
    ]
    claimed = CARDS[name].features
    assert claimed == ("one map" if len(maps) == 1 else "pyramid")


@pytest.mark.parametrize("name", NANO)
def test_maps_of_rectangles_have_the_sides_of_their_strides(name: str) -> None:
    variant = REGISTRY.find(name)
    if variant.rectangles is None:
        with pytest.raises(IllegalSize):
            build_output(variant, "features", resolution=(512, 1024), num_classes=CLASSES)
        return
    with torch.device("meta"):
        backbone: Any = build_output(variant, "features", resolution=(512, 1024), num_classes=CLASSES)
        maps = backbone.eval()(torch.empty(1, 3, 512, 1024))
    assert [tuple(one.shape[2:]) for one in maps] == [(512 // s, 1024 // s) for s in backbone.strides]


def width_of(count: Count) -> int:
    assert count.features is not None
    return count.features.channels[-1]


def _linear(norms: int, parameters_per_channel: int = 2) -> Callable[[Count], tuple[int, int]]:
    """Parameters and MACs of norms over the last map's channels, and a linear layer to the classes."""

    def head(count: Count) -> tuple[int, int]:
        width = width_of(count)
        return norms * parameters_per_channel * width + (width + 1) * CLASSES, width * CLASSES

    return head


def _of_mambaout(count: Count) -> tuple[int, int]:
    """Norm, linear to four times the width, norm, linear."""
    width = width_of(count)
    hidden = 4 * width
    params = 2 * width + (width + 1) * hidden + 2 * hidden + (hidden + 1) * CLASSES
    return params, width * hidden + hidden * CLASSES


HEADS: dict[str, Callable[[Count], tuple[int, int]]] = {
    "atlas-n": _linear(2),
    "pvtv2-n": _linear(0),
    "pvtv2-li-n": _linear(0),
    "halonet-n": _linear(0),
    "vim-n": _linear(1, 1),
    **dict.fromkeys(
        [
            *("agent-n", "biformer-n", "crossformer-n", "dinat-n", "fastervit-n", "inline-n", "longvit-n"),
            *("mambavision-n", "mila-n", "mscsa-n", "vmamba-n", "convnext-n", "davit-n", "focalnet-n"),
            *("hiera-n", "swin-n", "vit-n"),
        ],
        _linear(1),
    ),
    "mambaout-n": _of_mambaout,
}
"""What a head has, from its definition; heads of other families are checked against the count by module."""
MODULES = {
    "dinov3-n": ("norm", "fc_norm", "head"),
    "efficientvit-n": ("head",),
    "maxvit-n": ("norm", "head"),
    "xcit-n": ("norm", "cls_attn_blocks", "head"),
}


def both(name: str) -> tuple[Count, Count]:
    variant = REGISTRY.find(name)
    return count_variant(variant, 512, CLASSES), count_variant(variant, 512, CLASSES, "features")


@pytest.mark.parametrize("name", sorted(HEADS))
def test_counts_are_those_of_the_logits_less_the_head(name: str) -> None:
    logits, features = both(name)
    params, macs = HEADS[name](features)
    assert logits.params - features.params == params
    assert logits.macs - features.macs == macs
    assert logits.scan_flops == features.scan_flops
    assert features.coverage == 1.0


@pytest.mark.parametrize("name", sorted(MODULES))
def test_counts_are_those_of_the_logits_less_the_modules_of_the_head(name: str) -> None:
    logits, features = both(name)
    assert logits.macs - features.macs == sum(logits.by_module.get(module, 0) for module in MODULES[name])
    assert features.params < logits.params


def test_every_family_s_head_is_accounted_for() -> None:
    assert {*HEADS, *MODULES} == set(NANO)


def _seen(model: nn.Module, paths: list[str], *, before: bool) -> list[Tensor]:
    """What modules return, or are called with, in the classifier's forward."""
    found: list[Tensor] = []
    for path in paths:
        module = model.get_submodule(path)
        if before:
            module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        else:
            module.register_forward_hook(lambda _, inputs, output: found.append(output))
    return found


AFTER: dict[str, list[str]] = {
    **{
        name: [f"layers.{i}.blocks" for i in range(4)]
        for name in ("agent-n", "crossformer-n", "inline-n", "mila-n", "vmamba-n")
    },
    **{
        name: [f"stages.{i}" for i in range(4)]
        for name in (
            *("biformer-n", "mambavision-n", "convnext-n", "davit-n", "mambaout-n", "maxvit-n", "pvtv2-n"),
            *("efficientvit-n", "halonet-n", "pvtv2-li-n"),
        )
    },
    **{name: [f"layers.{i}" for i in range(4)] for name in ("swin-n", "focalnet-n")},
    "dinat-n": [f"levels.{i}.blocks" for i in range(4)],
    "longvit-n": ["layers"],
}
"""Modules whose outputs the maps are."""
BEFORE = {
    "fastervit-n": [f"levels.{i}.downsample" for i in range(4)],
    "vit-n": ["norm"],
    "vim-n": ["norm_f"],
    "xcit-n": ["cls_attn_blocks.0"],
}
"""Modules whose inputs they are."""


@pytest.mark.parametrize("name", [*AFTER, *BEFORE])
@torch.inference_mode()
def test_maps_are_what_the_classifier_s_stages_give(name: str) -> None:
    torch.manual_seed(0)
    model: Any = REGISTRY.find(name).build(resolution=256, num_classes=CLASSES).eval()
    image = torch.randn(1, 3, 256, 256)
    seen = _seen(model, AFTER.get(name) or BEFORE[name], before=name in BEFORE)
    model(image)
    kept = [one.clone() for one in seen]
    maps = without_head(model, name).eval()(image)
    assert len(maps) == len(kept)
    for one, stage in zip(maps, kept, strict=True):
        assert any(
            found.shape == one.shape and torch.allclose(found, one, rtol=1e-4, atol=1e-4)
            for found in _as_maps(stage, one, model)
        )


def _as_maps(stage: Tensor, like: Tensor, model: Any) -> list[Tensor]:
    """A stage's output in a map's layout; channels may be second or last."""
    if stage.ndim == 4:
        return [stage, stage.permute(0, 3, 1, 2)]
    tokens = like.shape[2] * like.shape[3]
    if stage.shape[1] != tokens:
        position = getattr(model, "cls_position", 0)
        stage = torch.cat([stage[:, :position], stage[:, position + 1 :]], dim=1)
    return [stage.mT.reshape(like.shape)]


@torch.inference_mode()
def test_atlas_gives_each_scale_as_its_last_stage_leaves_it() -> None:
    torch.manual_seed(0)
    model: Any = REGISTRY.find("atlas-n").build(resolution=512, num_classes=CLASSES).eval()
    image = torch.randn(1, 3, 512, 512)
    tokens: list[Tensor] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, inputs, output: tokens.append(output[0].clone()))
    model(image)
    left = list(tokens)
    maps = without_head(model, "atlas-n").eval()(image)
    assert len(maps) == len(left) > 1
    for one, windows, scale in zip(maps, left, model.scales, strict=True):
        (rows, columns), (height, width) = scale.windows, scale.window
        for row in range(rows):
            for column in range(columns):
                patch = one[0, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
                assert torch.equal(patch.flatten(1).T, windows[row * columns + column])


@torch.inference_mode()
def test_a_fused_pyramid_is_handed_on() -> None:
    torch.manual_seed(0)
    model: Any = REGISTRY.find("mscsa-n").build(resolution=256, num_classes=CLASSES).eval()
    image = torch.randn(1, 3, 256, 256)
    fused = model.forward_features(image)
    maps = without_head(model, "mscsa-n").eval()(image)
    assert all(torch.equal(one, wanted) for one, wanted in zip(maps, fused, strict=True))


@pytest.mark.parametrize("name", ["mila-n", "swin-n", "fastervit-n", "atlas-n"])
def test_the_gradient_of_each_map_reaches_its_stage_and_none_after_it(name: str) -> None:
    torch.manual_seed(0)
    backbone = backbone_of(name, 512)
    maps = backbone(torch.randn(1, 3, 512, 512))
    reached = []
    for one in maps:
        gradients = torch.autograd.grad(
            one.abs().mean(), list(backbone.parameters()), retain_graph=True, allow_unused=True
        )
        reached.append({i for i, gradient in enumerate(gradients) if gradient is not None and gradient.any()})
    assert reached[0]
    for fine, coarse in pairwise(reached):
        assert coarse - fine, "a coarser map has parameters of its own"
        assert fine & coarse, "it is made of the finer one"


def test_a_model_without_maps_is_refused_by_a_sentence() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 4, 4))
    assert not offers_maps(plain)
    with pytest.raises(NoMaps, match="plain offers no maps"):
        without_head(plain, "plain")


class Strideless(nn.Module):
    def forward_maps(self, image: Tensor) -> list[Tensor]:
        return [image]


def test_a_hook_without_strides_is_refused_by_a_sentence() -> None:
    with pytest.raises(NoMaps, match="add map_strides"):
        without_head(Strideless(), "mine")


class WithToken(nn.Module):
    map_strides = (4,)
    head_modules = ("head.linear", "token")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(8))
        self.head = nn.ModuleDict({"linear": nn.Linear(8, 5)})

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        return [self.stem(image)]


def test_modules_and_parameters_of_the_head_are_removed() -> None:
    backbone = without_head(WithToken(), "mine")
    assert [name for name, _ in backbone.named_parameters()] == ["backbone.stem.weight", "backbone.stem.bias"]
    with pytest.raises(AssertionError):
        backbone.set_grad_checkpointing()


def test_of_timm_s_maps_the_last_of_each_stride_is_taken_from_stride_4_on() -> None:
    assert last_of_each([2, 4, 8, 16, 32]) == [1, 2, 3, 4]
    assert last_of_each([16] * 12) == [11]
    assert last_of_each([4, 4, 8, 8, 16]) == [1, 3, 4]


class Stage(nn.Module):
    def __init__(self, add: float) -> None:
        super().__init__()
        self.blocks = Add(add)
        self.downsample = Add(100.0)


class Add(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: Tensor) -> Tensor:
        return x + self.amount


def test_stages_are_taken_before_their_downsampling() -> None:
    maps = stage_maps(torch.zeros(1), [Stage(1.0), Stage(2.0)])
    assert [one.item() for one in maps] == [1.0, 103.0]
