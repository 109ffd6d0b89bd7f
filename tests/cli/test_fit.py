"""`longvis fit`: tables of two widths, JSON, the figure, and sentences."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from longvis_bench.advice.figure import draw_fit
from longvis_bench.advice.fit import FitRow
from longvis_bench.cli.app import app
from longvis_bench.cli.fit import complete_gpus, show
from longvis_bench.errors import LongvisError

ASKED = ("fit", "--models", "vit-n", "--res", "256,250", "--memory", "1GiB")
GIB = 1 << 30


def run(*words: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*ASKED, *words])
    assert result.exit_code == 0, result.output
    return result.output


def row(model: str, resolution: int, fits: str | None, **more: object) -> FitRow:
    parts = {"weights": GIB, "optimizer": 2 * GIB, "activations": 5 * GIB, "context": GIB // 2}
    need = sum(parts.values())
    base = FitRow(
        model=model,
        family="vit",
        variant=model,
        implementation="timm",
        resolution=resolution,
        mode="infer",
        output="logits",
        grad_checkpointing=False,
        batch_size=1,
        dtype="bf16",
        device="cuda",
        memory_bytes=24 * GIB,
        fits=fits,
        reason="3000 px is not a legal size: atlas needs something of many words that a line cannot hold.",
    )
    if fits is not None:
        base = replace(base, needed_low_bytes=need - GIB, needed_bytes=need, parts_bytes=parts)
    return replace(base, largest_batch=3, largest_resolution=16384, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_per_model_size_and_way_within_the_terminal(width: int) -> None:
    rows = [
        row("mambavision-l2", 4096, "yes", batch_size=8, attention="flash"),
        row("mambavision-l2", 4096, "tight", mode="train"),
        row("mambavision-l2", 4096, "no", mode="train", grad_checkpointing=True),
        row("atlas-b", 3000, None),
    ]
    text = StringIO()
    show(Console(file=text, width=width), rows, "rtx4090")
    lines = text.getvalue().splitlines()
    assert "Predicted, not measured: what fits into 24.0 GiB of rtx4090, bf16" in lines[0]
    assert [word for word in text.getvalue().split() if word in ("yes", "tight", "no")][:3] == [
        "yes",
        "tight",
        "no",
    ]
    assert any(line.startswith("- atlas-b, 3000 px: 3000 px is not a legal size") for line in lines)
    assert all(len(line) <= width for line in lines if not line.startswith("- "))
    assert "7.50-8.50" in text.getvalue()
    assert ("activations" in text.getvalue()) == ("flash" in text.getvalue()) == (width == 120)


def test_the_table_of_the_command() -> None:
    out = run()
    assert sum(" yes " in line for line in out.splitlines()) == 1
    assert "250 px is not a legal size" in " ".join(out.split())


def test_json_is_a_row_per_line() -> None:
    rows = [json.loads(line) for line in run("--json").splitlines() if line.startswith("{")]
    assert [(row["model"], row["resolution"], row["fits"]) for row in rows] == [
        ("vit-n", 256, "yes"),
        ("vit-n", 250, None),
    ]
    assert rows[1]["predicted_peak_bytes"] is None


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_figure(kind: str) -> None:
    rows = [row("vit-n", 256, "yes"), row("vit-n", 512, "no"), row("atlas-n", 512, None)]
    draw_fit([*rows, row("swin-n", 256, "yes", mode="train")], Path(f"fit.{kind}"))
    content = Path(f"fit.{kind}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    if kind == "svg":
        for word in (b">vit-n<", b">swin-n<", b">141<", b">24<"):
            assert word in content
        assert b">atlas-n<" not in content
        draw_fit([*rows, row("swin-n", 256, "yes", mode="train")], Path("again.svg"))
        assert Path("again.svg").read_bytes() == content


def test_a_figure_without_values_is_refused() -> None:
    with pytest.raises(LongvisError, match="nothing to draw"):
        draw_fit([row("atlas-n", 512, None)], Path("fit.png"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--memory", "24"), 2, "24 what? 24GiB"),
        (("--gpu", "rtx490"), 2, "did you mean rtx4090"),
        (("--models", "vitt-n", "--memory", "1GiB"), 2, "unknown model"),
        (("--models", "vit-n", "--res", "1000", "--memory", "1GiB"), 2, "not a legal size"),
        (("--models", "vit-n", "--memory", "1GiB", "--plot", "fit.jpg"), 2, ".png, .svg or .pdf"),
        ((), 2, "give the memory to fit into"),
    ],
)
def test_bad_input(words: tuple[str, ...], code: int, message: str) -> None:
    models = () if "--models" in words else ("--models", "vit-n")
    sizes = () if "--res" in words else ("--res", "64")
    result = CliRunner().invoke(app, ["fit", *models, *sizes, *words])
    assert result.exit_code == code
    assert message in result.output
    assert result.output.count("error:") == 1


def test_names_of_gpus_complete() -> None:
    assert complete_gpus("a100") == ["a100-40", "a100-80"]


def test_features_are_named_above_the_table() -> None:
    for output, said in (("features", "bf16, features"), ("logits", "bf16")):
        text = StringIO()
        show(Console(file=text, width=80), [row("vit-n", 256, "yes", output=output)])
        assert text.getvalue().splitlines()[0].endswith(said)
