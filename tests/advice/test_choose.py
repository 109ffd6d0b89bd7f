"""Which model to take: measured first, and each figure under its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longvis_bench.advice.choose import Limits, choose, sentence
from longvis_bench.advice.need import Device
from longvis_bench.cli.app import app
from longvis_bench.errors import LongvisError
from longvis_bench.records import (
    AccuracyRecord,
    Cell,
    CountRecord,
    MemoryRecord,
    ProcessRecord,
    Request,
    Row,
    TimingRecord,
)
from longvis_bench.registry.registry import Registry

MIB = 1 << 20
CPU = Device("cpu", 1 << 40)


def row(
    model: str, latency: float = 0.1, peak_mib: int = 50, correct: int | None = None, **more: object
) -> Row:
    """A row at 256 px: three processes of ten samples, 1 % apart."""
    variant = Registry().find(model)
    cell = Cell(
        model=model,
        family=variant.family,
        variant=model,
        implementation=variant.implementation,
        resolution=256,
    ).model_copy(update={key: value for key, value in more.items() if key in Cell.model_fields})
    samples = tuple(
        latency * (1 + 0.01 * (number // 10 - 1) + 0.001 * (number % 5 - 2)) for number in range(30)
    )
    done = Row.of(
        Request(cell=cell, key=f"{model}{more}", machine=str(more.get("machine", "here"))), "ok", ""
    )
    accuracy = None
    if correct is not None:
        accuracy = AccuracyRecord(
            correct_top1=correct, correct_top5=None, images=400, dataset="digits", weights="w"
        )
    return done.model_copy(
        update={
            "timing": TimingRecord(
                samples_s=samples,
                warmup_s=(),
                verdict="stable",
                processes=tuple(ProcessRecord(samples=10) for _ in range(3)),
            ),
            "memory": MemoryRecord(peak_bytes=peak_mib * MIB, baseline_bytes=0, source="test"),
            "count": CountRecord(params=1000, macs=2000, flops=4000, scan_flops=0, coverage=1.0),
            "accuracy": accuracy,
            **{key: value for key, value in more.items() if key in ("status", "reason")},
        }
    )


def chosen(rows: list[Row], names: list[str] | None = None, **limits: object) -> tuple[list[str], str]:
    asked = Limits(256, **limits)  # type: ignore[arg-type]
    found = choose(rows, names or [], asked, CPU, Registry())
    return [one.model for one in found if one.meets], sentence(found, asked)


def test_the_most_accurate_that_meets_the_limits_comes_first() -> None:
    rows = [row("vit-n", 0.1, correct=200), row("swin-n", 0.3, correct=390), row("atlas-n", 0.2, correct=300)]
    models, said = chosen(rows)
    assert models == ["swin-n", "atlas-n", "vit-n"]
    assert said.startswith("Take swin-n: the most accurate (measured, digits) of 3 that meet the limits.")
    models, said = chosen(rows, latency_s=0.25)
    assert models == ["atlas-n", "vit-n"]


def test_what_the_intervals_do_not_separate_is_said() -> None:
    _, said = chosen([row("vit-n", correct=380), row("swin-n", correct=381), row("atlas-n", correct=200)])
    assert "not separable from vit-n (intervals overlap)" in said
    assert "atlas-n" not in said


def test_without_accuracies_the_fastest_is_taken_and_its_interval_counts() -> None:
    _, said = chosen([row("vit-n", 0.100), row("swin-n", 0.1001), row("atlas-n", 0.2)])
    assert "the fastest (measured)" in said
    assert "not separable from swin-n" in said


def test_a_latency_that_other_load_disturbed_meets_no_limit() -> None:
    calm, shaken = row("vit-n", 0.2), row("atlas-n", 0.1)
    assert shaken.timing is not None
    timing = shaken.timing.model_copy(update={"verdict": "disturbed"})
    rows = [calm, shaken.model_copy(update={"timing": timing})]
    found = choose(rows, [], Limits(256, latency_s=1), CPU, Registry())
    assert [(one.model, one.meets) for one in found] == [("vit-n", True), ("atlas-n", False)]
    assert found[1].why_not == "latency disturbed by other load: measure it again with --fresh"


def test_a_model_that_was_not_measured_is_predicted_and_marked() -> None:
    found = choose([row("vit-n")], ["atlas-n"], Limits(256, memory_bytes=4096 * MIB), CPU, Registry())
    kinds = {one.model: (one.memory and one.memory.kind, one.latency) for one in found}
    assert kinds["atlas-n"] == ("predicted", None)
    assert kinds["vit-n"][0] == "measured"
    assert all(one.meets for one in found)
    with_limit = choose([row("vit-n")], ["atlas-n"], Limits(256, latency_s=1), CPU, Registry())
    assert {one.model: one.why_not for one in with_limit}["atlas-n"] == "latency not measured"


def test_published_accuracies_compete_in_one_table_only() -> None:
    asked = Limits(1024)
    found = choose([], ["atlas-b", "vit-b"], asked, CPU, Registry())
    top1 = {one.model: one.top1 for one in found}
    assert top1["atlas-b"] is not None
    assert top1["atlas-b"].kind == "published"
    assert "Table 1" in top1["atlas-b"].source
    assert "published figures have no interval" in sentence(found, asked)


def test_nothing_is_published_for_other_arguments_or_sizes() -> None:
    found = choose([], ["atlas-s[window_order=official]", "atlas-s"], Limits(256), CPU, Registry())
    assert all(one.top1 is None for one in found)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"latency_s": 0.05},
            r"--latency binds; the nearest, vit-n, has latency 100 ms, 2\.00 x 50\.0 ms\.$",
        ),
        (
            {"memory_bytes": 100 * MIB},
            r"--memory binds; the nearest, vit-n, needs at least .* more than 100 MiB",
        ),
        ({"min_top1": 0.99}, r"--min-top1 binds; the nearest, swin-n, has top-1 95\.0 %, 4\.0 points below"),
    ],
)
def test_where_nothing_meets_the_limits_it_says_which_binds_and_by_how_much(
    limits: dict[str, Any], message: str
) -> None:
    rows = [row("vit-n", 0.1, 50, 370), row("swin-n", 0.3, 90, 380)]
    with pytest.raises(LongvisError, match=message):
        chosen(rows, **limits)


def test_a_failed_row_falls_out_with_its_status() -> None:
    found = choose(
        [row("vit-n"), row("swin-n", status="timeout", reason="600 s")], [], Limits(256), CPU, Registry()
    )
    assert {one.model: one.why_not for one in found} == {"vit-n": "", "swin-n": "measured: timeout, 600 s"}


def test_rows_of_two_machines_do_not_compete() -> None:
    with pytest.raises(LongvisError, match=r"different machine \(here, there\) do not compete"):
        chosen([row("vit-n"), row("swin-n", machine="there")])


def test_there_must_be_something_to_choose_from() -> None:
    with pytest.raises(LongvisError, match="no row at 512 px in mode infer; name models with --models"):
        choose([row("vit-n")], [], Limits(512), CPU, Registry())


def test_the_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [row("vit-n", 0.1, correct=200), row("swin-n", 0.3, correct=390)]
    (run / "cells.jsonl").write_text("".join(one.model_dump_json(by_alias=True) + "\n" for one in rows))
    asked = ["choose", str(run), "--res", "256"]
    for width in (80, 120):
        result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, [*asked, "--latency", "200ms"])
        assert result.exit_code == 0, result.output
        assert "Take vit-n: the only one of 2 that meets the limits." in " ".join(result.output.split())
        assert all(len(line) <= width for line in result.output.splitlines())
    lines = CliRunner().invoke(app, [*asked, "--json"]).output.splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["swin-n", "vit-n"]
    failed = CliRunner().invoke(app, [*asked, "--latency", "1ms"])
    assert failed.exit_code == 2
    assert "--latency binds" in failed.output


def test_figures_of_a_model_come_from_all_its_rows() -> None:
    """One run measured the memory alone, another the latency."""
    one, other = row("vit-n", 0.1, correct=200), row("vit-n", 0.1, 60, seed=1)
    rows = [one.model_copy(update={"timing": None}), other.model_copy(update={"memory": None})]
    (found,) = choose(rows, [], Limits(256, latency_s=1), CPU, Registry())
    assert found.meets
    assert found.memory is not None
    assert (found.memory.value, found.memory.kind) == (50 * MIB, "measured")
    assert found.latency is not None
    assert found.top1 is not None


def test_without_a_run_models_are_named_and_a_gpu_gives_the_memory() -> None:
    asked = ["choose", "--res", "64", "--gpu", "rtx4090"]
    found = CliRunner().invoke(app, [*asked, "--models", "vit-n,convnext-n"])
    assert found.exit_code == 0, found.output
    assert "predicted: see longvis fit" in found.output
    assert "Take " in found.output
    nothing = CliRunner().invoke(app, asked)
    assert nothing.exit_code == 2
    assert "name models with --models" in nothing.output


def test_rows_of_features_are_left_out_and_never_compete(tmp_path: Path) -> None:
    maps = row("vit-n", 0.001, output="features")
    models, _ = chosen([maps, row("swin-n", 0.1, correct=300)])
    assert models == ["swin-n"]
    with pytest.raises(LongvisError, match="hold rows of --output features alone"):
        chosen([maps])
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [one.to_json() for one in (maps, row("swin-n", 0.1, correct=300))]
    (folder / "cells.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["choose", str(folder), "--res", "256"])
    assert "Rows of --output features are left out" in result.output
