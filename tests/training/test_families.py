"""The nano variant of every family learns: a few steps on a few digits lower its loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from longvis_bench.data.protocol import open_data
from longvis_bench.errors import IllegalSize
from longvis_bench.registry.registry import Registry, Variant

pytestmark = pytest.mark.usefixtures("two_threads")

NANO = [found.card.nano for found in Registry(()).cards if found.card.nano and not found.card.tour]
"""Those of the families that ship no weights; the others' were trained to their accuracy."""
SIZES = (64, 112, 128, 224, 256)
IMAGES, STEPS = 12, 25
SLOW = {"biformer-n", "crossformer-n", "dinat-n", "halonet-n", "maxvit-n", "vim-n"}
"""Those that take the longest, most of them because their smallest size is large."""


def smallest(variant: Variant) -> int:
    """The smallest of SIZES that the model takes."""
    for size in SIZES:
        try:
            variant.plan(size)
        except IllegalSize:
            continue
        return size
    raise AssertionError(f"{variant.name} takes none of {SIZES}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NANO]
)
def test_the_loss_falls(name: str) -> None:
    torch.manual_seed(0)
    variant = Registry(()).find(name)
    size = smallest(variant)
    images, labels = open_data("digits").batch(
        "train", list(range(IMAGES)), size, device=torch.device("cpu"), dtype=torch.float32
    )
    model = variant.build(resolution=size, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert max(losses[-3:]) < 0.92 * losses[0], losses  # most halve it
