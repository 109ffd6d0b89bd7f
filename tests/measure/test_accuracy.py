"""Accuracy with models whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longvis_bench.data.digits import Digits
from longvis_bench.data.protocol import ImageData, open_data
from longvis_bench.errors import DataError, InvalidOutput
from longvis_bench.measure.accuracy import measure_accuracy
from longvis_bench.measure.validity.checks import check_validity
from longvis_bench.measure.validity.outputs import Logits

DATA = open_data("digits")


class Answers(nn.Module):
    """Gives prepared logits, image after image, whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.shown = 0
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.batches.append(tuple(images.shape))
        answer = self.logits[self.shown : self.shown + len(images)]
        self.shown += len(images)
        return answer


def _labels(count: int) -> Tensor:
    """Labels of `count` held-out images, evenly spaced over all 397."""
    _, labels = DATA.batch("val", [index * 397 // count for index in range(count)], 8)
    return labels


def test_right_answers_count_once_each() -> None:
    labels = _labels(20)
    logits = nn.functional.one_hot(labels, 10).float()
    logits[[2, 5, 11]] = logits[[2, 5, 11]].roll(1, dims=1)
    result = measure_accuracy(Answers(logits), DATA, resolution=8, images=20, batch_size=8)
    assert (result.correct_top1, result.images, result.top1) == (17, 20, 0.85)
    assert result.labels.tolist() == labels.tolist()
    wrong = (result.predictions != result.labels).nonzero()[0]
    assert wrong.tolist() == [2, 5, 11]


def test_top5_counts_the_label_among_the_five_largest() -> None:
    labels = _labels(30)
    rank = torch.arange(30) % 10  # image i holds its label at rank i % 10
    logits = torch.stack([_ranked(int(label), int(place)) for label, place in zip(labels, rank, strict=True)])
    result = measure_accuracy(Answers(logits), DATA, resolution=8, images=30, batch_size=30)
    assert (result.correct_top1, result.correct_top5) == (3, 15)


def _ranked(label: int, place: int) -> Tensor:
    """Ten logits in which `label` is the (place + 1)-th largest."""
    order = [c for c in range(10) if c != label]
    order.insert(place, label)
    logits = torch.empty(10)
    logits[order] = torch.arange(10, 0, -1).float()
    return logits


def test_last_batch_may_be_smaller_and_asking_too_many_asks_all() -> None:
    model = Answers(torch.zeros(397, 10))
    result = measure_accuracy(model, DATA, resolution=16, images=1000, batch_size=200)
    assert result.images == 397
    assert model.batches == [(200, 3, 16, 16), (197, 3, 16, 16)]


def test_a_part_is_spaced_over_all_held_out_images() -> None:
    """Not the first ones, which are one writer's."""
    result = measure_accuracy(Answers(torch.zeros(4, 10)), DATA, resolution=8, images=4, batch_size=4)
    _, labels = DATA.batch("val", [0, 99, 198, 297], 8)
    assert result.labels.tolist() == labels.tolist()


def test_model_keeps_the_mode_it_came_in() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(192, 10))
    model[1].eval()
    measure_accuracy(model, DATA, resolution=8, images=4, batch_size=4)
    assert [module.training for module in model.modules()] == [True, True, False, True]


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        (torch.full((4, 10), float("nan")), "100% of the logits are NaN"),
        (torch.zeros(4, 1000), r"shape \(4, 1000\), not \(4, 10\)"),
    ],
)
def test_output_that_cannot_be_read_is_refused(logits: Tensor, sentence: str) -> None:
    with pytest.raises(InvalidOutput, match=sentence):
        measure_accuracy(Answers(logits), DATA, resolution=8, images=4, batch_size=4)


def test_no_images_is_an_error_not_a_zero() -> None:
    with pytest.raises(DataError, match="at least one"):
        measure_accuracy(Answers(torch.zeros(0, 10)), DATA, resolution=8, images=0, batch_size=4)


def test_record_holds_counts_and_the_name_of_the_weights() -> None:
    result = measure_accuracy(Answers(torch.zeros(10, 10)), DATA, resolution=8, images=10, batch_size=10)
    record = result.to_record(weights="vit-n-digits-256.safetensors", trained_resolution=256)
    assert record.correct_top1 == int((_labels(10) == 0).sum())
    assert (record.images, record.dataset, record.trained_resolution) == (10, "digits", 256)


def test_predictions_are_kept_image_by_image(tmp_path: Path) -> None:
    result = measure_accuracy(Answers(torch.eye(10)), DATA, resolution=8, images=10, batch_size=3)
    result.to_predictions().save(tmp_path / "predictions" / "key.npz")
    with np.load(tmp_path / "predictions" / "key.npz") as kept:
        assert kept["predictions"].tolist() == list(range(10))
        assert kept["labels"].tolist() == _labels(10).tolist()
        assert kept["indices"].tolist() == [index * 397 // 10 for index in range(10)]
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["key.npz"]


class Holes:
    """Every image is a number; some cannot be read."""

    name, num_classes, broken = "holes", 10, {"val/250": "gone"}
    classes = tuple("0123456789")

    def size(self, split: str) -> int:
        return 1000

    def batch(
        self, split: str, indices: Sequence[int], resolution: int, **_: object
    ) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([index % 10 for index in indices if index != 250])
        return torch.zeros(len(labels), 3, resolution, resolution), labels


def test_indices_are_those_of_the_images_that_could_be_read() -> None:
    result = measure_accuracy(
        Answers(torch.zeros(200, 10)), cast("ImageData", Holes()), resolution=8, images=200, batch_size=8
    )
    expected = [index for index in range(0, 1000, 5) if index != 250]
    assert result.indices.tolist() == expected
    assert result.labels.tolist() == [index % 10 for index in expected]


@pytest.mark.parametrize("check", ["accuracy", "validity"])
def test_a_compiled_model_is_not_compiled_anew_for_another_batch(check: str) -> None:
    """Each shape would be compiled again, for minutes, though nobody reads how fast these batches are."""
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).eval()
    model = cast(nn.Module, torch.compile(net, backend=backend))
    images, _ = Digits().batch("val", [0, 1], 8)
    with torch.inference_mode():
        measured = model(images[:1])
    assert len(compiled) == 1
    if check == "accuracy":
        measure_accuracy(model, Digits(), resolution=8, images=5, batch_size=3)
    else:
        checked = check_validity(model, images[:1], Logits(10), measured=measured, other=images[1:])
        assert checked.record.verdict == "ok"
    assert len(compiled) == 1
    torch.compiler.reset()
