"""Each warning at, below and above its limit."""

import re
from typing import Any

import pytest

from longvis_bench import row_warnings as quality
from longvis_bench.row_warnings import KINDS, Warn, notes_for

STEADY = [1.0, 1.001] * 6
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # code, values that warn, values that do not
    ("few_samples", {"samples_s": [1.0] * 5}, {"samples_s": [1.0] * 6}),
    ("noisy", {"samples_s": [1.0, 1.1] * 6, "precision": 0.02}, {"samples_s": STEADY, "precision": 0.02}),
    ("drift", {"samples_s": [1.0] * 20 + [1.2] * 20}, {"samples_s": STEADY}),
    ("load", {"load": 0.3}, {"load": 0.05}),
    ("steal", {"steal": 0.05}, {"steal": 0.0}),
    ("clock", {"clock_change": -0.2}, {"clock_change": 0.01}),
    (
        "hot",
        {"temperature_c": 86.0, "temperature_limit_c": 90.0},
        {"temperature_c": 84.0, "temperature_limit_c": 90.0},
    ),
    ("throttled", {"throttle": ("power cap",)}, {"throttle": ()}),
    (
        "rounds",
        {"rounds_s": (1.0, 1.1, 1.0), "within_round": 0.04},
        {"rounds_s": (1.0, 1.1, 1.0), "within_round": 0.2},
    ),
    ("coverage", {"coverage": 0.9, "unknown": {"aten::x": 3}}, {"coverage": 1.0, "unknown": {}}),
    ("padding", {"padding_ratio": 0.6}, {"padding_ratio": 0.5}),
    ("wide_accuracy", {"correct_top1": 32, "images": 64}, {"correct_top1": 64, "images": 128}),
    (
        "other_resolution",
        {"resolution": 512, "trained_resolution": 256, "images": 9000},
        {"resolution": 256, "trained_resolution": 256, "images": 9000},
    ),
    (
        "restricted",
        {"classes": 100, "num_classes": 1000, "correct_top1": 900, "images": 1000},
        {"classes": None, "num_classes": 1000, "correct_top1": 900, "images": 1000},
    ),
    (
        "reshaped",
        {"reshaped": {"pos_embed": "interpolated"}, "images": 1000},
        {"reshaped": {}, "images": 1000},
    ),
    (
        "over_tensors",
        {"peak_bytes": 200 << 20, "tensor_peak_bytes": 100 << 20},
        {"peak_bytes": 160 << 20, "tensor_peak_bytes": 100 << 20},
    ),
    ("random_tensors", {"random_tensors": ("head.weight",)}, {"random_tensors": ()}),
]


@pytest.mark.parametrize(("code", "warns", "does_not"), CASES)
def test_each_warning(code: str, warns: dict[str, Any], does_not: dict[str, Any]) -> None:
    (note,) = notes_for(**warns)
    assert note.code == code
    assert note.advice == KINDS[code].advice
    assert notes_for(**does_not) == ()


def test_the_list_is_closed_and_every_kind_is_tested() -> None:
    assert set(KINDS) == {case[0] for case in CASES}
    assert len(KINDS) == len(Warn)


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_advice_is_a_sentence_and_codes_are_names(kind: quality.Kind) -> None:
    assert re.fullmatch(r"[A-Z].*[.]", kind.advice)
    assert re.fullmatch(r"[a-z_]+", kind.code)


def test_nothing_known_is_nothing_to_warn_of() -> None:
    assert notes_for() == ()
    assert notes_for(samples_s=None, images=0, correct_top1=0, trained_resolution=256, resolution=512) == ()


def test_no_samples_at_all_is_few() -> None:
    (note,) = notes_for(samples_s=[])
    assert note.message == "0 samples in the budget, and an interval needs 6"


def test_messages_say_how_much() -> None:
    notes = notes_for(
        samples_s=[1.0] * 20 + [1.2] * 20,
        precision=0.02,
        load=1.5,
        coverage=0.75,
        unknown={"a": 1, "b": 5, "c": 2, "d": 3},
    )
    assert [note.message for note in notes] == [
        "the latency's 95 % interval is ±9.1 %, wider than the ±2.0 % asked for",
        "it became 20.0 % slower while it was timed",
        "other processes kept 1.5 cores busy",
        "25.0 % of the output has no formula: b, d, c and 1 more",
    ]
