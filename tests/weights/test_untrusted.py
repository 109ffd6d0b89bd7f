"""What strangers wrote, cards, weights, rows and names, is read and shown, and never run or obeyed."""

from __future__ import annotations

import csv
import io
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import longvis_bench as lv
from longvis_bench.cli.app import app
from longvis_bench.cli.progress import line
from longvis_bench.errors import CardError, CheckpointError
from longvis_bench.records import Cell, Row
from longvis_bench.registry.discovery import plug_in_folder
from longvis_bench.report.plots.write import write_plots
from longvis_bench.report.summary import summary_csv, summary_markdown
from longvis_bench.runs.directory import RunDirectory
from longvis_bench.text import clean, has_controls
from longvis_bench.weights.reading import read_tensors
from longvis_bench.weights.store import read_metadata

CARD = """
schema = 1
family = "theirs"
title = "theirs"
summary = "theirs"
factory = "theirs.py:build"
implementation = "user"
licences = { code = "none" }
resolution = { plan = "theirs.py:plan" }
variants = { theirs-n = {} }
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A card in ./models whose code leaves a file behind as soon as it is imported."""
    folder = tmp_path / "models" / "theirs"
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(CARD)
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef build(**_): ...\n")
    return tmp_path / "ran"


OTHERS = (
    ("models",),
    ("models", "vit"),
    ("models", "theirs"),
    ("bench", "--models", "vit-n", "--res", "64", "--dry-run", "--device", "cpu"),
    ("bench", "--dry-run", "--device", "cpu"),
    ("check", "vit-n", "--res", "32"),
    ("flops", "vit-n", "--res", "64", "--no-fvcore"),
    ("report", "run"),
    ("doctor",),
    ("new", "mine"),
)


@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_code_of_a_card_runs_only_where_its_model_is_named(
    theirs: Path, arguments: tuple[str, ...], row: Row
) -> None:
    with RunDirectory(Path("run")) as directory:
        directory.append(row)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not theirs.exists()


def test_code_of_a_card_runs_where_its_model_is_named(theirs: Path) -> None:
    """Proves that the test above can fail."""
    CliRunner().invoke(app, ["bench", "--models", "theirs-n", "--res", "64", "--dry-run", "--device", "cpu"])
    assert theirs.exists()


def test_a_sweep_of_another_model_runs_no_code_of_a_card(theirs: Path) -> None:
    words = ("--res", "64", "--metrics", "count", "--device", "cpu", "--out", "run")
    done = CliRunner().invoke(app, ["bench", "--models", "vit-n", *words])
    assert done.exit_code == 0, done.output
    assert not theirs.exists()


def test_finding_a_plug_in_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the packages above the folder that it names."""
    (tmp_path / "plugged" / "cards").mkdir(parents=True)
    (tmp_path / "plugged" / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("plugged", "plugged.cards", "longvis_bench.models")
    assert plug_in_folder(point) == tmp_path / "plugged" / "cards"
    with pytest.raises(CardError, match="not an installed package"):
        plug_in_folder(EntryPoint("plugged", "plugged.nothing", "longvis_bench.models"))


WEIGHTS = 'weights = [{variant = "theirs-n", dataset = "d", resolution = 1, num_classes = 1, file = "%s"}]'
TRAVERSALS = [
    WEIGHTS % "../x",
    WEIGHTS % "/etc/passwd",
    'implementations = { upstream = { factory = "../theirs.py:build" } }',
    'implementations = { upstream = { factory = "..\\\\theirs.py:build" } }',
    'default_cuda = "../theirs"',
]


@pytest.mark.parametrize("extra", TRAVERSALS)
def test_a_card_names_no_file_elsewhere(theirs: Path, extra: str) -> None:
    Path("models/theirs/card.toml").write_text(extra + CARD)
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 2
    assert "does not follow the schema" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('title = "\\u001b[31mred"', "control characters"),
        ("note = " + "[" * 5000, "nested too deeply|not valid TOML"),
        ("note = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_a_card_that_is_hostile_as_text(theirs: Path, text: str, words: str) -> None:
    Path("models/theirs/card.toml").write_text(text + CARD.replace('title = "theirs"', ""))
    with pytest.raises(CardError, match=words):
        lv.list_models()


# Weights -------------------------------------------------------------------------------------------------


def _safetensors(header: object, size: int = 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def _tensor(begin: int, end: int, shape: tuple[int, ...] = (4,)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": _tensor(0, 32, (8,))},  # beyond the end
        {"a": _tensor(16, 0)},  # backwards
        {"a": _tensor(0, 16), "b": _tensor(0, 16)},  # over each other
        {"a": _tensor(0, 8, (2,))},  # a hole at the end
        {"a": _tensor(0, 16, (400,))},  # fewer bytes than the shape needs
        {"a": _tensor(0, 16, (2**62, 2**62))},  # a product that overflows
        {"a": _tensor(-16, 0)},
        {"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}},
        b"{" + b"[" * 100_000,
        b'{"a": ',
    ],
    ids=range(10),
)
def test_safetensors_with_wrong_offsets_are_refused(header: object) -> None:
    Path("x.safetensors").write_bytes(_safetensors(header))
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_tensors("x.safetensors")


def test_a_tensor_that_repeats_one_value_into_gigabytes_is_refused() -> None:
    torch.save({"pos_embed": torch.ones(1).expand(1, 1 << 24, 64)}, "x.pth")
    assert Path("x.pth").stat().st_size < 4096
    with pytest.raises(CheckpointError, match=r"unsafe: .* would become 4.00 GiB of tensors"):
        read_tensors("x.pth")


def test_names_of_tensors_are_only_names(tmp_path: Path) -> None:
    """A name is looked up in the model; no file is ever called by it."""
    from safetensors.torch import save_file

    from longvis_bench.weights.matching import load_weights

    model = torch.nn.Linear(2, 2)
    state = dict(model.state_dict())
    save_file({**state, "../../owned": torch.ones(1), "__class__.x": torch.ones(1)}, "x.safetensors")
    before = sorted(tmp_path.parent.iterdir())
    report = load_weights(model, "x.safetensors")
    assert sorted(report.unused) == ["../../owned", "__class__.x"]
    assert sorted(tmp_path.parent.iterdir()) == before


def test_metadata_nested_without_end_is_none_at_all() -> None:
    header = {"__metadata__": {"longvis": "[" * 100_000}, "a": _tensor(0, 16)}
    Path("x.safetensors").write_bytes(_safetensors(header))
    assert read_metadata("x.safetensors") == {}


# Rows and names ------------------------------------------------------------------------------------------

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n@x", "\u200b=1", "＝1", "\x1b=1"]


def _row(cell: Cell, text: str) -> Row:
    cell = cell.model_copy(update={"model": text, "weights": text, "variant": text})
    return Row(key="k", cell=cell, machine=text, status="error", reason=text, log_tail=text)


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_the_csv_is_a_formula_and_results_read_back_as_stored(cell: Cell, text: str) -> None:
    row = _row(cell, text)
    with RunDirectory(Path("run")) as directory:
        directory.append(row)
    for found in csv.reader(io.StringIO(summary_csv([row]))):
        assert not [one for one in found if one.startswith(tuple("=+-@＝＋－＠\t\r\n "))]
    assert lv.load_results("run")["reason"][0] == text


ESCAPES = ["\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\x08\x08b", "\u202eevil", "[red]x[/red]", "[/]"]


@pytest.mark.parametrize("text", ESCAPES)
def test_no_text_of_a_row_reaches_the_terminal_as_a_command(cell: Cell, text: str) -> None:
    row = _row(cell, text)
    with RunDirectory(Path("run")) as directory:
        directory.append(row)
    result = CliRunner().invoke(app, ["report", "run"])
    assert result.exit_code == 0
    for shown in (result.stdout, line(row).plain, summary_markdown([row])):
        assert not has_controls(shown)
    assert clean(text) in line(row).plain
    if text.startswith("["):
        assert text in result.stdout


@pytest.mark.parametrize("text", ["\x1b[31mred", "[/]", "[red]x"])
def test_names_in_messages_are_not_obeyed(text: str, row: Row) -> None:
    with RunDirectory(Path(text)) as directory:
        directory.append(row)
    for arguments in (("report", text), ("merge", "no\x1b[31mthing", "--out", text), ("models", text)):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (0, 2)
        assert not has_controls(result.stderr)


@pytest.mark.parametrize("text", ["$\\frac{", "$x^2$", "a_b^c", "</text><script>", "&amp;"])
def test_figures_show_texts_as_they_are(cell: Cell, text: str) -> None:
    """No mathematics is read, so none can be wrong, and no element is opened."""
    from xml.etree import ElementTree

    for path in write_plots([_row(cell, text)], Path("plots")):
        if path.suffix == ".svg":
            content = path.read_text(encoding="utf-8")
            root = ElementTree.fromstring(content)
            assert not [element for element in root.iter() if element.tag.endswith("script")]
            assert text in "".join(root.itertext())
