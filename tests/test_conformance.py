"""`longvis check`: every shipped nano variant passes, wrong adapters fail for their own reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longvis_bench.cards import Growth
from longvis_bench.conformance import (
    CHECKS,
    Failed,
    Subject,
    check_model,
    costs_more_at_larger_sizes,
    smallest_size,
)
from longvis_bench.measure.flops import count_variant
from longvis_bench.registry import Registry, Variant
from longvis_bench.scaffold import write_model

REGISTRY = Registry()
NANO = sorted(found.card.nano for found in REGISTRY.cards if found.card.nano)
EVERY = [name for found in REGISTRY.cards for name in found.card.variants]


@pytest.mark.parametrize("name", NANO)
def test_nano_variants_keep_the_contract(name: str) -> None:
    failed = [result for result in check_model(REGISTRY.find(name)) if not result.passed]
    assert not failed


@pytest.mark.parametrize("name", EVERY)
def test_every_variant_is_counted_completely_on_meta(name: str) -> None:
    variant = REGISTRY.find(name)
    result = count_variant(variant, 1024, 10)
    assert result.macs > 0
    assert result.coverage == 1.0
    assert not result.ledger.unknown


def test_a_new_model_passes_at_once(tmp_path: Path) -> None:
    write_model("mynet", tmp_path)
    results = check_model(Registry(working_dir=tmp_path).find("mynet"))
    assert len(results) == len(CHECKS)
    assert all(result.passed for result in results)


class Mixes(nn.Module):
    """Batch statistics in eval mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = x.mean(dim=(2, 3))
        return self.head(features - features.mean(dim=0))  # type: ignore[no-any-return]


class Forgets(Mixes):
    """A weight that is neither parameter nor buffer."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.hidden = torch.randn(classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3))) + self.hidden.to(x.dtype)  # type: ignore[no-any-return]


class Random(Mixes):
    """Dropout in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.head(x.mean(dim=(2, 3))), 0.5)


class Detaches(Mixes):
    """No gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3))).detach().requires_grad_()  # type: ignore[no-any-return]


class Narrow(Mixes):
    """One logit too few."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))[:, 1:]  # type: ignore[no-any-return]


class Broken(Mixes):
    """NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3))).log() * float("nan")  # type: ignore[no-any-return]


class Fixed(Mixes):
    """Takes one size and does not say so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] % 64 == 0
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Stranger(Mixes):
    """An operator nobody has a formula for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)) + torch.special.i0(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Empty(nn.Module):
    """No arithmetic at all."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), -1) + x.mean(dim=(1, 2, 3)).unsqueeze(1)


class Placed(Mixes):
    """Builds on the CPU whatever the default device."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("table", torch.zeros(3, device="cpu"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


WRONG: dict[type[nn.Module], str] = {
    Mixes: "does not mix images",
    Forgets: "loads what it saves",
    Random: "is deterministic in eval",
    Detaches: "trains",
    Narrow: "gives finite logits",
    Broken: "gives finite logits",
    Fixed: "refuses illegal sizes",
    Stranger: "is counted completely",
    Empty: "is counted completely",
    Placed: "builds on meta",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_adapter_fails_for_its_own_reason(
    kind: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(self: Variant, *, resolution: int, num_classes: int, in_chans: int = 3) -> nn.Module:
        return kind(num_classes)

    monkeypatch.setattr(Variant, "build", build)
    variant = Registry().find("timm:anything")
    failed = {result.name for result in check_model(variant, 64) if not result.passed}
    assert WRONG[kind] in failed  # type: ignore[index]


def test_smallest_size_of_each_family() -> None:
    sizes: dict[str, Any] = {name: smallest_size(REGISTRY.find(name)) for name in NANO}
    assert all(size <= 256 for size in sizes.values())


def test_families_claim_a_growth() -> None:
    claimed = {found.card.family: found.card.growth for found in REGISTRY.cards}
    assert [family for family, growth in claimed.items() if growth is None] == [
        "fastervit"
    ]  # its paper has none


@pytest.mark.parametrize(
    "name", [name if name in NANO else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_operations_grow_as_the_family_claims(name: str) -> None:
    """FLOPs(2R) / FLOPs(R), up to 4096 px."""
    variant = REGISTRY.find(name)
    assert variant.card
    detail = costs_more_at_larger_sizes(Subject(variant, 256))
    assert variant.card.growth is None or detail.endswith(f"{variant.card.growth} as claimed")


@pytest.mark.parametrize(("name", "claim"), [("vit-n", "linear"), ("swin-n", "quadratic")])
def test_a_wrong_claim_of_growth_is_found(name: str, claim: Growth, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = REGISTRY.find(name)
    assert variant.card
    monkeypatch.setitem(variant.card.__dict__, "growth", claim)
    with pytest.raises(Failed, match=f"which is not {claim}; correct `growth`"):
        costs_more_at_larger_sizes(Subject(variant, 256))
