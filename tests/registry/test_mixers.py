"""Mixers by name: `mixers.toml`, its errors, grids, and users' own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from longvis_bench.errors import (
    CardError,
    IllegalArgument,
    IllegalSize,
    LongvisError,
    UnknownName,
    Unsupported,
)
from longvis_bench.files import PACKAGE
from longvis_bench.registry.mixers import MixerVariant
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.code_hash import code_hash

OWN = """
schema = 1

[mixers.shuffle]
title = "shuffle"
summary = "Rolls the grid."
factory = "shuffle.py:Shuffle"
arguments = { step = 2 }
"""
MODULE = """
from torch import nn


class Shuffle(nn.Module):
    def __init__(self, *, dim, heads, grid, step):
        super().__init__()
        self.step = step
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        return self.proj(x).roll(self.step, 1)
"""


def own(text: str = OWN) -> Registry:
    """A registry of a working directory with a mixer of the user."""
    folder = Path("models") / "mine"
    folder.mkdir(parents=True)
    (folder / "mixers.toml").write_text(text)
    (folder / "shuffle.py").write_text(MODULE)
    return Registry()


def mixer(name: str) -> MixerVariant:
    return cast(MixerVariant, Registry(()).find(f"mixer:{name}"))


def test_a_mixer_is_a_model_with_the_networks_arguments_and_its_own() -> None:
    variant = mixer("window[dim=32,heads=2,window=4]")
    assert variant.full_name == "mixer:window[dim=32,heads=2,window=4]"
    assert variant.family == "mixer"
    assert variant.arguments == {
        "dim": 32, "heads": 2, "blocks": 4, "mlp_ratio": 4.0, "patch": 4, "window": 4
    }  # fmt: skip
    assert variant.plan(64).reach == "16 x 16 tokens; windows of 4 x 4"


def test_names_may_be_spelled_otherwise_and_unknown_ones_have_near_misses() -> None:
    assert mixer("Block_Grid").variant == "block-grid"
    with pytest.raises(UnknownName, match="did you mean window"):
        mixer("windows")
    with pytest.raises(UnknownName, match="--list"):
        mixer("zzz")
    assert Registry(()).expand(["mixer:*window", "vit-n"]) == [
        "mixer:window",
        "mixer:shifted-window",
        "vit-n",
    ]
    with pytest.raises(UnknownName, match="matches no name"):
        Registry(()).expand(["mixer:z*"])


def test_all_models_are_without_mixers() -> None:
    registry = Registry(())
    assert not [name for name in registry.expand(["all"]) if "mixer" in name]
    assert not [name for name in registry.names() if name.startswith("mixer:")]


@pytest.mark.parametrize(
    ("name", "pixels", "error", "words"),
    [
        ("window", 100, IllegalSize, "windows of 16 tokens of 4 px needs a multiple of 64 px.*64, 128"),
        ("window", 102, IllegalSize, "patches of 4 px needs a multiple of 4 px.*100, 104"),
        ("full", 102, IllegalSize, "100, 104"),
        ("neighbourhood", 16, IllegalSize, "7 tokens per side.*28"),
        ("agent", 16, IllegalSize, "49 agents.*28"),
        ("atlas", 416, IllegalSize, "windows of 16 tokens of 4 px.*384"),
        ("atlas[mlp_ratio=2]", 256, Unsupported, "MLP of ratio 4, not 2"),
        ("atlas[mlp_ratio=0]", 256, Unsupported, "whole block"),
        ("carrier-tokens[mlp_ratio=0]", 256, Unsupported, "whole block"),
        ("full[heads=7]", 256, IllegalArgument, "heads must divide the width of 768"),
        ("full[blocks=0]", 256, IllegalArgument, "blocks must be a positive whole number"),
        ("full[mlp_ratio=-1]", 256, IllegalArgument, "mlp_ratio must be a number from 0 up"),
        ("agent[agents=48]", 256, IllegalArgument, "square number"),
        ("bi-level[topk=65]", 256, IllegalArgument, "at most the number of regions, 64"),
        ("dilated[segments=[64]]", 256, IllegalArgument, "one pair per branch"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    name: str, pixels: int, error: type[LongvisError], words: str
) -> None:
    with pytest.raises(error, match=words):
        mixer(name).plan(pixels)


@pytest.mark.parametrize("side", [64, 96, 128, 256, 512])
def test_every_mixer_takes_the_papers_tokens_and_those_from_4096_to_262144(side: int) -> None:
    for variant in Registry(()).mixers():
        assert variant.plan(4 * side).reach


def test_what_follows_from_the_grid_is_said() -> None:
    paper, larger = (mixer("atlas").plan(4 * side) for side in (96, 128))
    assert paper.reach == "scales of 96 x 96, 12 x 12 tokens, pooled by 8 (paper: 4); windows of 16 x 16"
    assert larger.reach == "scales of 128 x 128, 32 x 32, 8 x 8 tokens, pooled by 4; windows of 16 x 16"
    assert "7 x 7, 13 tokens apart" in mixer("dilated-neighbourhood").plan(384).reach
    assert mixer("dilated").plan(512).arguments["segments"][-1] == 16384
    assert "does not span" in mixer("dilated").plan(384).reach


def test_an_unknown_argument_has_near_misses() -> None:
    with pytest.raises(UnknownName, match="did you mean window"):
        mixer("window[windw=4]").check_factory()
    mixer("window[window=4,dim=32,blocks=1]").check_factory()
    with pytest.raises(CardError, match="cannot be called"):
        mixer("full[window=4]").build(resolution=64, num_classes=2)


def test_a_users_mixer_is_found_and_built() -> None:
    registry = own()
    variant = registry.find("mixer:shuffle[dim=8,heads=2,blocks=1,step=1]")
    assert variant.implementation == "user"
    assert "shuffle" in [each.variant for each in registry.mixers()]
    variant.check_factory()
    assert variant.build(resolution=16, num_classes=3)(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OWN.replace("title", "sumary = 1\ntitle"), "unknown field"),
        (OWN.replace("shuffle.py:Shuffle", "shuffle.py"), "must read 'package.module:callable'"),
        (OWN.replace("[mixers.shuffle]", "[mixers.window]"), "two files claim the mixer 'window'"),
        (OWN.replace("schema = 1", "schema = 2"), "does not follow the schema"),
        ("schema = ", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(CardError, match=words):
        own(text).mixers()


def test_a_row_of_a_mixer_is_outdated_by_its_backbone_and_the_network(tmp_path: Path) -> None:
    copy = Path(
        shutil.copytree(PACKAGE, tmp_path / "longvis_bench", ignore=shutil.ignore_patterns("__pycache__"))
    )
    variant = replace(mixer("atlas"), factory="mixers.py:MultiScale", folder=copy / "backbones")
    before = code_hash(variant, copy)
    for name, changes in (("atlas.py", True), ("vim.py", True), ("mixers.py", True), ("mscsa.py", False)):
        file = copy / "backbones" / name
        content = file.read_bytes()
        file.write_bytes(content + b"#")
        assert (code_hash(variant, copy) != before) == changes, name
        file.write_bytes(content)
    assert PACKAGE / "backbones" / "mixer_network.py" in mixer("atlas").source_files()
