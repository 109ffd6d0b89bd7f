"""Accuracy against distance: from predictions and indices to a readable figure."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from longvis_bench.data.pairs import local_limit
from longvis_bench.data.protocol import HasDistances, open_data
from longvis_bench.records import AccuracyRecord, Cell, Row
from longvis_bench.report.accuracy_by_distance import BIN_IMAGES, BINS, by_distance
from longvis_bench.report.plots.distance import distance_figures
from longvis_bench.report.write import write_derived
from longvis_bench.runs.directory import RunDirectory
from longvis_bench.runs.predictions import Predictions, read_answers
from longvis_bench.stats import share_by

FAMILIES = ("atlas", "convnext", "fastervit", "longvit", "mambavision", "swin", "vit")
SIZE = 512


def _row(folder: Path, family: str, right: np.ndarray, indices: np.ndarray | None, **cell: object) -> Row:
    made = Cell.model_validate(
        {
            "model": f"{family}-n",
            "family": family,
            "variant": f"{family}-n",
            "implementation": "timm",
            "resolution": SIZE,
            "data": "pairs",
        }
        | cell
    )
    accuracy = AccuracyRecord(
        correct_top1=int(right.sum()), correct_top5=None, images=len(right), dataset=made.data, weights="w"
    )
    row = Row(key=f"{family}-{made.resolution}-{made.round}", cell=made, status="ok", accuracy=accuracy)
    labels = np.arange(len(right)) % 2
    answers = Predictions(labels=labels, predictions=np.where(right, labels, 1 - labels), indices=indices)
    answers.save(folder / "predictions" / f"{row.key}.npz")
    return row


def _near(images: int, reach: float, data: str = "pairs") -> np.ndarray:
    """Right where what belongs together is at most `reach` pixels apart."""
    opened = open_data(data)
    assert isinstance(opened, HasDistances)
    return np.array(opened.distances("val", range(images), SIZE)) <= reach


def test_each_data_set_has_its_own_distances_and_figure(tmp_path: Path) -> None:
    names = {"vit": "pairs", "swin": "lookup", "atlas": "lookup[seed=7]"}
    rows = [
        _row(tmp_path, family, _near(300, 250, data), np.arange(300), data=data)
        for family, data in names.items()
    ]
    curves = by_distance(read_answers(rows, [tmp_path]))
    assert len(curves) == 3
    for curve in curves:
        assert [share.hits for share in curve.shares if share.centre > 300] != []
        assert all(share.hits == 0 for share in curve.shares if share.centre > 300)
    assert len(distance_figures(rows, curves)) == 3


def test_a_model_that_sees_200_px_is_right_up_to_there(tmp_path: Path) -> None:
    row = _row(tmp_path, "vit", _near(1000, 200), np.arange(1000))
    (curve,) = by_distance(read_answers([row], [tmp_path]))
    assert curve.row is row
    assert len(curve.shares) == BINS
    assert sum(share.trials for share in curve.shares) == 1000
    for share in curve.shares:
        if share.centre < 150:
            assert share.hits == share.trials
        if share.centre > 250:
            assert share.hits == 0


def test_the_order_of_the_images_does_not_matter(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(1000)
    one = _row(tmp_path, "vit", _near(1000, 200), np.arange(1000))
    other = _row(tmp_path, "swin", _near(1000, 200)[order], order)
    curves = by_distance(read_answers([one, other], [tmp_path]))
    for share, same in zip(curves[0].shares, curves[1].shares, strict=True):
        assert share.centre == pytest.approx(same.centre)
        assert share[1:] == same[1:]


def test_few_images_make_few_bins(tmp_path: Path) -> None:
    row = _row(tmp_path, "vit", _near(2 * BIN_IMAGES, 200), np.arange(2 * BIN_IMAGES))
    (curve,) = by_distance(read_answers([row], [tmp_path]))
    assert len(curve.shares) == 2


def test_rows_without_what_it_takes_have_no_curve(tmp_path: Path) -> None:
    right = _near(100, 200)
    rows = [
        _row(tmp_path, "vit", right, None),
        _row(tmp_path, "swin", right, np.arange(100), data="digits"),
        _row(tmp_path, "atlas", right, np.arange(100) + 950),
        _row(tmp_path, "longvit", right, np.arange(100), round=1),
    ]
    assert by_distance(read_answers(rows, [tmp_path])) == []
    assert by_distance(read_answers([_row(tmp_path, "vit", right, np.arange(100))], [])) == []
    assert distance_figures(rows, []) == {}


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=40), st.integers(min_value=1, max_value=9)
)
def test_every_trial_is_in_one_bin(trials: list[tuple[float, bool]], bins: int) -> None:
    values, hits = [value for value, _ in trials], [hit for _, hit in trials]
    shares = share_by(values, hits, bins)
    assert len(shares) <= bins
    assert sum(share.trials for share in shares) == len(trials)
    assert sum(share.hits for share in shares) == sum(hits)
    assert sum(share.centre * share.trials for share in shares) == pytest.approx(sum(values))
    assert [share.centre for share in shares] == sorted(share.centre for share in shares)


def test_bins_are_equally_wide() -> None:
    shares = share_by([0.0, 1.0, 2.4, 2.6, 10.0], [True, False, True, True, False], 4)
    assert [(share.hits, share.trials) for share in shares] == [(2, 3), (1, 1), (0, 1)]


def test_no_sum_of_local_scores_is_better_than_the_limit() -> None:
    """With scores drawn at random and every threshold: the limit is reached by none and approached."""
    classes, random = 5, np.random.default_rng(1)
    pairs = list(combinations(range(classes), 2))
    best = 0.0
    for _ in range(3000):
        scores = random.normal(size=classes)
        same, other = 2 * scores, np.array([scores[a] + scores[b] for a, b in pairs])
        for threshold in [-np.inf, *same, *other]:
            best = max(best, ((same > threshold).mean() + (other <= threshold).mean()) / 2)
    assert best == pytest.approx(local_limit(classes))
    assert local_limit(10) == pytest.approx(0.6389, abs=1e-4)
    assert local_limit(2) == pytest.approx(0.75)


# The figure ---------------------------------------------------------------------------------------------


def _seven(folder: Path, data: str = "pairs") -> list[Row]:
    """Seven models of different reach, with chance beyond it."""
    random = np.random.default_rng(3)
    rows = []
    for place, family in enumerate(FAMILIES):
        knows = _near(1000, 80 + 60 * place, data) & (random.random(1000) < 0.9)
        right = knows | (random.random(1000) < 0.5)
        rows.append(_row(folder, family, right, np.arange(1000), data=data))
    return rows


def _texts(figure: Figure) -> list[Text]:
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        ("pairs", "accuracy-distance-512", "pixels between the two digits"),
        ("lookup", "accuracy-distance-lookup-512", "pixels from the key to its disc"),
        (
            "lookup[clutter=1,phase=random]",
            "accuracy-distance-lookup-clutter=1-phase=random-512",
            "without the key",
        ),
    ],
)
def test_seven_models_have_a_panel_each_and_no_words_overlap(
    data: str, name: str, words: str, tmp_path: Path
) -> None:
    rows = _seven(tmp_path, data)
    figures = distance_figures(rows, by_distance(read_answers(rows, [tmp_path])))
    assert set(figures) == {name}
    (figure,) = figures.values()
    figure.canvas.draw()
    texts = _texts(figure)
    said = [text.get_text() for text in texts]
    for family in FAMILIES:
        assert f"{family}-n" in said
    assert any("75.0 %" in text for text in said)
    assert any(words in " ".join(text.split()) for text in said)
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        inside = box.x0 > -3 and box.y0 > -3 and box.x1 < width + 3 and box.y1 < height + 3
        assert inside, f"{text!r} is cut off"
    for (one, box), (other, other_box) in combinations(boxes, 2):
        overlap = box.shrunk(0.8, 0.7).overlaps(other_box.shrunk(0.8, 0.7))
        assert not overlap, f"{one!r} and {other!r} overlap"


def test_report_writes_a_figure_for_each_size(tmp_path: Path) -> None:
    right = _near(300, 200)
    rows = [_row(tmp_path, "vit", right, np.arange(300), resolution=size) for size in (512, 1024)]
    with RunDirectory(tmp_path) as run:
        for row in rows:
            run.append(row)
    write_derived(tmp_path)
    written = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert written == {"accuracy-distance-512", "accuracy-distance-1024"}
