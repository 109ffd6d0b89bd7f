"""HR-Digits: the split, and that upsampling is torch's bicubic of the 8 x 8 originals and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from longvis_bench.data import digits
from longvis_bench.data.digits import DEVIATION, HIGHEST_VALUE, MEAN
from longvis_bench.data.protocol import open_data
from longvis_bench.errors import UnknownName


def test_split_is_disjoint_and_complete() -> None:
    data = open_data("digits")
    assert (data.name, data.num_classes) == ("digits", 10)
    assert (data.size("train"), data.size("val")) == (1400, 397)
    train = data.batch("train", range(1400), 8)
    val = data.batch("val", range(397), 8)
    truth = load_digits()
    labels = torch.cat([train[1], val[1]])
    assert labels.tolist() == truth.target.tolist()
    together = torch.cat([train[0], val[0]])[:, 0] * DEVIATION + MEAN
    assert torch.allclose(together * HIGHEST_VALUE, torch.from_numpy(truth.images).float(), atol=1e-5)


def test_scans_are_those_of_scikit_learn() -> None:
    values, labels = load_digits(return_X_y=True)
    scans = digits.read_scans()
    assert (scans[:, :-1] == values).all()
    assert (scans[:, -1] == labels).all()
    assert scans.dtype == values.dtype


def test_scans_ship_with_source_and_licence() -> None:
    assert digits.FILE.stat().st_size < 64_000
    said = digits.FILE.with_name("digits.md").read_text()
    assert "CC BY 4.0" in said
    assert "10.24432/C50P49" in said


def test_scikit_learn_is_not_needed() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; "
        "from longvis_bench.data.protocol import open_data; "
        "print(len(open_data('digits').batch('val', [0], 8)[1]), open_data('pairs').size('val'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 1000\n", "")


def test_held_out_images_are_no_copies_of_training_images() -> None:
    bunch = load_digits()
    train = {image.tobytes() for image in bunch.images[:1400]}
    assert not [index for index in range(1400, 1797) if bunch.images[index].tobytes() in train]


def test_normalisation_is_that_of_the_training_images() -> None:
    images = load_digits().images[:1400] / HIGHEST_VALUE
    assert images.mean() == pytest.approx(MEAN, abs=5e-5)
    assert images.std() == pytest.approx(DEVIATION, abs=5e-5)


@pytest.mark.parametrize("resolution", [8, 37, 256])
def test_upsampling_is_torch_bicubic_of_the_original(resolution: int) -> None:
    images, labels = open_data("digits").batch("val", [0, 5, 396], resolution)
    originals = torch.from_numpy(load_digits().images[[1400, 1405, 1796]]).float()[:, None]
    size = (resolution, resolution)
    expected = F.interpolate((originals / 16 - MEAN) / DEVIATION, size, mode="bicubic", align_corners=False)
    assert images.shape == (3, 3, resolution, resolution)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images, expected.expand(-1, 3, -1, -1))


def test_lower_precision_is_rounded_after_upsampling() -> None:
    data = open_data("digits")
    exact, _ = data.batch("val", [3], 64)
    half, _ = data.batch("val", [3], 64, dtype=torch.bfloat16)
    assert torch.equal(half, exact.bfloat16())


def test_an_image_does_not_depend_on_its_batch() -> None:
    data = open_data("digits")
    alone, _ = data.batch("train", [7], 32)
    beside, _ = data.batch("train", [9, 7], 32)
    assert torch.equal(alone[0], beside[1])


def test_index_beyond_the_split_is_refused() -> None:
    with pytest.raises(IndexError):
        open_data("digits").batch("val", [397], 8)


def test_unknown_data_shows_near_misses() -> None:
    with pytest.raises(UnknownName, match="unknown data set 'digit': did you mean digits"):
        open_data("digit")
    with pytest.raises(UnknownName, match="known: digits"):
        open_data("imagenet22k")
