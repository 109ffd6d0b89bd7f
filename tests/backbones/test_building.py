"""What all built-in backbones have in common: how they are built, and timm's names for their steps."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from longvis_bench.errors import UnknownName
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution, resolution_of


@pytest.mark.parametrize("name", ["atlas-n", "longvit-n", "mambavision-n"])
def test_a_native_model_offers_timms_steps(name: str) -> None:
    """As timm's own models do: features, then the head, whose input `pre_logits` gives."""
    model: Any = Registry().find(name).build(resolution=256, num_classes=5).eval()
    theirs: Any = Registry().find("vit-n").build(resolution=256, num_classes=5).eval()
    image = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        for each in (model, theirs):
            features = each.forward_features(image)
            pooled = each.forward_head(features, pre_logits=True)
            torch.testing.assert_close(each.forward_head(features), each(image), rtol=0, atol=0)
            torch.testing.assert_close(each.head(pooled), each(image), rtol=0, atol=0)
            assert pooled.shape == (2, each.head.in_features)


@pytest.mark.parametrize("name", ["atlas-n", "fastervit-n", "longvit-n", "mambavision-n", "swin-n", "vit-n"])
def test_a_size_is_planned_once_per_build(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = Registry().find(name)
    assert variant.card is not None
    module, _, function = (variant.card.resolution.plan or "").partition(":")
    planned: list[AnyResolution] = []
    plan = getattr(import_module(module), function)

    def watch(resolution: AnyResolution, **arguments: Any) -> object:
        planned.append(resolution)
        return plan(resolution, **arguments)

    monkeypatch.setattr(import_module(module), function, watch)
    with torch.device("meta"):
        variant.build(resolution=256, num_classes=5)
    assert [resolution_of(size) for size in planned] == [256]


def test_an_argument_that_a_class_does_not_take_is_refused_before_anything_runs() -> None:
    with pytest.raises(UnknownName, match="did you mean window_order") as caught:
        Registry().find("atlas-n[windoworder=official]").check_factory()
    assert "self" not in str(caught.value)
