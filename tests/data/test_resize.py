"""Images brought to rectangles: cropped, padded by the mean, or stretched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from longvis_bench.data.digits import Digits
from longvis_bench.data.folder import IMAGENET, Folder
from longvis_bench.data.loader import Loader
from longvis_bench.data.pairs import MARGIN, Pairs
from longvis_bench.data.protocol import open_data
from longvis_bench.data.resize import finish, fit
from longvis_bench.errors import DataError, IllegalSize
from longvis_bench.records import DataSpec
from longvis_bench.resolution import Fit, Rectangle

MEAN, DEVIATION = IMAGENET
WIDE = Rectangle(16, 32)

Pictures = Callable[..., Path]


def ramp(height: int, width: int) -> Tensor:
    """Red grows downwards, green to the right, in 0-1."""
    red = torch.linspace(0, 1, height)[:, None].expand(height, width)
    green = torch.linspace(0, 1, width)[None, :].expand(height, width)
    return torch.stack([red, green, torch.full((height, width), 0.5)])


def test_a_crop_covers_the_rectangle_and_keeps_the_middle() -> None:
    """A square of 64 px at 32 x 16 loses a quarter of its rows at either end, and no column."""
    image = fit(ramp(64, 64), WIDE)
    assert image.shape == (3, 16, 32)
    assert image[0, 0].mean() == pytest.approx(0.25, abs=0.03)
    assert image[0, -1].mean() == pytest.approx(0.75, abs=0.03)
    assert image[1, :, 0].mean() == pytest.approx(0, abs=0.03)
    assert image[1, :, -1].mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("size", "resolution"),
    [((20, 4000), Rectangle(64, 128)), ((4000, 20), Rectangle(64, 128)), ((20, 4000), Rectangle(128, 64))],
)
def test_long_images_are_cropped_before_they_are_enlarged(
    size: tuple[int, int], resolution: Rectangle
) -> None:
    """The result is that of a crop after enlarging all of it."""
    image = ramp(*size)
    scale = max(resolution.height / size[0], resolution.width / size[1])
    grown = torch.nn.functional.interpolate(
        image[None], (int(size[0] * scale), int(size[1] * scale)), mode="bicubic", antialias=True
    )[0].clamp(0, 1)
    top, left = (round((a - b) / 2) for a, b in zip(grown.shape[1:], resolution, strict=True))
    expected = grown[:, top : top + resolution.height, left : left + resolution.width]
    torch.testing.assert_close(fit(image, resolution), expected, rtol=0, atol=0.02)


def test_padding_keeps_the_whole_image_and_surrounds_it_with_the_mean() -> None:
    image = fit(ramp(64, 64), WIDE, "pad", MEAN)
    assert image.shape == (3, 16, 32)
    assert image[:, :, :8].mean((1, 2)).tolist() == pytest.approx(MEAN)
    assert image[:, :, -8:].mean((1, 2)).tolist() == pytest.approx(MEAN)
    assert image[0, 0, 8:-8].mean() == pytest.approx(0, abs=0.05)
    assert image[1, :, -9].mean() == pytest.approx(1, abs=0.05)


def test_grey_8_bit_images_are_padded_to_three_channels() -> None:
    image = fit(torch.full((1, 40, 10), 200, dtype=torch.uint8), WIDE, "pad", MEAN)
    assert (image.shape, image.dtype) == ((3, 16, 32), torch.uint8)
    assert image[:, 8, 16].tolist() == [200] * 3
    assert image[:, 0, 0].tolist() == [round(255 * value) for value in MEAN]


def test_padding_is_zero_in_a_normalised_batch() -> None:
    batch = finish([ramp(64, 64)], WIDE, MEAN, DEVIATION, how="pad")
    assert batch.shape == (1, 3, 16, 32)
    assert batch[..., :8].abs().max() < 1e-6


def test_stretching_takes_each_side_by_itself() -> None:
    image = fit(ramp(64, 64), WIDE, "stretch")
    assert image.shape == (3, 16, 32)
    for channel, ends in ((0, (image[0, 0], image[0, -1])), (1, (image[1, :, 0], image[1, :, -1]))):
        assert [end.mean().item() for end in ends] == pytest.approx([0, 1], abs=0.05), channel


@pytest.mark.parametrize(("how", "ending"), [("crop", ""), ("pad", "-pad"), ("stretch", "-stretch")])
def test_a_folder_says_in_its_name_how_images_are_fitted(how: Fit, ending: str, pictures: Pictures) -> None:
    root = pictures(size=(30, 44))
    data = open_data(DataSpec(f"folder:{root}", fit=how))
    assert data.name == Folder(str(root)).name + ending
    images, _ = data.batch("val", [0, 1], Rectangle(24, 48))
    assert images.shape == (2, 3, 24, 48)
    picture = torch.from_numpy(_pixels(min((root / "val").rglob("*.png"))))
    expected = finish([picture], Rectangle(24, 48), MEAN, DEVIATION, how=how)
    torch.testing.assert_close(images[:1], expected)


def _pixels(path: Path):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy()


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_the_loader_gives_the_pixels_of_a_batch(how: Fit, pictures: Pictures) -> None:
    data = Folder(str(pictures(size=(30, 44))), fit=how)
    loader = Loader(data, "val", resolution=Rectangle(24, 48), batch_size=2)
    images, _, indices = next(iter(loader.epoch(0)))
    expected, _ = data.batch("val", indices, Rectangle(24, 48))
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("name", ["digits", "pairs"])
def test_shapes_are_for_folders(name: str) -> None:
    with pytest.raises(DataError, match="--fit is for folder:PATH"):
        open_data(DataSpec(name, fit="pad"))


def test_digits_are_stretched() -> None:
    images, _ = Digits().batch("val", [3], Rectangle(16, 32))
    square, _ = Digits().batch("val", [3], 16)
    assert images.shape == (1, 3, 16, 32)
    halved = images.view(1, 3, 16, 16, 2).mean(-1)
    assert (halved - square).abs().mean() < 0.1


def test_scenes_of_pairs_spread_over_a_rectangle() -> None:
    data, size = Pairs(), Rectangle(256, 512)
    image, _ = data.load("val", 5, size)
    assert image.shape == (1, 256, 512)
    again, _ = data.load("val", 5, size)
    assert torch.equal(image, again)
    scene = data.scene("val", 5)
    first, second = scene.digits
    across, down = (first.x - second.x) * (512 - 2 * MARGIN), (first.y - second.y) * (256 - 2 * MARGIN)
    assert data.distances("val", [5], size) == pytest.approx([(across**2 + down**2) ** 0.5])
    for glyph in scene.digits:
        x, y = (round(MARGIN + at * (side - 2 * MARGIN)) for at, side in ((glyph.x, 512), (glyph.y, 256)))
        near = image[0, max(y - 14, 0) : y + 14, max(x - 14, 0) : x + 14]
        assert near.max() > 150


def test_pairs_keeps_its_limits_on_either_side() -> None:
    with pytest.raises(IllegalSize, match="512x128 px is not a legal size") as caught:
        Pairs().load("val", 0, Rectangle(128, 512))
    assert caught.value.legal == (Rectangle(256, 512),)


def test_lookup_is_drawn_at_squares() -> None:
    with pytest.raises(IllegalSize, match="512x256 px is not a legal size: lookup is drawn at squares only"):
        open_data("lookup").load("val", 0, Rectangle(256, 512))
