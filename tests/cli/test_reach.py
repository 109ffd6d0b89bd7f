"""`longvis reach`: the table, JSON, the page of pictures, the interface, and sentences."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import longvis_bench as lv
from longvis_bench.advice.reach import ReachRow
from longvis_bench.advice.reach_figure import MOST, draw_reach
from longvis_bench.cli.app import app
from longvis_bench.cli.reach import show
from longvis_bench.errors import LongvisError
from longvis_bench.measure.reach import Influence, Reach

pytestmark = pytest.mark.usefixtures("two_threads")


def run(*words: str, code: int = 0) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["reach", *words])
    assert result.exit_code == code, result.output
    return result.output


def row(model: str, share: float = 1.0, *, trained: bool = False, **more: object) -> ReachRow:
    maps = np.zeros((9, 32, 32))
    maps[:, :8, :8] = 1 / 64
    seen = maps > 0
    centres = tuple((64.0 * y, 64.0 * x) for y in (1, 4, 7) for x in (1, 4, 7))
    reach = Reach(
        basis="logits" if share < 0.1 else "map",
        share=share,
        tokens=9,
        fresh=((8.14, 20.0), (9.0, 31.5)),
        trained=((12.0, 123.4),) if trained else (),
        influence=Influence(maps, seen, centres),
    )
    return ReachRow(model, "vit", 512, reach, **more)  # type: ignore[arg-type]


def shown(rows: list[ReachRow], width: int) -> str:
    text = StringIO()
    show(Console(file=text, width=width, highlight=False), rows)
    return text.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_per_model_within_the_terminal(width: int) -> None:
    none = ReachRow("atlas-n", "atlas", 500, None, reason="500 px is not a legal size: it needs many words.")
    text = shown(
        [row("mambavision-l2", 0.9999), row("vit-n", trained=True), row("swin-n", 0.05), none], width
    )
    assert max(map(len, text.replace(none.reason or "", "").splitlines())) <= width
    assert "> 99.9 %" in text
    assert "100.0 %" in text
    assert "8.1-9.0" in text
    assert "5.0 %*" in text
    assert "pairs of pixels" in text
    assert "atlas-n, 500 px: 500 px is not a legal size" in text


def test_without_trained_weights_there_are_no_columns_of_dashes() -> None:
    text = shown([row("vit-n")], 80)
    assert "trained" not in text
    assert "*" not in text


def test_json_has_a_row_per_model_and_size() -> None:
    lines = run("-m", "vit-n,atlas-n", "-r", "64,100", "--seeds", "1", "--json").splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(each["model"], each["resolution"]) for each in rows] == [
        *(("vit-n", 64), ("vit-n", 100)),
        *(("atlas-n", 64), ("atlas-n", 100)),
    ]
    assert rows[0]["reach_share"] == 1.0
    assert 0 < rows[0]["reach_radius_50_px"] < rows[0]["reach_radius_90_px"]
    assert rows[0]["reach_trained_radius_50_px"] is None
    assert rows[1]["reach_share"] is None
    assert "100 px is not a legal size" in rows[1]["reason"]


def test_shipped_weights_are_measured_and_named() -> None:
    frame = lv.reach(["convnext-n"], [256], seeds=1)
    assert frame["weights"].tolist() == ["convnext-n-digits-256.safetensors"]
    assert frame["reach_trained_radius_90_px"][0] != frame["reach_radius_90_px"][0]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_page_is_written_in_each_format(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"reach.{kind}"
    draw_reach([row("vit-n"), row("swin-n", 0.3, trained=True), row("a" * 80)], file)
    assert file.stat().st_size > 5000
    if kind == "svg":
        text = file.read_text(encoding="utf-8")
        assert "sees 100 %; 90 % in 26 px" in text
        assert "vit-n, fresh" in text
        assert "swin-n, trained" in text


def test_sentences(tmp_path: Path) -> None:
    with pytest.raises(LongvisError, match=f"up to {MOST} models"):
        draw_reach([row(f"net-{number}") for number in range(MOST + 1)], tmp_path / "a.png")
    with pytest.raises(LongvisError, match=r"ends in \.png, \.svg or \.pdf"):
        draw_reach([row("vit-n")], tmp_path / "a.jpg")
    for words, said in {
        ("-m", "vit-n", "-r", "64,128", "--plot", "a.png"): "--plot draws one size",
        ("-m", "vit-n", "-r", "100"): "100 px is not a legal size",
        ("-m", "vit-m"): "did you mean",
        ("-m", "vit-n", "--data", "folder:x"): "weights ship for digits and pairs",
        ("-m", "vit-n", "--seeds", "0"): "--seeds takes",
    }.items():
        assert said in " ".join(run(*words, code=2).split()), words
