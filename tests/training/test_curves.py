"""Training curves: every word inside the figure, and what is unknown is not drawn as nought."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.text import Text
from torch import nn

from longvis_bench.data.digits import Digits
from longvis_bench.measure.accuracy import Accuracy
from longvis_bench.registry.registry import Registry
from longvis_bench.training.curves import COLUMNS, curves, write_curves
from longvis_bench.training.job import Job, TrainProgress, TrainReport
from longvis_bench.training.recipe import QUICK


def _report(epochs: int, updates: int, *, top1: float | None = 0.3) -> TrainReport:
    """A training whose loss falls evenly."""
    job = Job(
        variant=Registry(()).find("vit-n"),
        data=Digits(),
        resolution=64,
        recipe=QUICK.model_copy(update={"epochs": epochs}),
    )
    losses = np.linspace(2.6, 0.5, epochs * updates).tolist()
    curve = tuple(
        (float(step // updates + 1), float(step + 1), loss, 2e-3, 30.0) for step, loss in enumerate(losses)
    )
    history = tuple(
        TrainProgress(
            epoch=epoch,
            epochs=epochs,
            step=epoch * updates,
            steps=epochs * updates,
            loss=losses[epoch * updates - 1],
            learning_rate=2e-3,
            images_s=30.0,
            train_s=1.0,
            waited_s=0.0,
            left_s=0.0,
            top1=top1,
        )
        for epoch in range(1, epochs + 1)
    )
    labels = np.arange(397) % 10
    accuracy = Accuracy(
        dataset="digits",
        labels=labels,
        predictions=labels,
        indices=np.arange(397),
        correct_top1=130,
        correct_top5=None,
    )
    return TrainReport(
        model=nn.Identity(),
        job=job,
        processes=1,
        history=history,
        curve=curve,
        accuracy=accuracy,
        fresh=(),
    )


@pytest.mark.parametrize(("epochs", "updates"), [(1, 1), (30, 40)])
def test_all_words_are_inside_and_apart(epochs: int, updates: int) -> None:
    figure = curves(_report(epochs, updates))
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible()]
    assert any(text == "vit-n, digits, 64 px" for text, _ in boxes)
    assert any(text.startswith("32.7 % of") for text, _ in boxes)
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        assert inside, f"{text!r} is cut off"
    for (one, box), (other, other_box) in combinations(boxes, 2):
        overlap = box.shrunk(0.8, 0.7).overlaps(other_box.shrunk(0.8, 0.7))
        assert not overlap, f"{one!r} and {other!r} overlap"


def test_an_unknown_accuracy_is_not_drawn_as_nought() -> None:
    known, unknown = (curves(_report(3, 5, top1=top1)).axes[1].lines[0] for top1 in (0.3, None))
    assert list(cast("Any", known.get_ydata())) == [0.3] * 3
    assert len(cast("Any", unknown.get_ydata())) == 0


def test_files(tmp_path: Path) -> None:
    table, picture = write_curves(_report(2, 3), tmp_path / "weights.safetensors")
    with table.open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [line["top1"] for line in lines] == ["", "", "0.3", "", "", "0.3"]
    assert picture.read_bytes().startswith(b"\x89PNG")
