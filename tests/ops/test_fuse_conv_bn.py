"""Batch-norm folding: equal outputs, in every family; nothing is folded that may not be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.ops.fuse_conv_bn import find_pairs, fold_batch_norms
from longvis_bench.registry.registry import Registry


class Net(nn.Module):
    """One pair that can be folded, and three batch norms that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.shared, self.shared_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.read_twice, self.read_twice_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.after_relu = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_norm(self.first(x)).relu()
        x = self.shared_norm(self.shared(self.shared_norm(self.shared(x))))
        y = self.read_twice(x)
        x = self.read_twice_norm(y) + y
        return self.after_relu(x.relu()).mean(dim=(2, 3))  # type: ignore[no-any-return]


def moved(model: nn.Module) -> nn.Module:
    """Batch norms off their start, so that a fold that does nothing shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def test_only_what_can_be_folded_is() -> None:
    model = moved(Net())
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        before = model(images)
    assert [tuple(pair) for pair in fold_batch_norms(model, 16)] == [("first", "first_norm")]
    with torch.inference_mode():
        torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("atlas-n", 14), ("mambavision-n", 6), ("fastervit-n", 6), ("convnext-n", 0), ("vit-n", 0)],
)
def test_families_fold_alike(name: str, pairs: int) -> None:
    torch.manual_seed(0)
    model = moved(Registry().find(name).build(resolution=64, num_classes=10))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = model(images)
        assert len(fold_batch_norms(model, 64)) == pairs
        torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-4)


def test_folding_costs_no_memory_at_large_sizes() -> None:
    with torch.device("meta"):
        model = Registry().find("atlas-s").build(resolution=4096, num_classes=10).eval()
    assert len(find_pairs(model, 4096)) == 14


def test_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="in training they learn"):
        fold_batch_norms(Net().train(), 16)
