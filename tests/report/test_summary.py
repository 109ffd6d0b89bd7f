"""Frames, CSV, Markdown and terminal tables: exact on an invented run, total on all rows, safe on any text.

After an intended change: LONGVIS_GOLDEN=write pytest tests/report/test_summary.py, then read the difference.
"""

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from longvis_bench import records
from longvis_bench.records import Cell, Row
from longvis_bench.report import columns
from longvis_bench.report import grouping as series
from longvis_bench.report import summary as tables
from longvis_bench.report.columns import BY_NAME, COLUMNS
from longvis_bench.row_warnings import LOAD
from longvis_bench.runs.directory import read_rows
from longvis_bench.stats.ratios import Ratio

GOLDEN = Path(__file__).parents[1] / "golden_tables"
ROWS = read_rows(GOLDEN / "rows.jsonl")
DESIGN = [
    *("model", "family", "variant", "implementation", "resolution", "batch_size", "mode", "dtype", "device"),
    *("status", "reason", "params", "macs", "flops", "scan_flops", "flops_coverage"),
    *("latency_median_s", "latency_low_s", "latency_high_s", "latency_p90_s", "latency_p99_s"),
    *("throughput_img_s", "samples", "verdict", "mfu", "peak_memory_bytes"),
    *("top1", "top1_low", "top1_high", "top5", "num_classes", "images", "dataset", "weights"),
]
"""The promised columns (shared/DESIGN.md section 4), in their order."""


MEMORY_PARTS = ["weights", "buffers", "gradients", "optimizer", "input", "library", "activations"]
MEMORY_PARTS += ["workspace", "rest"]


def plain_row(**more: Any) -> Row:
    """The least a row can hold, and what is given besides."""
    least = {
        "model": "vit-n",
        "family": "vit",
        "variant": "vit-n",
        "implementation": "timm",
        "resolution": 256,
    }
    cell = Cell.model_validate({**least, **more.pop("cell", {})})
    return Row.model_validate({"key": "k", "cell": cell, "status": "ok", **more})


def timing(*samples: float) -> records.TimingRecord:
    return records.TimingRecord(samples_s=samples, warmup_s=(), verdict="stable")


def full_row() -> Row:
    """A row in which every column has a value."""
    samples = tuple(1.0 + 0.001 * (i % 5) for i in range(200)) + tuple(
        1.1 + 0.001 * (i % 5) for i in range(200)
    )
    return plain_row(
        machine="intel-xeon-2c",
        cell={
            "arguments": {"window": 8},
            "weights": "vit-n.safetensors",
            "weights_sha256": "ab",
            "normalisation": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            "mode": "train",
            "device": "cuda",
            "dtype": "bf16",
            "fuse": True,
            "compile": True,
        },
        reason="a reason",
        cached=("count", "accuracy"),
        started="2026-11-21T09:00:00+00:00",
        gpu_index=1,
        gpu_uuid="12-34",
        size=records.SizeRecord(
            reach="padded",
            padding_ratio=0.7,
            arguments={"a": 1},
            random_tensors=("head",),
            reshaped={"pos_embed": "interpolated"},
        ),
        count=records.CountRecord(
            params=5, macs=50, flops=100, scan_flops=7, coverage=0.9, unknown={"x::y": 3}
        ),
        timing=records.TimingRecord(
            samples_s=samples,
            warmup_s=(2.0,),
            verdict="noisy",
            parts_s={"forward": (0.3,), "backward": (0.5,), "optimizer": (0.2,)},
            host_s=(0.7,),
            graph_s=(0.6,),
            noise=records.NoiseRecord(
                load_cores=0.2,
                own_cores=1.9,
                steal=0.01,
                clock_hz=1.7e9,
                clock_change=-0.1,
                temperature_c=71.0,
                temperature_limit_c=90.0,
                slowdowns=("power cap",),
            ),
            processes=tuple(
                records.ProcessRecord(
                    samples=len(samples) // 4,
                    yardstick_s=(0.5, 0.5, 0.6),
                    counters=records.CountersRecord(page_faults=10, context_switches=2, migrations=1),
                )
                for _ in range(4)
            ),
        ),
        world=records.WorldRecord(backend="nccl", one_device_s=(1.0,), rank_peak_bytes=(90, 100)),
        energy=records.EnergyRecord(joules=20.0, seconds=2.0, images=10, source="NVML", idle_w=5.0),
        memory=records.MemoryRecord(
            peak_bytes=100,
            baseline_bytes=50,
            source="torch",
            reserved_bytes=120,
            outside_bytes=400,
            parts_bytes=dict.fromkeys(MEMORY_PARTS, 10),
        ),
        settings=records.Settings(hours_for=records.TrainLength(images=10, epochs=3)),
        batches=(records.BatchTry(batch_size=1, status="ok"),),
        tensors=records.TensorRecord(peak_bytes=80, parts_bytes={"activations": 80}),
        accuracy=records.AccuracyRecord(
            correct_top1=90,
            correct_top5=99,
            images=100,
            dataset="digits",
            weights="w",
            trained_resolution=224,
            classes=5,
        ),
        features=records.FeaturesRecord(strides=(4, 8), channels=(32, 64), held_bytes=4096),
        reach=records.ReachRecord(
            basis="map",
            share=0.8,
            tokens=9,
            radius_50_px=(8.0, 9.5, 9.0),
            radius_90_px=(20.0, 21.0, 22.0),
            trained_radius_50_px=(40.0,),
            trained_radius_90_px=(80.0,),
        ),
        validity=records.ValidityRecord(
            verdict="ok", reference="float32", reference_error=1e-3, batch_error=0.0, tolerance=0.1
        ),
        backends={"device": "NVIDIA H100 80GB HBM3"},
        attention="flash",
        overhead_s=dict.fromkeys(["start", "import", "build", "compile", "time", "other", "teardown"], 1.0),
        repeats_s=(1.0, 1.2),
        reference_yardstick_s=0.4,
        baseline=("other", Ratio(1.25, 1.125, 1.375, 0.01, "processes")),
        notes=(LOAD.warning("busy"),),
        null_reasons={"something": "else"},
    )


def terminal(rows: list[Row], width: int) -> str:
    console = Console(width=width, color_system=None, file=io.StringIO(), legacy_windows=False)
    console.print(tables.terminal_table(rows, width))
    assert isinstance(console.file, io.StringIO)
    return "".join(line.rstrip() + "\n" for line in console.file.getvalue().splitlines())


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("LONGVIS_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} differs; see the top of this file"


# Golden -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_terminal(width: int) -> None:
    text = terminal(ROWS, width)
    check_golden(f"terminal_{width}.txt", text)
    assert max(map(len, text.splitlines())) <= width


def test_markdown() -> None:
    check_golden("summary.md", tables.summary_markdown(ROWS))


def test_csv() -> None:
    check_golden("summary.csv", tables.summary_csv(ROWS))


def test_one_and_no_rows() -> None:
    for name, rows in {"none": [], "one": ROWS[:1], "oom": ROWS[-1:]}.items():
        both = terminal(rows, 80) + "\n" + tables.summary_markdown(rows)
        check_golden(f"{name}.txt", both)
        assert len(tables.summary_csv(rows).splitlines()) == 1 + len(rows)
        assert list(tables.frame(rows).columns) == [column.name for column in COLUMNS]
        assert len(tables.frame(rows)) == len(rows)


def test_the_readme_of_results_is_the_declaration() -> None:
    path = Path(__file__).parents[2] / "results" / "README.md"
    text = columns.columns_markdown()
    if os.environ.get("LONGVIS_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


# Columns ------------------------------------------------------------------------------------------------


def test_the_promised_columns_come_first_and_in_order() -> None:
    names = [column.name for column in COLUMNS]
    assert names[: len(DESIGN)] == DESIGN
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_a_column_is_total_and_says_why_it_has_no_value(column: columns.Column) -> None:
    for row in [
        plain_row(),
        plain_row(status="oom", reason="no room"),
        plain_row(status="error"),
        full_row(),
        *ROWS,
    ]:
        value = column.value(row)
        kinds = {"text": str, "int": int, "float": int | float}
        assert value is None or isinstance(value, kinds[column.kind])
        reason = columns.null_reason(column, row)
        assert (reason is None) == (value is not None)
        assert reason != ""
        assert column.format(value)
    if column.name != "null_reasons":
        assert column.value(full_row()) is not None
    assert re.fullmatch(r"[A-Z`\d].*\.", column.meaning)


def test_units_are_part_of_names() -> None:
    endings = {"s": "_s", "img/s": "_img_s", "bytes": "_bytes"}
    for column in COLUMNS:
        if column.unit in endings:
            assert column.name.endswith(endings[column.unit])


def test_statistics_come_from_the_samples() -> None:
    row = plain_row(cell={"batch_size": 4}, timing=timing(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    found = tables.frame([row]).iloc[0]
    assert found[["latency_median_s", "latency_low_s", "latency_high_s"]].tolist() == [3.5, 1.0, 6.0]
    assert found["throughput_img_s"] == 4 / 3.5
    assert (found["throughput_low_img_s"], found["throughput_high_img_s"]) == (4 / 6, 4.0)
    assert found["latency_p90_s"] is pd.NA


def test_few_samples_give_no_interval_and_no_samples_no_number() -> None:
    few, none = plain_row(timing=timing(1.0)), plain_row(timing=timing())
    for column in ("latency_low_s", "latency_p90_s", "throughput_low_img_s", "latency_half_width"):
        assert BY_NAME[column].value(few) is None
    assert BY_NAME["latency_median_s"].value(few) == 1.0
    assert BY_NAME["throughput_img_s"].value(none) is None
    assert BY_NAME["samples"].value(none) == 0


def test_reasons_are_the_most_specific_ones() -> None:
    column = BY_NAME["top1"]
    assert columns.null_reason(column, plain_row()) == "not measured"
    assert columns.null_reason(column, plain_row(cell={"metrics": ("time",)})) == "not asked for (--metrics)"
    assert columns.null_reason(column, plain_row(status="oom", reason="no room")) == "oom: no room"
    row = plain_row(null_reasons={"accuracy": "no weights"})
    assert columns.null_reason(column, row) == "no weights"
    assert columns.null_reasons(row)["accuracy"] == "no weights"
    few = plain_row(timing=timing(1.0, 1.0))
    assert columns.null_reason(BY_NAME["latency_low_s"], few) == "an interval needs 6 samples; there are 2"
    assert set(columns.null_reasons(few)) >= {"latency_low_s", "count", "memory"}
    assert "macs" not in columns.null_reasons(few)


def test_mfu() -> None:
    count = records.CountRecord(params=1, macs=10**12, flops=2 * 10**12, scan_flops=0, coverage=1.0)
    more = {"count": count, "timing": timing(0.01), "backends": {"device": "NVIDIA H100 80GB HBM3"}}
    cell = {"device": "cuda", "dtype": "bf16", "batch_size": 2}
    assert BY_NAME["mfu"].value(plain_row(cell=cell, **more)) == pytest.approx(4e12 / 0.01 / 989.4e12)
    train = plain_row(cell={**cell, "mode": "train"}, **more)
    assert BY_NAME["mfu"].value(train) == pytest.approx(12e12 / 0.01 / 989.4e12)
    assert columns.null_reason(BY_NAME["mfu"], plain_row(**more)) == "no peak FLOP/s is known for processors"


def test_mfu_in_fp32_is_of_the_strict_peak_and_null_where_tf32_may_have_run() -> None:
    count = records.CountRecord(params=1, macs=10**11, flops=2 * 10**11, scan_flops=0, coverage=1.0)
    more = {"count": count, "timing": timing(0.01), "backends": {"device": "NVIDIA H100 80GB HBM3"}}
    cell = {"device": "cuda", "dtype": "fp32"}
    strict = plain_row(cell=cell, numerics={"matmul_allow_tf32": "false"}, **more)
    assert BY_NAME["mfu"].value(strict) == pytest.approx(2e11 / 0.01 / 66.9e12)
    older = plain_row(cell=cell, **more)
    assert BY_NAME["mfu"].value(older) is None
    assert "TF32" in (columns.null_reason(BY_NAME["mfu"], older) or "")


# Frame and CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[], [plain_row()], ROWS], ids=["none", "plain", "run"])
def test_dtypes_do_not_depend_on_the_rows(rows: list[Row]) -> None:
    kinds = {"text": "string", "int": "Int64", "float": "Float64"}
    assert {str(d) for d in tables.frame(rows).dtypes} <= set(kinds.values())
    assert [str(d) for d in tables.frame(rows).dtypes] == [kinds[column.kind] for column in COLUMNS]


def test_the_frame_keeps_the_order_and_works_as_frames_do() -> None:
    frame = tables.frame(ROWS)
    assert frame["key"].tolist() == [row.key for row in ROWS]
    assert (
        frame[frame.status == "ok"].groupby("resolution").throughput_img_s.max().round(1).to_dict()[256] > 100
    )
    assert frame.top1.isna().sum() == 14
    assert set(json.loads(frame.null_reasons[20])) == {"time", "memory", "accuracy", "validity", "reach"}


def test_csv_reads_back_as_the_frame() -> None:
    read = pd.read_csv(io.StringIO(tables.summary_csv(ROWS)), dtype={c.name: "string" for c in COLUMNS})
    frame = tables.frame(series.in_order(ROWS))
    for column in COLUMNS:
        wanted = frame[column.name]
        got = read[column.name].astype(wanted.dtype)
        pd.testing.assert_series_equal(got, wanted)


def test_csv_never_writes_nan_or_none() -> None:
    cells = {
        cell for line in csv.reader(io.StringIO(tables.summary_csv([*ROWS, plain_row()]))) for cell in line
    }
    assert not cells & {"nan", "NaN", "None", "<NA>", "-1"}


# Hostile text -------------------------------------------------------------------------------------------

HOSTILE = [
    "=cmd()|calc",
    "a|b",
    "a\nb",
    "<script>alert(1)</script>",
    "\x1b[31mred",
    "[bold]x[/bold]",
    "`x` *y* _z_",
]
HOSTILE += [
    "+1",
    "-1",
    "@x",
    "＝1",
    "a\\|b",
    "\u202eevil",
    "# x",
    "[x](javascript:y)",
    "\ud800",
    "\t=1",
    "$x$",
]


def hostile(text: str) -> Row:
    note = records.RowWarning(code=text or "x", message=text, advice=text)
    return plain_row(
        cell={"model": text, "weights": text},
        status="error",
        reason=text,
        null_reasons={"time": text},
        notes=(note,),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    row = hostile(text)
    line = next(csv.DictReader(io.StringIO(tables.summary_csv([row]))))
    for name in ("model", "reason"):
        assert not line[name].startswith(tuple("=+-@＝\t\r"))
        assert "\n" not in line[name]
    markdown = tables.summary_markdown([row])
    assert "<script" not in markdown
    (model,) = [found for found in markdown.splitlines() if found.startswith("| ") and "error" in found]
    bars = len(re.findall(r"(?<!\\)(?:\\\\)*\|", model))
    assert bars == len(re.findall(r"\|", markdown[markdown.index("| model") :].splitlines()[0]))
    for shown in (markdown, terminal([row], 80)):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\ud800-\udfff]", shown)


def test_markdown_escapes_once_and_reads_as_written() -> None:
    assert tables.escape("a_b") == "a_b"
    assert tables.escape("_a_ <b> & `c` [d](e) |") == r"\_a\_ &lt;b&gt; &amp; \`c\` [d\](e) \|"


def test_rich_markup_is_not_obeyed() -> None:
    assert "[bold]x[/bold]" in terminal([hostile("[bold]x[/bold]")], 120)


@given(st.text(max_size=60))
def test_any_text_gives_tables(text: str) -> None:
    rows = [hostile(text), *ROWS[:2]]
    assert len(list(csv.reader(io.StringIO(tables.summary_csv(rows))))) == 4
    assert tables.summary_markdown(rows)
    assert all(len(line) <= 100 for line in terminal(rows, 80).splitlines())


# Layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_long_names_are_folded_and_numbers_never_cut(width: int) -> None:
    row = ROWS[0].model_copy(
        update={
            "cell": ROWS[0].cell.model_copy(
                update={"model": "timm:vit_small_patch16_dinov3.lvd1689m[img_size=1024]"}
            )
        }
    )
    text = terminal([row, *ROWS[1:4]], width)
    assert "…" not in text
    assert all(part in text.replace("\n", " ") for part in ("98.0", "156", "188"))


def test_conditions_that_vary_are_columns_and_those_that_do_not_a_line() -> None:
    other = ROWS[0].model_copy(
        update={"cell": ROWS[0].cell.model_copy(update={"batch_size": 16, "dtype": "bf16"})}
    )
    text = terminal([other, ROWS[0]], 120)
    assert "infer, cpu, 2 threads" in text
    heading = next(line for line in text.splitlines() if line.startswith("model"))
    assert heading.split()[:4] == ["model", "batch", "dtype", "status"] or "batch" in text
    assert text.index("fp32") < text.index("bf16"), "batch 1 comes before batch 16"


def test_each_distinct_reason_stands_once() -> None:
    text = terminal(ROWS, 120)
    assert text.count("no weights ship for MODEL on digits at RES px") == 1
    assert text.count("no top-1:") == 1


def test_reasons_of_one_kind_with_other_numbers_share_a_line() -> None:
    rows = [
        plain_row(cell={"model": name}, status="oom", reason=f"tried to allocate {gib} GiB")
        for name, gib in [("a", 12), ("b", 13.5), ("c", 99)]
    ]
    text = terminal(rows, 120)
    assert "oom: tried to allocate 12 GiB (a at 256 px, and the like in 2 more rows)." in text
    assert "13.5" not in text


def test_growth_needs_two_sizes() -> None:
    assert "Growth" not in tables.summary_markdown(ROWS[:7])
    assert "| vit-n | 3.59 | 3.02 | 3.40 |" in tables.summary_markdown(ROWS)


def test_rows_are_sorted_by_size_then_model() -> None:
    cells = [row.cell for row in series.in_order(ROWS[::-1])]
    assert [(c.resolution, c.model) for c in cells] == sorted((c.resolution, c.model) for c in cells)


def test_what_was_not_asked_for_has_no_footnote() -> None:
    reasons = {"accuracy": "not asked for (--metrics)"}
    row = plain_row(cell={"metrics": ("count",)}, null_reasons=reasons)
    assert "not asked for" not in tables.summary_markdown([row])
    assert "not asked for" in tables.summary_csv([row])
