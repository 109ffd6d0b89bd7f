"""A family of two small ViTs with published numbers that are known to be right or wrong.

By hand, tiny-a has 83,656 parameters and 880,000 MACs at 64 px with 1000 classes, 36,992 of them in products
of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Cards = Callable[..., Path]

CARD = """
schema = 1
family = "tiny"
title = "Tiny"
summary = "for tests"
paper = "arXiv:2601.00001"
factory = "longvis_bench.backbones.timm:vit"
implementation = "timm"
[licences]
code = "Apache-2.0"
[resolution]
multiple_of = 16
[variants.tiny-a]
arguments = { dim = 32, depth = 2, num_heads = 2, patch_size = 16 }
[variants.tiny-b]
arguments = { dim = 64, depth = 2, num_heads = 2, patch_size = 16 }
[[weights]]
variant = "tiny-a"
dataset = "imagenet-1k"
resolution = 64
num_classes = 1000
url = "example.org/tiny-a.pth"
"""
ENTRY = """
[[published]]
variant = "{variant}"
source = "{source}"
table = "Table 1"
resolution = {resolution}
{dataset}
{numbers}
"""


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    """Write the family's card with one entry of published numbers per text; its folder of cards."""
    file = tmp_path / "cards" / "tiny" / "card.toml"
    file.parent.mkdir(parents=True)
    file.write_text(CARD)

    def add(
        *numbers: str,
        variant: str = "tiny-a",
        source: str = "arXiv:2601.00001v2",
        resolution: int = 64,
        dataset: str = 'dataset = "imagenet-1k"',
    ) -> Path:
        for found in numbers:
            text = ENTRY.format(
                variant=variant, source=source, resolution=resolution, dataset=dataset, numbers=found
            )
            file.write_text(file.read_text() + text)
        return file.parents[1]

    return add
