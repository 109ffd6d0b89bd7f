"""The documentation is executed: every command, file and example of the README and of docs/, in order.

A block marked `<!-- not run: why -->` is left out, one marked `<!-- file: NAME -->` is written under that
name for the commands that follow.  A block of a kind that no test knows fails.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import longvis_bench as lv
from longvis_bench import errors
from longvis_bench.cli.app import app
from longvis_bench.records import ACCEPTED, Status
from longvis_bench.report.compare import UNCLEAR
from longvis_bench.sweep.config import SweepConfig, read_config
from longvis_bench.sweep.config_file import example_text

ROOT = Path(__file__).parents[2]

if not (ROOT / "README.md").is_file():
    pytest.skip("the tests run apart from the source tree", allow_module_level=True)

sys.path.insert(0, str(ROOT / "scripts"))

import readme_parts  # noqa: E402

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted(ROOT.glob("models/*/README.md")),
]
OTHERS = [ROOT / "results" / "README.md", ROOT / "longvis_bench" / "data" / "README.md"]


def short_name(page: Path) -> str:
    """What a test of a page is called."""
    return str(page.relative_to(ROOT))


BLOCK = re.compile(
    r"(?:<!-- (not run|file): ([^>]+) -->\n)?^```(\S+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE
)

LONG = {
    "longvis bench": "run by .ci/run",
    "longvis bench --models atlas-s,mambavision-s --res 2048": "run by .ci/run",
    "python -m pip install -e .": "run by .ci/run",
    "python -m pip install -e '.[dev]'": "run by .ci/run",
    "pytest -n 2": "run by .ci/run",
}
COMPARED = {
    "longvis eval --models convnext-n --res 256 --images 128",
    *(f"longvis {command}" for command in (readme_parts.FIT, readme_parts.REACH)),
}
"""Run by the tests that compare their output with the one shown."""
SILENT = {"text", "{include}", "{toctree}", "{eval-rst}"}
"""Blocks that hold nothing to run: outputs, and what Sphinx replaces."""


class Block(NamedTuple):
    """One fenced block of a page."""

    mark: str
    about: str
    kind: str
    text: str

    def commands(self) -> list[str]:
        """The commands of a shell block that is not left out."""
        if self.kind != "sh" or self.mark in ("not run", "file"):
            return []
        lines = [line.split("#")[0].strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [command.strip() for line in lines if line for command in line.split("&&")]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> list[str]:
    """The commands of a page, in order."""
    return [command for block in blocks(page) for command in block.commands()]


def run(command: str, *more: str) -> str:
    """Run `longvis ...` in this process, with patterns of file names expanded; its output."""
    expanded: list[str] = []
    for argument in shlex.split(command)[1:]:
        found = sorted(map(str, Path().glob(argument))) if not argument.startswith("/") else []
        expanded += found or [argument]
    result = CliRunner().invoke(app, [*expanded, *more])
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.output


def execute(command: str) -> str:
    """Run a command as far as that takes seconds: sweeps without a small budget are planned only."""
    if command.startswith("longvis bench"):
        small = any(sign in command for sign in ("--dry-run", "--budget 0.2", "--metrics count", "--config"))
        here: tuple[str, ...] = () if "--device" in command else ("--device", "cpu")
        here += () if "--repeats" in command else ("--quick",)  # further processes add nothing to an example
        return run(command, *here, *(() if small else ("--dry-run",)))
    if command.startswith("longvis report results/runs/*"):
        run("longvis bench --models vit-n --res 32 --budget 0.2 --device cpu")
    if command.startswith(("longvis fit", "longvis choose")):
        return run(smaller(command))
    if command.startswith("longvis flops"):
        return run(command, "--no-fvcore")
    assert command.startswith("longvis "), f"no test knows how to run {command!r}"
    return run(command)


def smaller(command: str) -> str:
    """The same for nano variants and a small image; `test_large_models_are_asked_about` runs it whole."""
    return re.sub(r"(--res) \d{4}[\d,]*", r"\1 256", re.sub(r"\b(\w+)-[sb]\b", r"\1-n", command))


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, DOCS / "choosing.md"], ids=short_name)
def test_large_models_are_asked_about(page: Path) -> None:
    asked = [command for command in commands(page) if command.startswith(("longvis fit", "longvis choose"))]
    assert asked
    for out in ("results/runs/tiny", "results/runs/first"):
        run(f"longvis bench --models vit-n,convnext-n --res 64 --budget 0.2 --device cpu --quick --out {out}")
    for command in asked:
        run(command)


@pytest.fixture
def slides(tmp_path: Path) -> None:
    """The folder of images that the pages speak of."""
    random = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for label in ("normal", "tumour"):
            folder = tmp_path / "slides" / split / label
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 256, (72, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:03}.png")


@pytest.mark.parametrize("page", PAGES, ids=short_name)
@pytest.mark.usefixtures("slides")
def test_every_example_runs(page: Path) -> None:
    """In the order of the page, in one folder."""
    for block in blocks(page):
        if block.mark == "file":
            Path(block.about.strip()).write_text(block.text, encoding="utf-8")
        if block.mark == "not run" and block.kind in ("python", "toml"):
            continue
        if block.kind == "python":
            run_python(block.text)
        elif block.kind == "toml":
            assert block.mark == "file", f"no command reads {block.text!r}"
            SweepConfig.model_validate(tomllib.loads(block.text))
        elif block.kind == "sh":
            for command in block.commands():
                if command not in {*LONG, *COMPARED}:
                    execute(command)
        else:
            assert block.kind in SILENT, f"no test knows a block of the kind {block.kind!r}"


def test_the_array_script_of_the_scaling_page_runs(tmp_path: Path) -> None:
    """Two tasks, as SLURM would start them, measure every cell once."""
    (script,) = (block for block in blocks(DOCS / "scaling.md") if block.about.strip() == "sweep.sh")
    Path("sweep.sh").write_text(script.text)
    Path("sweep.toml").write_text('models = ["vit-n"]\nresolutions = [32, 64]\nmetrics = ["count"]\n')
    program = tmp_path / "bin" / "longvis"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m longvis_bench "$@"\n')
    program.chmod(0o755)
    for task in ("1", "2"):
        array = {"ID": task, "COUNT": "2", "MIN": "1", "MAX": "2"}
        variables = {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **variables, "PATH": path, "PYTHONPATH": str(ROOT)}
        subprocess.run(["bash", "sweep.sh"], env=environment, check=True, capture_output=True, timeout=120)
    shown = run("longvis merge results/runs/part-* --out results/runs/whole")
    assert "Merged: 2 rows" in shown
    assert "Missing" not in shown


def run_python(text: str) -> None:
    """Execute an example; a factory in it has to give logits."""
    scope: dict[str, Any] = {}
    exec(compile(text, "example", "exec"), scope)
    if "build" in scope:
        import torch

        assert scope["build"](resolution=32, num_classes=5)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_a_block_of_an_unknown_kind_is_seen() -> None:
    """Also one without a kind, and one that is indented, would pass unnoticed."""
    for page in PAGES:
        fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page


def test_long_commands_are_still_in_the_readme() -> None:
    assert set(LONG) <= set(commands(README))


@pytest.mark.parametrize("command", [c for c in LONG if c.startswith("longvis bench")])
def test_long_commands_plan(command: str) -> None:
    assert "cells" in run(command, "--dry-run", "--device", "cpu")


def test_ci_runs_the_long_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for command in ("longvis bench\n", *(c for c in LONG if c != "longvis bench")):
        assert command in ci


def test_ci_checks_everything_once() -> None:
    """The tests of README's second command are those of `make check`, so CI need not run them twice."""
    makefile = (ROOT / "Makefile").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    assert "\ncheck: lint types docs test\n" in makefile
    assert "\nPYTEST ?= pytest -n 2\n" in makefile
    assert re.findall(r"^\s+(make check.*|pytest -n.*)$", ci, re.MULTILINE) == [
        'make check PYTEST="pytest -n 2 --durations=10"'
    ]


def test_the_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert not any("├" in line or line.startswith("longvis_bench/") for line in lines), "a file tree"


@pytest.mark.parametrize("page", readme_parts.pages(), ids=short_name)
def test_generated_parts_are_as_generated(page: Path) -> None:
    """All but those that take long, of which a row is compared below."""
    text = page.read_text(encoding="utf-8")
    assert readme_parts.render(page, leave=readme_parts.LONG) == text, "run: python scripts/readme_parts.py"


@pytest.mark.slow
@pytest.mark.parametrize("part", readme_parts.LONG)
def test_long_parts_are_as_generated(part: str) -> None:
    (page,) = (page for page in readme_parts.pages() if f"<!-- begin: {part} -->" in page.read_text())
    others = set(readme_parts.parts()) - {part}
    assert readme_parts.render(page, leave=others) == page.read_text(encoding="utf-8")


def test_a_row_of_what_fits_is_as_generated() -> None:
    """The command of the page for one model, size and mode, which then has no column of its own."""
    done = CliRunner(env={"COLUMNS": str(readme_parts.WIDTH)}).invoke(
        app, ["fit", "--models", "vit-s", "--res", "2048", "--gpu", "rtx4090", "--mode", "infer"]
    )
    (found,) = (words for line in done.output.splitlines() if (words := line.split())[:1] == ["vit-s"])
    page = [line.split() for line in (DOCS / "choosing.md").read_text().splitlines()]
    assert found in [[word for word in words if word != "infer"] for words in page]


@pytest.mark.usefixtures("two_threads")
def test_a_row_of_reach_is_as_generated() -> None:
    """One seed of one model: its radii lie between those of the page, which are of three."""
    lines = [line.split() for line in (DOCS / "reach.md").read_text().splitlines()]
    (shown,) = (words for words in lines if words[:2] == ["swin-n", "512"])
    found = lv.reach(["swin-n"], [512], seeds=1).iloc[0]
    assert f"{100 * found.reach_share:.1f} %".split() == shown[2:4]
    radii = [found[f"reach_{name}radius_{share}_px"] for name in ("", "trained_") for share in (50, 90)]
    for radius, ends in zip(radii, shown[4:], strict=True):
        low, high = map(float, ends.split("-"))
        assert 0.99 * low <= radius <= 1.01 * high


def test_the_example_configuration_is_as_generated_and_has_the_defaults() -> None:
    """All fields stand in it: those with a default as such, the others as comments that can be used."""
    text = readme_parts.EXAMPLE.read_text(encoding="utf-8")
    assert text == example_text(), "run: python scripts/readme_parts.py"
    content = tomllib.loads(text)
    assert read_config(content) == SweepConfig()
    without = {name for name, field in SweepConfig.model_fields.items() if field.default in (None, ())}
    assert set(content) == set(SweepConfig.model_fields) - without
    for name in without:
        assert f"\n# {name} = " in text


def test_what_the_readme_shows_of_a_task_is_what_the_command_prints() -> None:
    (shown,) = re.findall(r"<!-- begin: classes -->\n```text\n(.*?)\.\.\.", README.read_text(), re.DOTALL)
    command = next(command for command in COMPARED if command.startswith("longvis eval"))
    printed = execute(command)
    assert command in commands(README)
    wanted = [line.split() for line in shown.splitlines() if "─" not in line]
    assert set(map(tuple, wanted)) <= {tuple(line.split()) for line in printed.splitlines()}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=short_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Target and anchor of every link that stays in the repository."""
    for link in re.findall(r"\]\((?!\w+:)([^)]+)\)", page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        yield target, anchor


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and Sphinx give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table of a section, without its head."""
    text = page.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_running_names_every_status_and_exit_code() -> None:
    rows = {status: result for status, _, result in table(DOCS / "running.md", "Statuses")}
    assert {status: result == "yes" for status, result in rows.items()} == {
        status: status in ACCEPTED for status in get_args(Status)
    }
    codes = {code for cell, _ in table(DOCS / "running.md", "Exit codes") for code in cell.split(", ")}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = {str(kind.exit_code) for kind in classes if issubclass(kind, errors.LongvisError)}
    assert codes == {"0", str(UNCLEAR), "70", "130", "143"} | raised


def test_architecture_names_every_package() -> None:
    named = {cells[0] for cells in table(DOCS / "architecture.md", "Packages")}
    package = ROOT / "longvis_bench"
    folders = [path.parent.relative_to(package).as_posix() for path in package.rglob("__init__.py")]
    assert {f"{folder}/" for folder in folders if folder != "."} <= named
    assert {path.stem for path in package.glob("[a-z]*.py")} <= named


def test_the_rooms_for_what_comes_are_empty() -> None:
    """A planned package that exists leaves the list and is described as what it is."""
    rooms = [
        room for cell, _ in table(DOCS / "architecture.md", "Planned packages") for room in cell.split("`, `")
    ]
    assert len(rooms) == 1
    for room in rooms:
        path = ROOT / room if room.startswith("tests/") else ROOT / "longvis_bench" / room
        assert not path.exists(), path
        assert not path.with_suffix(".py").exists(), path


def test_the_glossary_has_twenty_words_in_order() -> None:
    words = [word for word, _ in table(DOCS / "architecture.md", "Glossary")]
    assert len(words) == 20
    assert words == sorted(words)
    assert {"checkpoint", "weights", "status", "warning", "repeat", "window"} <= set(words)


def test_contributing_names_the_files_of_a_family_and_the_rules() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in (
        "models/<family>/card.toml",
        "backbones/<family>.py",
        "sizes/<family>.py",
        "test_<family>.py",
    ):
        assert name in text
    for module in re.findall(r"`(longvis_bench/[\w/]+\.py|scripts/[\w/]+\.py)`", text):
        assert (ROOT / module).is_file(), module


def test_every_module_that_a_page_names_is_there() -> None:
    """`sweep/plan` on docs/architecture.md."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## The life of a cell")[1]
    text = text.split("## Planned packages")[0]
    for name in re.findall(r"`([a-z_]+/[a-z_]*)`", text):
        found = [folder / name for folder in (ROOT, ROOT / "longvis_bench")]
        assert any(path.exists() or path.with_suffix(".py").exists() for path in found), name


def test_scripts_say_what_they_are() -> None:
    for script in (ROOT / "scripts").rglob("*.py"):
        assert ast.get_docstring(ast.parse(script.read_text())), script
