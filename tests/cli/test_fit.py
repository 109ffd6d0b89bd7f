"""`longvis fit`: tables of two widths, JSON, the figure, and sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.cli.fit import complete_gpus

ASKED = ("fit", "--models", "vit-n,atlas-n", "--res", "256,320", "--memory", "8GiB")


def run(*words: str, width: int = 80) -> str:
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, [*ASKED, *words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_per_model_size_and_way(width: int) -> None:
    out = run("--mode", "infer,train", "--grad-checkpointing", width=width)
    lines = out.splitlines()
    assert "Predicted, not measured" in lines[0]
    assert sum(" yes " in line for line in lines) == 6 + 3
    assert sum("train, checkpointed" in line for line in lines) == 4
    assert "320 px is not a legal size" in " ".join(out.split())
    assert all(len(line) <= width for line in lines if not line.startswith("- "))
    assert ("activations" in out) == (width == 120)


def test_json_is_a_row_per_line() -> None:
    rows = [json.loads(line) for line in run("--json").splitlines() if line.startswith("{")]
    assert [(row["model"], row["resolution"], row["fits"]) for row in rows] == [
        ("vit-n", 256, "yes"),
        ("vit-n", 320, "yes"),
        ("atlas-n", 256, "yes"),
        ("atlas-n", 320, None),
    ]
    assert rows[3]["predicted_peak_bytes"] is None


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_figure(kind: str) -> None:
    file = Path(f"fit.{kind}")
    run("--plot", str(file))
    content = file.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    if kind == "svg":
        for word in (b">vit-n<", b">atlas-n<", b">141<", b">24<"):
            assert word in content
        run("--plot", "again.svg")
        assert Path("again.svg").read_bytes() == content


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--memory", "24"), 2, "24 what? 24GiB"),
        (("--gpu", "rtx490"), 2, "did you mean rtx4090"),
        (("--models", "vitt-n", "--memory", "1GiB"), 2, "unknown model"),
        (("--models", "atlas-n", "--res", "1000", "--memory", "1GiB"), 2, "not a legal size"),
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
