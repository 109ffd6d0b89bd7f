"""`longvis check`: every shipped nano variant passes, wrong adapters fail for their own reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import nn

from longvis_bench.adapters.conformance import (
    CHECKS,
    Failed,
    Result,
    Subject,
    check_model,
    costs_more_at_larger_sizes,
    gives_maps,
    smallest_size,
)
from longvis_bench.adapters.scaffold import write_model
from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.registry.card import Growth
from longvis_bench.registry.registry import Registry, Variant

REGISTRY = Registry()
CARDS = {found.card.nano: found.card for found in REGISTRY.cards if found.card.nano}
NANO = sorted(CARDS)
CARDS_OF = {name: found.card for found in REGISTRY.cards for name in found.card.variants}
EVERY = [name for found in REGISTRY.cards for name in found.card.variants]
TOUR = {name for name, card in CARDS.items() if card.tour}
"""Nano variants of the families that `longvis bench` runs without models."""


def in_deep(names: Iterable[str], deep: Callable[[str], bool]) -> list[ParameterSet | str]:
    """Parameters, of which some are checked by `make deep` only."""
    return [pytest.param(name, marks=pytest.mark.slow) if deep(name) else name for name in names]


@pytest.mark.parametrize("name", in_deep(NANO, lambda name: name not in TOUR))
def test_nano_variants_keep_the_contract(name: str) -> None:
    results = check_model(REGISTRY.find(name))
    assert all(result.passed for result in results)
    assert grows_as_claimed(name, growth_of(results))


@pytest.mark.parametrize("name", in_deep(EVERY, lambda name: name in TOUR or name not in CARDS))
def test_every_variant_keeps_the_contract_on_meta(name: str) -> None:
    """All checks that need no values, counting and growth among them."""
    results = check_model(REGISTRY.find(name), device="meta")
    assert not [result for result in results if result.passed is False]
    assert grows_as_claimed(name, growth_of(results))


def growth_of(results: Iterable[Result]) -> str:
    """What the check of growth found."""
    (detail,) = (result.detail for result in results if result.name == GROWTH[0])
    return detail


def grows_as_claimed(name: str, detail: str) -> bool:
    """Whether the last check found the growth that the card states; one states none."""
    growth = CARDS_OF[name].growth
    return growth is None or detail.endswith(f"{growth} as claimed")


@pytest.mark.slow
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


class Honest(nn.Module):
    """Keeps the contract; every wrong adapter below breaks it in one place."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.head = nn.Linear(8, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x).relu().mean(dim=(2, 3))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class Placed(Honest):
    """Builds on the CPU whatever the default device."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("table", torch.zeros(3, device="cpu"))


class Double(Honest):
    """Builds in another dtype than the default one."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))


class Narrow(Honest):
    """One logit too few."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, 1:]


class Broken(Honest):
    """NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float("nan")


class Random(Honest):
    """Dropout in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), 0.5)


class Mixes(Honest):
    """Batch statistics in eval mode."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        features = super().features(x)
        return features - features.mean(dim=0) / 2


class Detaches(Honest):
    """No gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


class Square(Honest):
    """Takes squares only and does not say so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] == x.shape[3]
        return super().forward(x)


class Fixed(Honest):
    """Takes one size and does not say so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] % 32 == 0
        return super().forward(x)


class Single(Honest):
    """Has a constant in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x) @ torch.eye(8, device=x.device))  # type: ignore[no-any-return]


class Forgets(Honest):
    """A weight that is neither parameter nor buffer."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.hidden = torch.randn(classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.hidden.to(x.dtype)


class Stranger(Honest):
    """An operator nobody has a formula for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super().forward(x) + 0 * torch.fft.fft(x.float()).real.to(x.dtype).mean()
        return logits


class Empty(nn.Module):
    """No arithmetic at all."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), -1) + x.mean(dim=(1, 2, 3)).unsqueeze(1)


class Shrinks(Honest):
    """Sees a thumbnail, whatever the size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.interpolate(x, size=32))


class Pyramid(Honest):
    """Offers maps; each wrong one below breaks the hook in one place."""

    map_strides: tuple[int, ...] = (2, 4)
    head_modules: tuple[str, ...] = ("head",)

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.down = nn.Conv2d(8, 8, 2, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_maps(x)[-1].relu().mean(dim=(2, 3))

    def forward_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        fine = self.stem(x)
        return [fine, self.down(fine)]


class KeepsHead(Pyramid):
    """Does not say what the head is."""

    head_modules = ()


class OtherStrides(Pyramid):
    """Claims strides of another model."""

    map_strides = (4, 8)


class MixesMaps(Pyramid):
    """Batch statistics in the maps alone."""

    def forward_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        fine, coarse = super().forward_maps(x)
        return [fine, coarse - coarse.mean(0, keepdim=True)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward_maps(x)[-1].relu().mean(dim=(2, 3))


class CutsMap(MixesMaps):
    """The finer map takes no part in training."""

    def forward_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        fine = self.stem(x)
        return [fine.detach(), self.down(fine)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.stem(x)).relu().mean(dim=(2, 3))  # type: ignore[no-any-return]


class Wrong(NamedTuple):
    """What `longvis check` says of a wrong adapter."""

    check: str
    advice: str
    not_run: tuple[str, ...] = ()
    """Checks that would fail of the same fault."""


GROWTH = ("costs more at larger sizes",)
ON_SAME = ("does not mix images", "runs in its dtypes", "loads what it saves")
ON_FINITE = (
    "is deterministic in eval",
    "does not mix images",
    "trains",
    "gives maps",
    "takes the rectangles it states",
    "refuses illegal sizes",
    "runs in its dtypes",
    "loads what it saves",
)
ON_SHAPE = ("gives finite logits", *ON_FINITE, "is counted completely", *GROWTH)
WRONG: dict[type[nn.Module], Wrong] = {
    Placed: Wrong("builds on meta", "leave out device arguments", ("is counted completely", *GROWTH)),
    Double: Wrong("builds on cpu", "leave out dtype arguments", ("gives logits", *ON_SHAPE)),
    Narrow: Wrong("gives logits", "not (2, 7): one row of logits per image", ON_SHAPE),
    Broken: Wrong("gives finite logits", "100% of the logits are NaN or infinite; try", ON_FINITE),
    Random: Wrong("is deterministic in eval", "is dropout off in eval mode?", ON_SAME),
    Mixes: Wrong("does not mix images", "look for reshapes that mix the batch and for batch statistics"),
    Detaches: Wrong("trains", "is something detached?"),
    KeepsHead: Wrong(
        "gives maps", "the maps do not need head.weight; name what only the logits need in head"
    ),
    OtherStrides: Wrong(
        "gives maps", "shape (2, 8, 32, 32), not (2, channels, 16, 16): stride 4 of 64 x 64 px"
    ),
    MixesMaps: Wrong("gives maps", "an image's maps change by"),
    CutsMap: Wrong("gives maps", "no gradient reaches the map of stride 2"),
    Square: Wrong("takes the rectangles it states", "a factory and a plan that take (height, width)"),
    Fixed: Wrong("refuses illegal sizes", "state the rule in the card: [resolution] multiple_of = ..."),
    Single: Wrong("runs in its dtypes", "make constants in the input's dtype, or remove it from the card"),
    Forgets: Wrong("loads what it saves", "is a tensor neither parameter nor buffer?"),
    Stranger: Wrong("is counted completely", "aten::_fft_r2c; write them with others", GROWTH),
    Empty: Wrong("is counted completely", "does the forward use its parameters?", GROWTH),
    Shrinks: Wrong("costs more at larger sizes", "does every pixel reach the model"),
}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[nn.Module]], Variant]:
    """A variant that builds a given class."""

    def make(kind: type[nn.Module]) -> Variant:
        def build(self: Variant, *, resolution: int, num_classes: int, in_chans: int = 3) -> nn.Module:
            return kind(num_classes)

        monkeypatch.setattr(Variant, "build", build)
        return Registry().find("timm:anything")

    return make


@pytest.mark.parametrize("kind", [Honest, Pyramid])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_honest_adapter_passes_every_check(
    kind: type[nn.Module],
    device: Literal["cpu", "meta"],
    adapter: Callable[[type[nn.Module]], Variant],
) -> None:
    results = check_model(adapter(kind), 64, device)
    maps = next(result.detail for result in results if result.name == "gives maps")
    assert maps == ("2 at stride 2, 4" if kind is Pyramid else "offers none, which is optional")
    assert [result.name for result in results] == [check.name for check in CHECKS]
    assert not [result for result in results if result.passed is False]
    not_run = [result.name for result in results if result.passed is None]
    assert not_run == [check.name for check in CHECKS if check.values and device == "meta"]


def test_every_check_has_an_adapter_that_fails_it() -> None:
    assert {wrong.check for wrong in WRONG.values()} == {check.name for check in CHECKS}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_adapter_fails_its_own_check_alone(
    kind: type[nn.Module], adapter: Callable[[type[nn.Module]], Variant]
) -> None:
    wrong, results = WRONG[kind], check_model(adapter(kind), 64)
    failed = {result.name: result.detail for result in results if result.passed is False}
    assert list(failed) == [wrong.check]
    assert wrong.advice in failed[wrong.check]
    not_run = {result.name: result.detail for result in results if result.passed is None}
    assert set(not_run) == set(wrong.not_run)
    assert all(detail.startswith("not run: it needs a model that ") for detail in not_run.values())


class Peeks(Honest):
    """Branches on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum().item() > 0 else -x)


def test_what_a_model_raises_comes_with_advice(adapter: Callable[[type[nn.Module]], Variant]) -> None:
    results = check_model(adapter(Peeks), 64)
    failed = {result.name: result.detail for result in results if result.passed is False}
    assert list(failed) == ["is counted completely"]
    assert "leave out .item(), numpy and branches on values" in failed["is counted completely"]


def test_a_card_that_claims_maps_must_give_them(adapter: Callable[[type[nn.Module]], Variant]) -> None:
    card = CARDS["vit-n"].model_copy(update={"implementation": "timm"})
    claims = replace(adapter(Honest), card=card, implementation="timm")
    with pytest.raises(Failed, match="the card says features = 'one map'"):
        gives_maps(Subject(claims, 64))
    with pytest.raises(Failed, match="the card says one map, and there are 2"):
        gives_maps(Subject(replace(adapter(Pyramid), card=card, implementation="timm"), 64))


def test_smallest_size_of_each_family() -> None:
    sizes: dict[str, Any] = {name: smallest_size(REGISTRY.find(name)) for name in NANO}
    assert all(size <= 256 for size in sizes.values())


def test_families_claim_a_growth() -> None:
    claimed = {found.card.family: found.card.growth for found in REGISTRY.cards}
    assert [family for family, growth in claimed.items() if growth is None] == [
        "fastervit"
    ]  # its paper has none


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_operations_grow_as_the_family_claims(name: str) -> None:
    """FLOPs(2R) / FLOPs(R), up to 4096 px."""
    assert grows_as_claimed(name, costs_more_at_larger_sizes(Subject(REGISTRY.find(name), 256)))


@pytest.mark.parametrize(("name", "claim"), [("vit-n", "linear"), ("swin-n", "quadratic")])
def test_a_wrong_claim_of_growth_is_found(name: str, claim: Growth, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = REGISTRY.find(name)
    assert variant.card
    monkeypatch.setitem(variant.card.__dict__, "growth", claim)
    with pytest.raises(Failed, match=f"which is not {claim}; correct `growth`"):
        costs_more_at_larger_sizes(Subject(variant, 256))
