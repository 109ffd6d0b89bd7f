"""Augmentation of training images."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from longvis_bench.training.augment import PictureAugment, posterize
from longvis_bench.training.recipe import read_recipe

ATLAS = read_recipe("atlas")


def test_posterize_to_no_bits_gives_a_black_image_in_every_policy() -> None:
    """timm asks for 0 bits at the strongest level, which Pillow 13 refuses."""
    picture = Image.new("RGB", (16, 16), (200, 100, 50))
    assert posterize(picture, 0).getextrema() == ((0, 0), (0, 0), (0, 0))
    assert posterize(picture, 1).getpixel((0, 0)) == (128, 0, 0)
    for name in ("rand-m10-n9-inc1", "original-mstd0.5", "augmix-m10"):
        recipe = ATLAS.model_copy(update={"auto_augment": name, "crop_scale": None})
        augment = PictureAugment(recipe, 16)
        for seed in range(60):
            random.seed(seed)
            np.random.seed(seed)
            assert augment(picture).size == (16, 16)
