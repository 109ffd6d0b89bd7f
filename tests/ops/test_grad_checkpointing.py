"""A model with gradient checkpointing learns what it learns without, and keeps less."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.errors import Unsupported
from longvis_bench.measure.iteration import checkpoint_gradients
from longvis_bench.measure.memory.tensor_peak import tensor_peak
from longvis_bench.records import Cell
from longvis_bench.registry.registry import Registry

NATIVE = ("atlas-n", "fastervit-n", "longvit-n", "mambavision-n")
pytestmark = pytest.mark.usefixtures("two_threads")


def build(name: str) -> nn.Module:
    return Registry().find(f"{name}[drop_path=0.3]").build(resolution=256, num_classes=5).train()


def learned(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Logits, loss gradients and buffers after one forward and backward with fixed random numbers."""
    torch.manual_seed(1)
    logits = model(images)
    logits.square().sum().backward()
    gradients = {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("name", NATIVE)
def test_outputs_gradients_and_statistics_are_the_same(name: str) -> None:
    plain = build(name)
    checkpointed = copy.deepcopy(plain)
    checkpoint_gradients(checkpointed, name)
    images = torch.rand(2, 3, 256, 256)
    expected, got = learned(plain, images), learned(checkpointed, images)
    assert expected.keys() == got.keys()
    assert len(expected) > 10
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, msg=f"{key} differs")


OTHERS = ("fastervit-n", "longvit-n", "vit-n", "swin-n", "convnext-n")
BY_SHAPE = ["atlas-n", "mambavision-n", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.mark.parametrize("name", BY_SHAPE)
def test_less_is_kept_for_the_backward(name: str) -> None:
    variant = Registry().find(name)
    cell = Cell(
        model=name,
        family=variant.family,
        variant=name,
        implementation=variant.implementation,
        resolution=256,
        batch_size=4,
        mode="train",
    )
    without = tensor_peak(variant, cell)
    checkpointed = tensor_peak(variant, cell.model_copy(update={"grad_checkpointing": True}))
    assert checkpointed.parts_bytes["activations"] < 0.9 * without.parts_bytes["activations"]


def test_turning_it_off_again() -> None:
    model = build("longvit-n")
    checkpoint_gradients(model, "longvit-n")
    assert model.layers.grad_checkpointing is True  # type: ignore[union-attr]
    model.set_grad_checkpointing(False)  # type: ignore[operator]
    assert model.layers.grad_checkpointing is False  # type: ignore[union-attr]


def test_a_model_without_it_says_so() -> None:
    with pytest.raises(Unsupported, match="x-n has no gradient checkpointing"):
        checkpoint_gradients(nn.Linear(2, 2), "x-n")
