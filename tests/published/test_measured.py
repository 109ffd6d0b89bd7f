"""Published accuracies, throughputs and runtimes beside the rows of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import longvis_bench as lv
from longvis_bench.cli.app import app
from longvis_bench.errors import LongvisError
from longvis_bench.published.measured import Relative, of_runs, relatives
from longvis_bench.published.verdicts import Checked, check
from longvis_bench.records import AccuracyRecord, ProcessRecord, Row, TimingRecord
from longvis_bench.registry.registry import Registry
from longvis_bench.runs.directory import RunDirectory

Cards = Callable[..., Path]
SPREAD = (-0.004, 0.0, 0.004)
A100 = "NVIDIA A100-SXM4-80GB"
THROUGHPUT = 'throughput_img_s = {}\nhardware = "A100, batch 8, TF32"'
RUNTIME = 'runtime_h = {}\nhardware = "8x NVIDIA A100"'


def made(
    row: Row,
    model: str = "tiny-a",
    latency: float = 0.1,
    *,
    device: str | None = A100,
    spread: Sequence[float] = SPREAD,
    right: int | None = None,
    weights: str = "tiny-a.pth",
    images: int = 50_000,
    **cell: Any,
) -> Row:
    conditions = {"resolution": 64, "batch_size": 8, "dtype": "tf32", "device": "cuda", **cell}
    conditions = {"data": "folder:imagenet", "num_classes": 1000, **conditions}
    changed = row.cell.model_copy(update={"model": model, "variant": model, "family": "tiny", **conditions})
    samples = tuple(latency * (1 + shift) for shift in spread for _ in range(8))
    timing = TimingRecord(
        samples_s=samples,
        warmup_s=(),
        verdict="stable",
        processes=tuple(ProcessRecord(samples=8) for _ in spread),
    )
    accuracy = None
    if right is not None:
        accuracy = AccuracyRecord(
            correct_top1=right, correct_top5=None, images=images, dataset=changed.data, weights=weights
        )
    found: dict[str, Any] = {
        "cell": changed,
        "timing": timing,
        "accuracy": accuracy,
        "key": f"{model}-{changed.mode}",
    }
    found["backends"] = {"device": device} if device else {}
    return row.model_copy(update=found)


def judged(folder: Path, *rows: Row) -> tuple[list[Checked], list[Relative]]:
    found = check(Registry([folder]), ["tiny-*"], rows=rows)
    return of_runs(found, rows), relatives(found, rows)


@pytest.mark.parametrize(
    ("right", "images", "verdict"),
    [
        (35_050, 50_000, "reproduced"),
        (35_000, 50_000, "reproduced"),  # 70.0 [69.6, 70.4] and 70.05 to 70.15
        (34_700, 50_000, "contradicted"),
        (347, 500, "reproduced"),  # 69.4 [65.2, 73.3]
    ],
)
def test_an_accuracy_is_reproduced_if_its_interval_holds_what_was_printed(
    cards: Cards, row: Row, right: int, images: int, verdict: str
) -> None:
    ((found,), _) = judged(cards("top1_percent = 70.1"), made(row, right=right, images=images))
    assert found.verdict == verdict
    assert found.ours == pytest.approx(100 * right / images)
    ends = (found.low, found.ours, found.high)
    assert all(end is not None for end in ends)
    assert sorted(ends, key=lambda end: end or 0) == list(ends)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"data": "digits"}, "measured on digits, published on imagenet-1k"),
        ({"num_classes": 10}, "measured on folder:imagenet, published on imagenet-1k"),
        ({"weights": "mine.pth"}, "weights mine.pth are not known to be the authors'"),
    ],
)
def test_an_accuracy_of_other_images_or_weights_is_not_comparable(
    cards: Cards, row: Row, change: dict[str, Any], why: str
) -> None:
    ((found,), _) = judged(cards("top1_percent = 70.1"), made(row, right=35_050, **change))
    assert (found.verdict, found.why) == ("not comparable", why)
    assert found.ours is not None


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        ({}, "reproduced", ""),
        ({"latency": 0.2}, "contradicted", ""),
        ({"batch_size": 16, "latency": 0.2}, "not comparable", "batch 16 instead of 8"),
        ({"dtype": "bf16"}, "not comparable", "bf16 instead of tf32"),
        ({"device": "NVIDIA H100"}, "not comparable", "measured on NVIDIA H100, published on A100"),
    ],
)
def test_a_throughput_needs_the_published_conditions(
    cards: Cards, row: Row, change: dict[str, Any], verdict: str, why: str
) -> None:
    ((found,), _) = judged(cards(THROUGHPUT.format(80)), made(row, **change))
    assert (found.verdict, found.why) == (verdict, why)
    assert found.ours is not None


def test_a_throughput_whose_conditions_are_not_stated_is_not_comparable(cards: Cards, row: Row) -> None:
    folder = cards('throughput_img_s = 80\nhardware = "A100, precision not stated"')
    ((found,), _) = judged(folder, made(row))
    assert found.why == "the published batch is not stated; the published precision is not stated"


def test_ratios_of_a_table_on_its_hardware(cards: Cards, row: Row) -> None:
    """tiny-b takes 2.0 times as long by the table; measured 2.0, then 3.0."""
    cards(RUNTIME.format("5.0"))
    folder = cards(RUNTIME.format("10.0"), variant="tiny-b")
    for latency, verdict in ((0.2, "reproduced"), (0.3, "contradicted")):
        rows = [made(row, mode="train"), made(row, "tiny-b", latency, mode="train")]
        _, (found,) = judged(folder, *rows)
        assert (found.claim.model, found.reference.model) == ("tiny-b", "tiny-a")
        assert found.published == pytest.approx((2.0, 9.95 / 5.05, 10.05 / 4.95))
        assert found.time.value == pytest.approx(latency / 0.1)
        assert found.verdict == verdict


def test_ratios_of_other_hardware_are_shown_without_a_verdict(cards: Cards, row: Row) -> None:
    cards(RUNTIME.format("5.0"))
    folder = cards(RUNTIME.format("10.0"), variant="tiny-b")
    rows = [
        made(r, m, t, device=None, mode="train") for r, m, t in ((row, "tiny-a", 0.1), (row, "tiny-b", 0.3))
    ]
    _, (found,) = judged(folder, *rows)
    assert (found.verdict, found.why) == ("not comparable", "measured on cuda, published on A100")
    assert found.time.value == pytest.approx(3.0)


def test_a_ratio_of_throughputs_is_one_of_times(cards: Cards, row: Row) -> None:
    """Half the images per second are twice the time."""
    cards(THROUGHPUT.format(80))
    folder = cards(THROUGHPUT.format(40), variant="tiny-b")
    _, (found,) = judged(folder, made(row), made(row, "tiny-b", 0.2))
    assert found.published[0] == pytest.approx(2.0)
    assert found.verdict == "reproduced"


def test_the_reference_of_a_table_is_of_the_papers_own_family(cards: Cards, row: Row) -> None:
    """Of a table of another paper, it is the first model."""
    cards(RUNTIME.format("5.0"), variant="tiny-b", source="arXiv:2601.99999")
    folder = cards(RUNTIME.format("10.0"), source="arXiv:2601.99999")
    _, (found,) = judged(folder, made(row, mode="train"), made(row, "tiny-b", 0.05, mode="train"))
    assert found.reference.model == "tiny-b"


def test_inference_says_nothing_of_a_runtime(cards: Cards, row: Row) -> None:
    cards(RUNTIME.format("5.0"))
    folder = cards(RUNTIME.format("10.0"), variant="tiny-b")
    assert judged(folder, made(row), made(row, "tiny-b", 0.2))[1] == []


def test_only_models_and_sizes_of_the_run_are_checked(cards: Cards, row: Row) -> None:
    folder = cards("params_m = 0.084", "params_m = 0.085")
    cards("params_m = 0.2", variant="tiny-b")
    cards("params_m = 0.1", resolution=128)
    assert len(judged(folder, made(row))[0]) == 2


def test_a_run_without_a_published_cell_is_one_sentence(cards: Cards, row: Row, tmp_path: Path) -> None:
    folder = cards("params_m = 0.084")
    with pytest.raises(LongvisError, match=r"no card has a published number of these rows \(tiny-a 32 px\)"):
        judged(folder, made(row, resolution=32))
    with RunDirectory(tmp_path / "run") as run:
        run.append(made(row, resolution=32))
    result = CliRunner().invoke(app, ["claims", str(tmp_path / "run"), "--models-dir", str(folder)])
    assert result.exit_code == 2
    assert "no card has a published number" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["claims", str(tmp_path / "nothing")])
    assert result.exit_code == 2


def test_the_command_and_the_function_show_a_run(cards: Cards, row: Row, tmp_path: Path) -> None:
    cards(RUNTIME.format("5.0"))
    folder = cards(RUNTIME.format("10.0"), variant="tiny-b")
    with RunDirectory(tmp_path / "run") as run:
        run.append(made(row, mode="train"))
        run.append(made(row, "tiny-b", 0.2, mode="train"))
    command = ["claims", str(tmp_path / "run"), "--models-dir", str(folder)]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert "tiny-b / tiny-a" in shown.output
    printed = [json.loads(line) for line in CliRunner().invoke(app, [*command, "--json"]).output.splitlines()]
    (ratio,) = [record for record in printed if record.get("reference")]
    assert (ratio["quantity"], ratio["verdict"]) == ("relative runtime", "reproduced")
    assert ratio["published"] == pytest.approx(2.0)
    frame = lv.claims(runs=[tmp_path / "run"], models_dirs=[folder])
    assert list(frame["reference"].dropna()) == ["tiny-a"]
