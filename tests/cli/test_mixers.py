"""`longvis mixers`: the list, tables, figure, rows that fail, resuming, and sentences."""

from __future__ import annotations

import json
import re
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.records import Cell, CountRecord, MemoryRecord, Mode, Row, Status, TimingRecord
from longvis_bench.registry.registry import Registry
from longvis_bench.report.mixers import MixerRow, by_condition, mixer_rows, mixer_table, remarks
from longvis_bench.report.plots.mixers import mixers_figure
from longvis_bench.report.plots.style import style
from longvis_bench.sizes.mixers import NETWORK, frame_macs

pytestmark = pytest.mark.usefixtures("two_threads")

TINY = ("--dim", "16", "--heads", "2", "--blocks", "1", "--quick", "--budget", "0.1", "--threads", "2")


def run(*words: str, code: int = 0, columns: int = 80) -> str:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["mixers", *words])
    assert result.exit_code == code, result.output
    return result.output


def row(
    name: str,
    seconds: float | None,
    *,
    side: int = 96,
    mode: Mode = "train",
    macs: int = 10**12,
    status: Status = "ok",
    **arguments: Any,
) -> Row:
    cell = Cell(
        model=f"mixer:{name}",
        family="mixer",
        variant=name,
        implementation="native",
        arguments={**NETWORK, **arguments},
        resolution=4 * side,
        mode=mode,
    )
    timing = None
    if seconds is not None:
        timing = TimingRecord(samples_s=(seconds,) * 9, warmup_s=(), verdict="stable")
    return Row(
        key=f"{name}{side}{mode}{sorted(arguments.items())}",
        cell=cell,
        status=status,
        reason=None if status == "ok" else "it took longer than 600 s.",
        timing=timing,
        count=CountRecord(params=1, macs=macs, flops=2 * macs, scan_flops=0, coverage=1.0),
        memory=MemoryRecord(peak_bytes=2**30, baseline_bytes=0, source="test"),
    )


def known(*rows: Row) -> list[MixerRow]:
    return mixer_rows(rows, Registry(()).mixers())


def shown(rows: list[MixerRow], width: int = 80) -> str:
    text = StringIO()
    console = Console(file=text, width=width, highlight=False)
    for title, group in by_condition(rows).items():
        console.print(title)
        console.print(mixer_table(group))
    for sentence in remarks(rows):
        console.print(sentence)
    return text.getvalue()


def test_ratios_stand_beside_the_papers_where_tokens_and_network_are_its() -> None:
    rows = known(
        row("full", 3.0),
        row("atlas", 2.0),
        row("window", 1.0, window=16),
        row("ss2d", None, status="timeout"),
    )
    lines = shown(rows, 100).splitlines()
    title = "9,216 tokens (96 x 96) x 768, 12 heads, 4 blocks, MLP ratio 4: train, batch 1, fp32, cpu"
    assert lines[0] == title
    assert "x atlas" in lines[1]
    cells = [re.split(r"  +", line.strip()) for line in lines[3:7]]
    assert [(each[0], each[2], each[3]) for each in cells[:3]] == [
        ("window", "0.50", "0.60"),
        ("atlas", "1.00", "1.00"),
        ("full", "1.50", "1.76"),
    ]
    assert cells[3][:2] == ["ss2d", "timeout"]
    text = " ".join(shown(rows).split())
    assert "Only ratios can be compared" in text
    assert "of atlas, arXiv:2503.12355, Table 3" in text
    assert "it took longer than 600 s." in text


@pytest.mark.parametrize("other", [{"side": 64}, {"mode": "infer"}, {"blocks": 2}, {"mlp_ratio": 2.0}])
def test_the_paper_is_silent_on_other_conditions(other: dict[str, Any]) -> None:
    text = shown(known(row("full", 3.0, **other), row("atlas", 2.0, **other)))
    assert "paper" not in text
    assert "x atlas" in text


def test_without_the_reference_there_is_no_ratio_and_arguments_are_named() -> None:
    text = shown(known(row("window", 1.0, window=8), row("window", 2.0, window=16)))
    assert "atlas" not in text.splitlines()[1]
    assert "window[window=8]" in text


def test_macs_of_one_mixer_leave_the_network_out() -> None:
    rest = frame_macs(384, 10, **NETWORK)
    (found,) = known(row("full", 1.0, macs=rest + 4 * 5_000))
    assert found.mixer_macs == 5_000


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    rows = known(
        *(
            row(name, 0.123456, macs=10**13)
            for name in ("dilated-neighbourhood", "atlas", "bidirectional-scan")
        )
    )
    table = shown(rows, width).splitlines()
    assert max(map(len, table)) <= width
    assert "…" not in "".join(table)


def test_a_panel_per_mode_and_quantity_that_is_known() -> None:
    rows = known(
        *(
            row(name, side / 100, side=side, mode=mode)
            for name in ("full", "window")
            for side in (64, 128)
            for mode in get_args(Mode)
        )
    )
    figure = mixers_figure(rows)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        *(f"{what}, {mode}" for mode in get_args(Mode) for what in ("latency", "peak memory")),
        "MACs of one block's mixer",
    ]
    assert np.asarray(figure.axes[0].lines[0].get_xdata()).tolist() == [4096, 16384]
    assert {text.get_text() for text in figure.axes[0].texts} == {"full", "window"}


def test_the_names_of_all_mixers_stand_apart(tmp_path: Path) -> None:
    variants = Registry(()).mixers()
    rows = known(
        *(
            row(
                *(each.variant, (place + 9) * side**1.8 / 1e6),
                side=side,
                macs=(place + 300) * 10**6 * side**2,
                **each.entry.arguments,
            )
            for place, each in enumerate(variants)
            for side in (64, 96, 128, 256, 512)
        )
    )
    with style():
        figure = mixers_figure(rows)
        figure.savefig(tmp_path / "all.png")
    assert len(figure.axes) == 3
    for axes in figure.axes:
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
        assert len(boxes) == len(variants)
        assert max(box.x1 for box in boxes) < figure.bbox.width
        assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
        assert not [label for label in axes.get_yticklabels() if "$" in label.get_text()]


def test_the_list_has_every_mixer_and_its_paper() -> None:
    text = run("--list", columns=120)
    assert max(map(len, text.splitlines())) <= 120
    for variant in Registry(()).mixers():
        assert variant.variant in text
    assert "arXiv:2503.12355" in text


def test_dry_run_plans_all_mixers_with_the_papers_network() -> None:
    text = run("--dry-run", columns=200)
    assert "mixer:full" in text
    assert "384" in text
    assert "[" not in "".join(line for line in text.splitlines() if "mixer:" in line)


def test_a_sweep_end_to_end(tmp_path: Path) -> None:
    words = ("-m", "window[window=4],none,agent", "--tokens", "64,4", "--mode", "both", *TINY, "-o", "run")
    text = run(*words, "--plot", "mixers.png", columns=100)
    assert "64 tokens (8 x 8) x 16, 2 heads, 1 block, MLP ratio 4: infer" in text
    assert "illegal size" in text
    assert "agent, 4 tokens (2 x 2)" in text
    with Image.open("mixers.png") as image:
        assert image.width > 800
    assert (Path("run") / "summary.md").exists()
    again = run(*words, "--json", columns=100)
    rows = [json.loads(line) for line in again.splitlines() if line.startswith("{")]
    assert len(rows) == 12
    assert "Nothing was measured" in again
    done = [each for each in rows if each["status"] == "ok"]
    assert {each["cell"]["variant"] for each in done} == {"window", "none", "agent"}
    assert all(each["timing"] and each["memory"] for each in done)
    infer = [each for each in done if each["cell"]["mode"] == "infer"]
    assert [each["validity"]["verdict"] for each in infer] == ["ok"] * 4


def test_reach_is_measured_where_asked() -> None:
    words = ("-m", "window[window=4],full", "--tokens", "64", *TINY, "--metrics", "count,reach", "--json")
    rows = [json.loads(line) for line in run(*words).splitlines() if line.startswith("{")]
    assert {each["cell"]["variant"]: each["reach"]["share"] for each in rows} == {"window": 0.25, "full": 1.0}


def test_a_users_mixer_is_measured_beside_ours() -> None:
    folder = Path("models") / "mine"
    folder.mkdir(parents=True)
    (folder / "mixers.toml").write_text(
        'schema = 1\n[mixers.mine]\ntitle = "x"\nsummary = "x"\nfactory = "mine.py:build"\n'
    )
    (folder / "mine.py").write_text(
        "from torch import nn\ndef build(*, dim, heads, grid):\n    return nn.Linear(dim, dim)\n"
    )
    text = run("-m", "mine,none", "--tokens", "64", *TINY, "--metrics", "count")
    assert re.search(r"mine +\S+ k +16\.4 k", text)  # 64 tokens x 16 x 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tokens", "9000"), "--tokens takes square numbers of tokens, like 9216 (96 x 96), not '9000'."),
        (("--mlp-ratio", "-1"), "--mlp-ratio takes a number from 0 up, like 4; 0 for no MLPs, not '-1'."),
        (("-m", "windw"), "unknown mixer 'windw': did you mean window"),
        (("--heads", "7", "-m", "full"), "heads must divide the width of 768"),
        (("--plot", "x.gif"), "--plot takes a file that ends in .png, .svg or .pdf"),
        (
            ("-m", "window", "--tokens", "36"),
            "36 tokens cannot be taken; legal numbers near it: 256 (16 x 16).",
        ),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], message: str) -> None:
    text = " ".join(run(*words, code=2, columns=200).split())
    assert message in text
    assert "Traceback" not in text


def test_other_commands_take_a_mixer_as_a_model() -> None:
    model = "mixer:window[dim=16,heads=2,window=4,blocks=2]"
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["check", model, "--res", "64"])
    assert result.exit_code == 0, result.output
    result = CliRunner(env={"COLUMNS": "100"}).invoke(
        app, ["fit", "--models", model, "--res", "64", "--memory", "8GiB"]
    )
    assert result.exit_code == 0, result.output
    assert "mixer:window" in result.output
