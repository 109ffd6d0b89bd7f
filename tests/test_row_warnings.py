"""Each warning at, below and above its limit."""

import re
from typing import Any

import pytest

from longvis_bench import records as r
from longvis_bench import row_warnings
from longvis_bench.row_warnings import KINDS, of, of_repeats

STEADY = (1.0, 1.001) * 6


def timed(*samples: float, **noise: Any) -> dict[str, Any]:
    return {
        "timing": r.TimingRecord(
            samples_s=samples, warmup_s=(), verdict="stable", noise=r.NoiseRecord(**noise)
        )
    }


def on_gpu(host_s: float, **noise: Any) -> dict[str, Any]:
    timing = timed(*STEADY, **noise)["timing"]
    return {"timing": timing.model_copy(update={"host_s": (host_s,) * 12})}


def judged(verdict: str, *medians: float, disturbed: str | None = None) -> dict[str, Any]:
    processes = tuple(r.ProcessRecord(samples=4, disturbed=disturbed) for _ in medians)
    samples = tuple(median for median in medians for _ in range(4))
    record = {"samples_s": samples, "warmup_s": (), "verdict": verdict, "processes": processes}
    return {"timing": r.TimingRecord.model_validate(record)}


def counted(coverage: float | None, **unknown: int) -> dict[str, Any]:
    record = r.CountRecord(params=1, macs=1, flops=2, scan_flops=0, coverage=coverage, unknown=unknown)
    return {"count": record}


def accurate(right: int, images: int, **more: Any) -> dict[str, Any]:
    record = r.AccuracyRecord(
        correct_top1=right, correct_top5=None, images=images, dataset="d", weights="w", **more
    )
    return {"accuracy": record}


def sized(**more: Any) -> dict[str, Any]:
    return {"size": r.SizeRecord(reach="as it is", **more)}


def peaks(measured_mib: int, tensors_mib: int) -> dict[str, Any]:
    return {
        "memory": r.MemoryRecord(peak_bytes=measured_mib << 20, baseline_bytes=0, source="s"),
        "tensors": r.TensorRecord(peak_bytes=tensors_mib << 20),
    }


def scanned(device: str, backend: str) -> dict[str, Any]:
    cell = r.Cell(model="m", family="f", variant="v", implementation="native", resolution=512, device=device)
    return {"cell": cell, "backends": {"scan": backend}}


def emulated(dtype: str, native: str) -> dict[str, Any]:
    values = {**scanned("cuda", "triton"), "numerics": {"native_bf16": native}}
    return {**values, "cell": values["cell"].model_copy(update={"dtype": dtype})}


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # code, values that warn, values that do not
    ("few_samples", timed(*[1.0] * 5), timed(*[1.0] * 6)),
    ("noisy", timed(*[1.0, 1.1] * 6), timed(*STEADY)),
    ("noisy", judged("noisy", 1.0, 1.2, 1.1), judged("stable", 1.0, 1.0, 1.0)),
    ("disturbed", judged("disturbed", 1.0, disturbed="load"), judged("stable", 1.0, 1.0, disturbed="load")),
    ("single", judged("single", 1.0), judged("stable", 1.0)),
    ("drift", timed(*[1.0] * 20, *[1.2] * 20), timed(*STEADY)),
    ("load", timed(*STEADY, load_cores=0.3), timed(*STEADY, load_cores=0.05)),
    ("steal", timed(*STEADY, steal=0.05), timed(*STEADY, steal=0.0)),
    ("clock", timed(*STEADY, clock_change=-0.2), timed(*STEADY, clock_change=0.01)),
    (
        "hot",
        timed(*STEADY, temperature_c=86.0, temperature_limit_c=90.0),
        timed(*STEADY, temperature_c=84.0, temperature_limit_c=90.0),
    ),
    ("throttled", timed(*STEADY, slowdowns=("power cap",)), timed(*STEADY, slowdowns=())),
    (
        "throttled",
        timed(*STEADY, slowdowns=("power cap",), clock_hz=1.7e9, clock_limit_hz=1.98e9),
        timed(*STEADY, slowdowns=("power cap",), clock_hz=1.8e9, clock_limit_hz=1.98e9),
    ),
    ("load", timed(*STEADY, load_cores=0.3), on_gpu(0.5, load_cores=0.3)),
    ("host_bound", on_gpu(0.95), on_gpu(0.85)),
    ("coverage", counted(0.9, x=3), counted(1.0)),
    ("padding", sized(padding_ratio=0.6), sized(padding_ratio=0.5)),
    ("wide_accuracy", accurate(32, 64), accurate(64, 128)),
    (
        "other_resolution",
        accurate(4000, 9000, trained_resolution=256),
        accurate(4000, 9000, trained_resolution=512),
    ),
    ("restricted", accurate(900, 1000, classes=100), accurate(900, 1000)),
    (
        "reshaped",
        sized(reshaped={"pos_embed": "interpolated"}) | accurate(900, 1000),
        sized(reshaped={"pos_embed": "interpolated"}),
    ),
    ("class_order", accurate(900, 1000, class_doubt="numbers"), accurate(900, 1000)),
    ("over_tensors", peaks(200, 100), peaks(160, 100)),
    ("plain_scan", scanned("cuda", "torch"), scanned("cuda", "triton")),
    ("plain_scan", scanned("cuda", "torch"), scanned("cpu", "torch")),
    ("emulated", emulated("bf16", "false"), emulated("bf16", "true")),
    ("emulated", emulated("bf16", "false"), emulated("fp16", "false")),
    ("changed_settings", {"changed_settings": ("threads (2, now 1)",)}, {"changed_settings": ()}),
    ("random_tensors", sized(random_tensors=("head.weight",)), sized()),
]


def with_values(row: r.Row, values: dict[str, Any], precision: float = 0.03) -> r.Row:
    cell = row.cell.model_copy(update={"resolution": 512, "num_classes": 1000})
    return row.model_copy(update={"cell": cell, "settings": r.Settings(precision=precision), **values})


@pytest.mark.parametrize(("code", "warns", "does_not"), CASES)
def test_each_warning(row: r.Row, code: str, warns: dict[str, Any], does_not: dict[str, Any]) -> None:
    notes = {note.code: note for note in of(with_values(row, warns, 1.0 if code == "drift" else 0.03))}
    assert set(notes) == {code}
    assert notes[code].advice == KINDS[code].advice
    assert of(with_values(row, does_not)) == ()


def test_repeats_that_disagree_by_more_than_their_intervals() -> None:
    (note,) = of_repeats((1.0, 1.1, 1.0), 0.04)
    assert note.code == "rounds"
    assert note.message == (
        "the medians of 3 repeats differ by 10.0 %, and the interval within one repeat is at most 4.0 % wide"
    )
    assert of_repeats((1.0, 1.1, 1.0), 0.2) == ()
    assert of_repeats((1.0, 1.01), 0.001) == (), "under 2 % nothing is said"
    assert of_repeats((1.0, 1.1), None) == ()
    assert of_repeats((1.0,), 0.01) == ()


def test_more_than_the_devices_peak_is_a_fault() -> None:
    (note,) = row_warnings.of_mfu(1.2)
    assert (note.code, note.message) == (
        "over_peak",
        "count and time give 120.0 % of the device's peak FLOP/s",
    )
    assert row_warnings.of_mfu(0.99) == row_warnings.of_mfu(None) == ()


def test_the_list_is_closed_and_every_kind_is_tested() -> None:
    assert set(KINDS) == {case[0] for case in CASES} | {"rounds", "over_peak"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_advice_is_a_sentence_and_codes_are_names(kind: row_warnings.WarningKind) -> None:
    assert re.fullmatch(r"[A-Z].*[.]", kind.advice)
    assert re.fullmatch(r"[a-z_]+", kind.code)


def test_nothing_known_is_nothing_to_warn_of(row: r.Row) -> None:
    assert of(row) == ()
    assert of(with_values(row, accurate(0, 0, trained_resolution=256))) == ()


def test_no_samples_at_all_is_few(row: r.Row) -> None:
    (note,) = of(with_values(row, timed()))
    assert note.message == "0 samples within the budget, and an interval needs 6"


def test_messages_say_how_much(row: r.Row) -> None:
    values = timed(*[1.0] * 20, *[1.2] * 20, load_cores=1.5) | counted(0.75, a=1, b=5, c=2, d=3)
    assert [note.message for note in of(with_values(row, values, 0.02))] == [
        "the latency's 95 % interval is ±9.1 %, wider than the target of ±2.0 %",
        "the model became 20.0 % slower while it was timed",
        "other processes kept 1.5 cores busy",
        "operators without a cost formula make 25.0 % of the output elements: b, d, c and 1 more",
    ]
