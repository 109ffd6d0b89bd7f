"""The form of what a model returns: logits, or maps of declared strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.errors import InvalidOutput
from longvis_bench.measure.validity.checks import check_validity
from longvis_bench.measure.validity.outputs import Maps, check_outputs, difference

FORM = Maps((4, 8), (64, 32))


def maps(batch: int = 2) -> list[Tensor]:
    return [torch.ones(batch, 3, 16, 8), torch.ones(batch, 6, 8, 4)]


def test_maps_of_their_strides_pass_and_are_recorded_once() -> None:
    form = Maps((4, 8), (64, 32))
    assert len(form.parts(tuple(maps()), 2)) == 2
    form.parts(tuple(maps(1)), 1)
    (record,) = form.seen
    assert (record.strides, record.channels) == ((4, 8), (3, 6))
    assert record.held_bytes == 4 * 2 * (3 * 16 * 8 + 6 * 8 * 4)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (torch.ones(2, 10), "returned Tensor, not 2 maps of strides 4, 8"),
        (maps()[:1], "returned 1 maps, not 2"),
        ([maps()[0], "map"], "not 2 maps"),
        (maps()[::-1], r"shape \(2, 6, 8, 4\), not \(2, channels, 16, 8\): stride 4 of 64 x 32 px"),
        (maps(3), r"shape \(3, 3, 16, 8\), not \(2,"),
        ([one.flatten(2) for one in maps()], "shape"),
    ],
)
def test_other_outputs_are_refused_by_a_sentence(found: object, said: str) -> None:
    with pytest.raises(InvalidOutput, match=said):
        FORM.parts(found, 2)


def test_a_map_with_nan_is_refused() -> None:
    found = maps()
    found[1][0, 0] = torch.nan
    with pytest.raises(InvalidOutput, match="of the maps are NaN"):
        check_outputs(found, 2, FORM)


def test_the_worst_map_counts_against_its_own_size() -> None:
    large, small = torch.full((1, 1, 2, 2), 1000.0), torch.full((1, 1, 1, 1), 1e-3)
    assert difference((large, small), (large, small)) == 0
    assert difference((large, small + 1e-3), (large, small)) == pytest.approx(1.0, rel=1e-6)


class Pyramid(nn.Module):
    """Two maps, the second of which an image shares with its batch where `mixes`."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mixes = mixes
        self.stem, self.down = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        fine = self.stem(image)
        coarse = self.down(fine)
        return fine, coarse + coarse.mean(0, keepdim=True) if self.mixes else coarse


@pytest.mark.parametrize(("mixes", "verdict"), [(False, "ok"), (True, "invalid")])
def test_every_map_is_compared_with_the_batch_and_the_reference(mixes: bool, verdict: str) -> None:
    torch.manual_seed(0)
    record = check_validity(Pyramid(mixes).eval(), torch.randn(2, 3, 32, 32), Maps((4, 8), (32, 32))).record
    assert record.verdict == verdict
    assert record.reference == "float64, unfused attention"
    assert record.reference_error is not None
    assert record.reference_error < 1e-4
    assert record.batch_error is not None
    assert (record.batch_error > 0.1) == mixes


def test_a_wrong_map_is_named_as_such() -> None:
    torch.manual_seed(0)
    checked = check_validity(Pyramid(True).eval(), torch.randn(2, 3, 32, 32), Maps((4, 8), (32, 32)))
    with pytest.raises(InvalidOutput, match="the maps differ"):
        checked.require("mine")
