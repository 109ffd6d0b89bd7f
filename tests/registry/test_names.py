"""Spellings, patterns and near misses of model names."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvis_bench.errors import LongvisError, UnknownName
from longvis_bench.registry.names import expand
from longvis_bench.registry.registry import Registry

VARIANTS = ["atlas-n", "atlas-s", "my_net", "vit-s"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["*-s"], ["atlas-s", "vit-s"]),
        (["Atlas-*", "atlas-n"], ["atlas-n", "atlas-s"]),
        (["atlas_?"], ["atlas-n", "atlas-s"]),
        (["ALL"], VARIANTS),
        (["*-s[window=8]"], ["atlas-s[window=8]", "vit-s[window=8]"]),
        (["vit-*@upstream"], ["vit-s@upstream"]),
        (["Atlas_S", "atlas-s"], ["atlas-s"]),
        (["My-Net"], ["my_net"]),
        (["nets/*.py:build", "timm:resnet18"], ["nets/*.py:build", "timm:resnet18"]),
        (["unknown"], ["unknown"]),
        ([], []),
    ],
)
def test_patterns(names: list[str], wanted: list[str]) -> None:
    assert expand(names, VARIANTS) == wanted


def test_patterns_of_timm() -> None:
    found = expand(["timm:resnet1*"], VARIANTS)
    assert {"timm:resnet18", "timm:resnet101"} <= set(found)
    assert "timm:resnet50" not in found


@pytest.mark.parametrize("pattern", ["*-q", "timm:no_such_*", "?"])
def test_a_pattern_without_a_match(pattern: str) -> None:
    with pytest.raises(UnknownName, match="the pattern matches no name"):
        expand([pattern], VARIANTS)


@pytest.mark.parametrize("name", ["Atlas-S", "atlas_s", "ATLAS_S", "atlas-s"])
def test_other_spellings_find_the_same_variant(name: str) -> None:
    assert Registry().find(name).full_name == "atlas-s"


def test_other_spellings_keep_implementation_and_arguments() -> None:
    assert Registry().find("MambaVision_S@upstream").full_name == "mambavision-s@upstream"
    assert Registry().find("Atlas_S[window=8]").full_name == "atlas-s[window=8]"


def test_a_spelling_of_two_names_finds_neither(tmp_path: Path) -> None:
    for family, variant in (("one", "a-b"), ("two", "a_b")):
        folder = tmp_path / family
        folder.mkdir()
        (folder / "card.toml").write_text(
            f'schema = 1\nfamily = "{family}"\ntitle = "x"\nsummary = "x"\nfactory = "x.py:build"\n'
            f'implementation = "user"\n[licences]\ncode = "x"\n[variants.{variant}]\n'
        )
    registry = Registry([tmp_path])
    assert registry.find("a_b").name == "a_b"
    assert registry.find("a-b").name == "a-b"
    with pytest.raises(UnknownName, match="did you mean"):
        registry.find("A-B")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50", "did you mean timm:resnet50?"),
        ("ResNet50", "did you mean timm:resnet50?"),
        ("resnet5O", "did you mean timm:resnet50"),
        ("resnet-50", "did you mean timm:resnet50?"),
        ("ConvNeXt-Tiny", "did you mean convnext-t"),
        ("timm/resnet-50", "did you mean timm:resnet50?"),
        ("efficientnet-b0", "did you mean timm:efficientnet_b0?"),
        ("timm/resnet50", "did you mean timm:resnet50?"),
        ("timm.resnet50", "did you mean timm:resnet50?"),
        ("hf-hub:timm/resnet50.a1_in1k", "did you mean timm:resnet50.a1_in1k?"),
        ("vit_small_patch16_224", "did you mean timm:vit_small_patch16_224?"),
        ("facebook/dinov2-small", "write timm:hf-hub:facebook/dinov2-small"),
        ("atlas s", "did you mean atlas-s?"),
        ("vit-s swin-s", "separate names by commas, like vit-s,swin-s"),
        ("atlas-xs", "did you mean atlas-"),
    ],
)
def test_what_was_meant(name: str, words: str) -> None:
    with pytest.raises(LongvisError) as caught:
        Registry().find(name)
    assert words in str(caught.value)
