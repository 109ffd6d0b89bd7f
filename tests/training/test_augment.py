"""Augmentation of training images."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from longvis_bench.resolution import Rectangle
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


def test_an_oblong_picture_keeps_its_shape_and_content() -> None:
    """Without crops nothing is cut or distorted; with them a crop has nearly the shape of the rectangle."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (32, 64, 3)).copy())
    plain = ATLAS.model_copy(update={"auto_augment": None, "crop_scale": None, "flip": 0.0})
    assert np.array_equal(np.array(PictureAugment(plain, Rectangle(32, 64))(picture)), np.array(picture))
    random.seed(0)
    crops = PictureAugment(plain.model_copy(update={"crop_scale": (0.5, 0.5)}), Rectangle(32, 64))
    slopes = []
    for _ in range(40):
        crop = np.array(crops(picture)).astype(float)
        assert crop.shape == (32, 64, 3)
        slopes.append((crop[16, -8, 0] - crop[16, 8, 0]) / (255 * 48 / 63))
    assert 0.5 < np.mean(slopes) < 0.85  # a crop of half the area has 0.61 to 0.82 of the width
