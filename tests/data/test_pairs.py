"""Pairs: reproducible, balanced, of the right digits, with distances that are true."""

from __future__ import annotations

import hashlib
from math import hypot

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longvis_bench.data.digits import Digits
from longvis_bench.data.pairs import APART, DISTANCE, DISTRACTORS, GLYPH, KINDS, MARGIN, Pairs, Scene
from longvis_bench.data.protocol import Split, open_data
from longvis_bench.errors import IllegalSize

DATA = Pairs()


def _labels(split: Split) -> list[int]:
    digits = Digits()
    return [digits.load(split, index, 8)[1] for index in range(digits.size(split))]


def _scenes(data: Pairs, split: Split) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Labels (scenes,) and digits (scenes, 2) of a split."""
    truth, scenes = _labels(split), [data.scene(split, index) for index in range(data.size(split))]
    kinds = [[truth[glyph.drawing] for glyph in scene.digits] for scene in scenes]
    return np.array([scene.same for scene in scenes]), np.array(kinds)


def test_it_opens_by_name() -> None:
    data = open_data("pairs")
    assert (data.name, data.num_classes) == ("pairs", 2)
    assert (data.size("train"), data.size("val")) == (1600, 1000)
    assert Pairs(100).name != "pairs"
    assert Pairs(100).name != Pairs(100, seed=3).name


def test_images_depend_on_seed_split_index_and_size_only() -> None:
    first, label = DATA.load("val", 5, 256)
    assert (first.shape, first.dtype) == ((1, 256, 256), torch.uint8)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(Pairs(10, 6).load("val", 5, 256)[0], first)
    for other in (Pairs(seed=1).load("val", 5, 256), DATA.load("train", 5, 256), DATA.load("val", 4, 256)):
        assert not torch.equal(other[0], first)
    images, labels = DATA.batch("val", [4, 5], 256)
    assert images.shape == (2, 3, 256, 256)
    assert int(labels[1]) == label
    assert torch.equal(images[1, 0], images[1, 2])


@pytest.mark.parametrize(("split", "sha256"), [("train", "652336bbadae1742"), ("val", "62c47aca1b3eca65")])
def test_scenes_are_those_that_the_shipped_weights_were_trained_on(split: Split, sha256: str) -> None:
    """numpy does not promise that its generators draw the same in every version."""
    said = [(scene.same, *_rounded(scene)) for scene in (DATA.scene(split, index) for index in range(50))]
    assert hashlib.sha256(repr(said).encode()).hexdigest()[:16] == sha256


def _rounded(scene: Scene) -> list[tuple[float, ...]]:
    """Every glyph, with places to 1e-6: processors differ in the last digits of sines."""
    return [
        (glyph.drawing, round(glyph.x, 6), round(glyph.y, 6), glyph.pixels, round(glyph.brightness, 6))
        for glyph in (*scene.digits, *scene.distractors)
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_label_says_whether_the_digits_are_the_same(split: Split) -> None:
    truth = _labels(split)
    for index in range(60):
        scene = DATA.scene(split, index)
        first, second = (glyph.drawing for glyph in scene.digits)
        assert first != second
        assert scene.same == (truth[first] == truth[second])


@pytest.mark.parametrize("split", ["train", "val"])
def test_half_of_the_images_are_of_each_label(split: Split) -> None:
    same = np.array([DATA.scene(split, index).same for index in range(1000)])
    assert all(same[start : start + 100].sum() == 50 for start in range(0, 1000, 100))
    assert 0.4 < same[::2].mean() < 0.6


@pytest.mark.parametrize("classes", [KINDS, tuple(range(10))])
def test_no_held_out_digit_tells_the_label(classes: tuple[int, ...]) -> None:
    same, kinds = _scenes(Pairs(val_images=2000, classes=classes), "val")
    for place in (0, 1):
        for kind in classes:
            here, share = kinds[:, place] == kind, 1 / len(classes)
            assert abs(here.mean() - share) < 4 * (share * (1 - share) / len(here)) ** 0.5
            assert abs(same[here].mean() - 0.5) < 4 * 0.5 / here.sum() ** 0.5


@pytest.mark.parametrize("favoured", [0.9, 0.5])
def test_some_digits_are_equal_more_often_in_training(favoured: float) -> None:
    same, kinds = _scenes(Pairs(classes=(3, 1, 8, 0), favoured=favoured), "train")
    of_first_half = np.array([set(pair) <= {3, 1} for pair in kinds.tolist()])
    assert abs(of_first_half[same].mean() - favoured) < 4 * 0.5 / same.sum() ** 0.5
    assert abs(of_first_half[~same].mean() - 1 / 6) < 4 * 0.5 / (~same).sum() ** 0.5


def test_distances_are_spread_evenly_and_measured_on_the_canvas() -> None:
    shares = [DATA.scene("val", index).distance for index in range(1000)]
    assert DISTANCE[0] <= min(shares)
    assert max(shares) <= DISTANCE[1]
    quarters = np.histogram(shares, 4, DISTANCE)[0]
    assert quarters.min() > 190
    for resolution in (256, 1024):
        expected = shares[7] * (resolution - 2 * MARGIN)
        assert DATA.distances("val", [7], resolution) == [pytest.approx(expected)]


def test_same_and_different_are_equally_far_apart() -> None:
    scenes = [DATA.scene("val", index) for index in range(1000)]
    same, other = ([s.distance for s in scenes if s.same is kind] for kind in (True, False))
    assert abs(np.mean(same) - np.mean(other)) < 4 * 0.23 * (2 / 500) ** 0.5


def test_glyphs_stand_where_the_scene_says_and_apart() -> None:
    data = Pairs(distractors=3)
    scene = data.scene("val", 3)
    image = data.load("val", 3, 512)[0][0]
    bright = image > 140
    for glyph in (*scene.digits, *scene.distractors):
        assert GLYPH[0] <= glyph.pixels <= GLYPH[1]
        x, y = (round(MARGIN + place * (512 - 2 * MARGIN)) for place in (glyph.x, glyph.y))
        half = glyph.pixels // 2 + 1
        part = bright[max(0, y - half) : y + half, max(0, x - half) : x + half]
        assert part.float().mean() > 0.05
        part[:] = False
    assert not bright.any()
    assert len(scene.distractors) == 3
    for glyph in scene.distractors:
        assert 0 <= glyph.drawing < len(DISTRACTORS)
        others = [other for other in (*scene.digits, *scene.distractors) if other is not glyph]
        assert all(hypot(glyph.x - other.x, glyph.y - other.y) >= APART for other in others)


def test_the_scene_is_the_same_at_every_size() -> None:
    assert DATA.load("train", 1, 256)[1] == DATA.load("train", 1, 600)[1]
    assert DATA.load("train", 1, 600)[0].shape == (1, 600, 600)


@pytest.mark.parametrize("resolution", [255, 4097])
def test_sizes_have_limits(resolution: int) -> None:
    with pytest.raises(IllegalSize, match="pairs is drawn at 256 to 4096 px"):
        DATA.load("val", 0, resolution)


@pytest.mark.parametrize(("classes", "distractors"), [(KINDS, 1), ((4, 9, 2), 0)])
def test_digits_and_distractors_can_be_chosen(classes: tuple[int, ...], distractors: int) -> None:
    data, truth = Pairs(classes=classes, distractors=distractors), _labels("train")
    scenes = [data.scene("train", index) for index in range(40)]
    assert {truth[glyph.drawing] for scene in scenes for glyph in scene.digits} == {*classes}
    assert {len(scene.distractors) for scene in scenes} == {distractors}
    assert (data.name == "pairs") == (classes == KINDS)


def test_an_index_beyond_the_split_is_refused() -> None:
    with pytest.raises(IndexError, match="val has 1000 images"):
        DATA.batch("val", [1000], 256)
