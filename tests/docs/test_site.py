"""The site: pages that are generated for it, and a build that fails on a link into nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from longvis_bench.cli.app import app
from longvis_bench.report.columns import COLUMNS

ROOT = Path(__file__).parents[2]

if not (ROOT / "docs" / "conf.py").is_file():
    pytest.skip("the tests run apart from the source tree", allow_module_level=True)

sys.path.insert(0, str(ROOT / "scripts"))

import docs_pages  # noqa: E402


def options(command: click.Command) -> list[str]:
    """The long names of a command's options."""
    return [name for parameter in command.params for name in parameter.opts if name.startswith("--")]


def test_the_page_of_commands_names_every_command_and_option() -> None:
    page = docs_pages.cli_page()
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        section = page.split(f"## `longvis {name}`\n")[1].split("\n## ")[0]
        for option in options(command):
            assert re.search(rf"`[^`]*{option}\b", section), (name, option)


def test_the_page_of_columns_names_every_column() -> None:
    page = docs_pages.columns_page()
    assert all(f"| `{column.name}` |" in page for column in COLUMNS)


def test_links_of_the_repository_become_links_of_the_site() -> None:
    assert docs_pages.relink("[a](models/vit/README.md)", ROOT) == "[a](models.md#family-vit)"
    assert docs_pages.relink("[a](docs/running.md#statuses)", ROOT) == "[a](../running.md#statuses)"
    assert docs_pages.relink("[a](CHANGELOG.md)", ROOT) == "[a](path:../../CHANGELOG.md)"
    assert docs_pages.relink("[a](https://b.org/c.md)", ROOT) == "[a](https://b.org/c.md)"
    assert docs_pages.relink("[a](#b)", ROOT) == "[a](#b)"


def test_links_into_nowhere_fail_the_build(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("# Title\n\n[a](gone.md) [b](#no-such-heading) ![c](gone.png)\n")
    arguments = ["-W", "--keep-going", "-q", "-c", str(ROOT / "docs"), str(tmp_path), str(tmp_path / "html")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *arguments], capture_output=True, text=True)
    assert done.returncode != 0
    assert all(target in done.stderr for target in ("gone.md", "no-such-heading", "gone.png")), done.stderr
