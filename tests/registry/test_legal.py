"""Rectangles of users' cards and files: who gets (height, width), and who is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Rectangle

FACTORY = """
from torch import nn
from longvis_bench.sizes import SizePlan, require_multiple
def build(*, resolution, num_classes, in_chans=3):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, num_classes))
    model.got = resolution
    return model
def plan(resolution, **arguments):
    require_multiple(resolution, 8, "own")
    return SizePlan(reach=repr(resolution))
"""
CARD = """
schema = 1
family = "own"
title = "t"
summary = "s"
factory = "own.py:build"
implementation = "user"
licences = {{ code = "mine" }}
variants = {{ own-s = {{ arguments = {{}} }} }}
[resolution]
{rule}
"""


def own(folder: Path, rule: str) -> Variant:
    (folder / "models" / "own").mkdir(parents=True)
    (folder / "models" / "own" / "own.py").write_text(FACTORY)
    (folder / "models" / "own" / "card.toml").write_text(CARD.format(rule=rule))
    return Registry(working_dir=folder).find("own-s")


def got(variant: Variant, resolution: int | tuple[int, int]) -> object:
    return variant.build(resolution=resolution, num_classes=2).got


def test_a_card_that_states_rectangles_gets_pairs_always(tmp_path: Path) -> None:
    variant = own(tmp_path, 'multiple_of = 8\nmaximum = 64\nrectangles = "each side a multiple of 8 px"')
    assert (got(variant, 32), got(variant, (16, 64))) == ((32, 32), (16, 64))
    with pytest.raises(IllegalSize, match=r"72x16 px is .*takes at most 64 px per side; .*: 64x16\."):
        variant.plan((16, 72))
    with pytest.raises(
        IllegalSize, match=r"20x16 px is .*needs a multiple of 8 px per side; .*: 16, 24x16\."
    ):
        variant.plan((16, 20))


def test_a_plan_function_gets_what_its_factory_gets(tmp_path: Path) -> None:
    variant = own(tmp_path, 'plan = "own.py:plan"\nrectangles = "each side a multiple of 8 px"')
    assert (variant.plan(32).reach, variant.plan((16, 64)).reach) == ("(32, 32)", "(16, 64)")
    with pytest.raises(IllegalSize, match="near it: 16, 24x16"):
        variant.plan((16, 20))


def test_a_card_that_states_none_takes_squares_as_numbers(tmp_path: Path) -> None:
    variant = own(tmp_path, 'plan = "own.py:plan"')
    assert (got(variant, 32), got(variant, (32, 32)), variant.plan(32).reach) == (32, 32, "32")
    with pytest.raises(IllegalSize, match=r"20x16 px is .*own-s takes squares only; .*: 16, 24\.") as caught:
        variant.build(resolution=(16, 20), num_classes=2)
    assert caught.value.resolution == Rectangle(16, 20)


@pytest.mark.parametrize("note", ["tuple[int, int]", "int | tuple[int, int]", "'Tuple[int, int]'"])
def test_a_file_says_by_its_annotation_that_it_takes_pairs(note: str, tmp_path: Path) -> None:
    source = FACTORY.replace("def build(*, resolution,", f"def build(*, resolution: {note},")
    (tmp_path / "net.py").write_text(f"from typing import Tuple\n{source}")
    variant = Registry(working_dir=tmp_path).find("net.py:build")
    assert (got(variant, 32), got(variant, (16, 64))) == ((32, 32), (16, 64))


@pytest.mark.parametrize("note", ["", ": int", ": object"])
def test_a_file_without_it_takes_squares(note: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        FACTORY.replace("def build(*, resolution,", f"def build(*, resolution{note},")
    )
    variant = Registry(working_dir=tmp_path).find("net.py:build")
    assert got(variant, 32) == 32
    with pytest.raises(IllegalSize, match=r"net\.py:build takes squares only; .*: 16, 64\."):
        variant.plan((16, 64))


@pytest.mark.parametrize(("size", "advice"), [("(32,64)", "give --res 64x32"), ("'big'", "leave it out")])
def test_a_size_in_brackets_must_be_that_of_the_cell(size: str, advice: str) -> None:
    variant = Registry().find(f"timm:resnet18[img_size={size}]")
    with pytest.raises(IllegalArgument, match=f"img_size=.* is not the 64 px of --res, .*; {advice}"):
        variant.plan(64)
    if size == "(32,64)":
        assert variant.plan((32, 64))
