"""The documentation is executed: every command and example of the README, and its generated parts."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longvis_bench.cli.app import app

ROOT = Path(__file__).parents[2]

if not (ROOT / "README.md").is_file():
    pytest.skip("the tests run apart from the source tree", allow_module_level=True)

README = (ROOT / "README.md").read_text()
SHELL = re.compile(r"(<!-- not run: [^>]+ -->\n)?```sh\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)

LONG = {
    "longvis bench": "run by .ci/run",
    "longvis bench --models atlas-s,mambavision-s --res 2048": "run by .ci/run",
    "python -m pip install -e .": "run by .ci/run",
    "python -m pip install -e '.[dev]'": "run by .ci/run",
    "pytest -n 2": "run by .ci/run",
}


def commands() -> list[str]:
    """Every command of the README's shell blocks, in order, but those marked as not run."""
    lines = [
        line.split("#")[0].strip()
        for marked, block in SHELL.findall(README)
        if not marked
        for line in block.splitlines()
    ]
    return [command.strip() for line in lines if line for command in line.split("&&")]


def run(command: str, *more: str) -> str:
    arguments = shlex.split(command)[1:]
    expanded: list[str] = []
    for argument in arguments:
        found = sorted(map(str, Path().glob(argument))) if not argument.startswith("/") else []
        expanded += found or [argument]
    result = CliRunner().invoke(app, [*expanded, *more])
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.output


def test_long_commands_are_still_in_the_readme() -> None:
    assert set(LONG) <= set(commands())


@pytest.mark.parametrize("command", [c for c in LONG if c.startswith("longvis bench")])
def test_long_commands_plan(command: str) -> None:
    assert "cells" in run(command, "--dry-run", "--device", "cpu")


def test_ci_runs_the_long_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for command in (
        "longvis bench\n",
        "longvis bench --models atlas-s,mambavision-s --res 2048",
        "pytest -n 2",
    ):
        assert command in ci


def test_every_other_command_runs() -> None:
    """In the README's order, in one folder, measuring with a small budget; large sizes are planned only."""
    for command in commands():
        if command in LONG:
            continue
        if command.startswith("longvis bench") and "--dry-run" not in command:
            run(command, "--dry-run", "--device", "cpu")
        elif command.startswith("longvis report"):
            run("longvis bench --models vit-n --res 32 --budget 0.2 --device cpu --metrics count,time")
            run(command)
        elif command.startswith("longvis flops"):
            run(command, "--no-second-opinion")
        else:
            assert command.startswith("longvis "), f"no test knows how to run {command!r}"
            run(command)


@pytest.mark.parametrize("block", PYTHON.findall(README), ids=lambda block: block.split("\n")[0])
def test_python_examples_run(block: str) -> None:
    scope: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), scope)
    if "build" in scope:
        import torch

        assert scope["build"](resolution=32, num_classes=5)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the file tree is what git tracks")
def test_generated_parts_are_as_generated() -> None:
    spec = importlib.util.spec_from_file_location("readme_parts", ROOT / "scripts" / "readme_parts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.render(README) == README, "run: python scripts/readme_parts.py"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *ROOT.glob("models/*/README.md"), ROOT / "results/README.md"]
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
