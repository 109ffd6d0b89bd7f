"""The built-in cards: every variant builds, every published number has a source, the READMEs tell the truth.

The schema's refusals are tested in test_registry.py, through users' cards.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from longvis_bench.errors import CardError
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.card import Card, read_card
from longvis_bench.registry.discovery import built_in_folder
from longvis_bench.registry.registry import Registry

REGISTRY = Registry()
CARDS = {found.card.family: found for found in REGISTRY.cards if found.origin == "built-in"}
SMALL = ("-0", "-t", "-s")
VARIANTS = [
    name
    if name == found.card.nano or (found.card.tour and name.endswith(SMALL))
    else pytest.param(name, marks=pytest.mark.slow)
    for found in CARDS.values()
    for name in found.card.variants
]
"""The nano variants, and of the families that `longvis bench` runs without models the small ones, too;
`make deep` has them all."""
NANO = [found.card.nano or "" for found in CARDS.values()]
FAMILIES = {
    "atlas": "n s b",
    "convnext": "n t s b l",
    "fastervit": "n 0 1 2 3 4 5 6",
    "longvit": "n s b",
    "mambavision": "n t t2 s b l l2",
    "swin": "n t s b l",
    "vit": "n t s b l",
}
PLANS = {family: f"timm:{family}" for family in ("convnext", "swin", "vit")}
"""Families whose sizes stand in the file of timm's."""
DISAGREES = {"fastervit-4": 365.56, "fastervit-5": 957.52, "pvtv2-b1": 14.01}
"""Variants whose published parameter counts contradict the authors' code, and what that has, in millions."""


class Cost(NamedTuple):
    """Of one variant with 1000 classes."""

    params: float
    macs: float


def build(name: str, resolution: int) -> nn.Module:
    """A variant with 1000 classes on the meta device."""
    with torch.device("meta"):
        return REGISTRY.find(name).build(resolution=resolution, num_classes=1000)


@cache
def cost(name: str, resolution: int) -> Cost:
    """Millions of parameters and billions of multiply-adds, counted on the meta device."""
    model = build(name, resolution)
    counted = count(model, resolution=resolution)
    return Cost(counted.params / 1e6, counted.macs / 1e9)


def card(family: str) -> Card:
    return CARDS[family].card


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_its_variants(family: str) -> None:
    assert list(card(family).variants) == [f"{family}-{size}" for size in FAMILIES[family].split()]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_card_says_what_a_user_must_know(family: str) -> None:
    of = card(family)
    assert of.nano == f"{family}-n"
    assert of.default_cuda in of.variants
    assert of.resolution.plan == "longvis_bench.sizes." + PLANS.get(family, f"{family}:plan")
    assert of.paper is not None
    assert of.upstream is not None
    assert re.fullmatch(r"[0-9a-f]{40}", of.commit or "")
    assert of.notes
    assert of.licences.trained
    assert (CARDS[family].folder / "README.md").is_file()


@pytest.mark.parametrize("family", [family for family, found in CARDS.items() if not found.card.tour])
def test_each_further_card_says_what_a_user_must_know(family: str) -> None:
    of = card(family)
    assert of.nano == f"{family}-n"
    assert of.default_cuda in of.variants
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", of.paper or "")
    assert of.notes
    assert of.resolution.note
    assert of.licences.upstream
    assert of.growth is not None
    assert (CARDS[family].folder / "README.md").is_file()


NON_COMMERCIAL = {"dinov3", "fastervit", "hiera", "mambavision"}


def test_what_is_not_for_commercial_use_is_marked() -> None:
    assert {family for family in CARDS if card(family).licences.non_commercial} == NON_COMMERCIAL
    for family in NON_COMMERCIAL:
        assert any("NON-COMMERCIAL" in note for note in card(family).notes)
        assert "on-commercial" in (CARDS[family].folder / "README.md").read_text()


@pytest.mark.parametrize("family", CARDS)
def test_published_numbers_carry_source_and_place(family: str) -> None:
    for entry in card(family).published:
        assert re.match(r"arXiv:\d{4}\.\d{5}|github\.com/[\w-]+/[\w-]+ (\S+\.md|configs)$", entry.source)
        assert entry.table
        numbers = [entry.params_m, entry.macs_g, entry.top1_percent, entry.throughput_img_s, entry.runtime_h]
        assert any(number is not None for number in numbers)
        assert (entry.throughput_img_s is None and entry.runtime_h is None) or entry.hardware
        assert entry.resolution is not None
        assert entry.dataset in ("imagenet-1k", "hr-in100")


def test_the_atlas_paper_is_quoted_as_printed() -> None:
    rows = {
        (p.variant, p.table, p.resolution): (p.top1_percent, p.runtime_h)
        for found in CARDS.values()
        for p in found.card.published
        if p.source == "arXiv:2503.12355"
    }
    assert rows["atlas-b", "Table 1", 1024] == (91.04, 23.12)
    assert rows["mambavision-s", "Table 2", 4096] == (23.36, 55.5)
    assert rows["vit-b", "Table 6", 2048] == (None, 58.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_gives_logits_on_meta(name: str) -> None:
    with torch.device("meta"):
        model = REGISTRY.find(name).build(resolution=256, num_classes=10).eval()
        with torch.no_grad():
            logits = model(torch.empty(1, 3, 256, 256))
    assert logits.shape == (1, 10)
    assert not any(tensor.device.type != "meta" for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", NANO)
def test_nano_variants_are_small(name: str) -> None:
    with torch.device("meta"):
        model = REGISTRY.find(name).build(resolution=256, num_classes=10)
    counted = count(model, resolution=256)
    assert 0.2e6 <= counted.params <= 0.5e6
    assert counted.macs <= 250e6


@pytest.mark.parametrize("name", NANO)
def test_channels_and_classes_are_the_callers(name: str) -> None:
    with torch.device("meta"):
        model = REGISTRY.find(name).build(resolution=256, num_classes=3, in_chans=5).eval()
        assert model(torch.empty(2, 5, 256, 256)).shape == (2, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_published(name: str) -> None:
    """Within what rounding or truncating takes; what contradicts the authors' code stands in the notes."""
    variant = REGISTRY.find(name)
    assert variant.card is not None
    for entry in variant.card.published:
        if entry.variant != name or entry.params_m is None or "-21K-" in entry.note:
            continue
        here = sum(p.numel() for p in build(name, entry.resolution or 0).parameters()) / 1e6
        if abs(here - entry.params_m) > max(0.75, 0.015 * entry.params_m):
            assert here == pytest.approx(DISAGREES[name], abs=0.01)
            assert any(str(entry.params_m) in note for note in variant.card.notes)


MACS = ["swin-b", "convnext-b", "vit-b", "fastervit-0", "mambavision-b"]


@pytest.mark.parametrize("name", MACS)
def test_macs_are_near_those_published(name: str) -> None:
    """Never fewer than printed, and at most 8 % more: what others leave out."""
    here = cost(name, 224).macs
    for entry in CARDS[name.split("-")[0]].card.published:
        if entry.variant == name and entry.resolution == 224 and entry.macs_g is not None:
            assert 0.99 * entry.macs_g < here < 1.08 * entry.macs_g


def test_counts_agree_with_independent_ones() -> None:
    """Counted for shared/published with another counter, at 1024 px."""
    for name, macs in (
        ("convnext-s", 181.457),
        ("convnext-b", 320.862),
        ("vit-s", 242.897),
        ("vit-b", 659.783),
    ):
        assert (card(name.split("-")[0]).variants[name].macs or 0) / 1e9 == pytest.approx(macs, abs=0.01)
    assert cost("fastervit-4", 224).macs == pytest.approx(43.2, abs=0.1)


@pytest.mark.parametrize("name", [name for found in CARDS.values() for name in found.card.variants])
def test_the_readmes_table_is_that_of_the_card(name: str) -> None:
    """Whose counts test_card_counts.py counts again."""
    variant = REGISTRY.find(name)
    text = (variant.folder / "README.md").read_text()
    row = re.search(rf"^\| `{name}` \|.*\| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert row is not None
    assert variant.card is not None
    here = variant.card.variants[name]
    assert here.params is not None
    assert here.macs is not None
    assert row.groups() == (f"{here.params / 1e6:.2f}", f"{here.macs / 1e9:.2f}")


@pytest.mark.parametrize("family", CARDS)
def test_models_named_in_prose_exist(family: str) -> None:
    """Every `name[key=value]` of README and notes can be built."""
    text = (CARDS[family].folder / "README.md").read_text() + json.dumps(card(family).notes)
    for name in set(re.findall(rf"({family}-[\w-]+\[[^\]]+=[^\]]+\])", text)):
        with torch.device("meta"):
            assert isinstance(REGISTRY.find(name).build(resolution=2048, num_classes=10), nn.Module)
    for name in set(re.findall(r"--models (\S+)", text)):
        assert REGISTRY.find(name).family == family


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    text = (built_in_folder() / "vit" / "card.toml").read_text()
    path.write_text(text.replace('title = "ViT"', 'title = "ViT"\nsmell = "sweet"'))
    with pytest.raises(CardError, match="smell: unknown field"):
        read_card(path)
