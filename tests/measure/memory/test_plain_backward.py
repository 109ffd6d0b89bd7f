"""The backward without torch's engine gives the engine's gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longvis_bench.measure.iteration import checkpoint_gradients
from longvis_bench.measure.memory.plain_backward import backward
from longvis_bench.registry.registry import Registry

NANO = [f"{name}-n" for name in ("atlas", "convnext", "fastervit", "longvit", "mambavision", "swin", "vit")]


def gradients(model: nn.Module, images: Tensor, plain: bool) -> list[Tensor | None]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    loss = F.cross_entropy(model(images), torch.tensor([1, 2]))
    if plain:
        one, root = torch.ones_like(loss), loss.grad_fn
        del loss
        backward(root, one)
    else:
        loss.backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("name", NANO)
def test_gradients_are_the_engines(name: str) -> None:
    """Also those of a model that recomputes its activations."""
    torch.manual_seed(0)
    side = 256 if name in ("atlas-n", "longvit-n") else 128
    model = Registry().find(name).build(resolution=side, num_classes=10).train()
    images = torch.randn(2, 3, side, side)
    wanted, found = gradients(model, images, plain=False), gradients(model, images, plain=True)
    checkpoint_gradients(model, name)
    again = gradients(model, images, plain=True)
    for one, *others in zip(wanted, found, again, strict=True):
        for other in others:
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6 + 1e-4 * float(one.abs().max()))


class Twice(torch.autograd.Function):
    """A Python function with an argument that is no tensor, and a result that is not used."""

    @staticmethod
    def forward(ctx: object, factor: float, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return factor * x, y.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor, unused: Tensor) -> tuple[None, Tensor, Tensor]:
        assert not unused.any()
        return None, 2 * gradient, unused


def test_python_functions_get_zeros_for_results_that_are_not_used() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    loss = Twice.apply(2.0, x, y)[0].sum()
    backward(loss.grad_fn, torch.ones(()))
    assert torch.equal(x.grad, torch.full((3,), 2.0))  # type: ignore[arg-type]
    assert torch.equal(y.grad, torch.zeros(3))  # type: ignore[arg-type]
