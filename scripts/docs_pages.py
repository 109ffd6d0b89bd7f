"""The pages of docs/ that nobody writes: `docs/conf.py` calls this before each build.

    cli.md        every command and option, by typer's own `utils docs`
    columns.md    results/README.md, which is generated from `longvis_bench/report/columns.py`
    data.md       longvis_bench/data/README.md
    models.md     the README of every family
    readme.md     README.md, which docs/index.md includes

They are not committed, so that they cannot be older than what they describe.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = DOCS / "generated"
PAGES = {
    "results/README.md": GENERATED / "columns.md",
    "longvis_bench/data/README.md": GENERATED / "data.md",
    "README.md": DOCS / "index.md",
}
"""Files of the repository that are pages of the site under another name."""


def write(folder: Path) -> list[Path]:
    """Write every generated page; those that are equal already keep their time, so that builds stay quick."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"cli.md": cli_page(), "columns.md": columns_page(), "models.md": models_page()}
    pages |= {"data.md": data_page(), "readme.md": readme_page()}
    for name, text in pages.items():
        page = folder / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def cli_page() -> str:
    """Commands, arguments and options, as the typer app declares them."""
    command = [sys.executable, "-m", "typer", "longvis_bench.cli.app", "utils", "docs", "--name", "longvis"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    page = re.sub(
        r"\*\*Commands\*\*:\n\n(\* .*\n)+\n?", "", done.stdout
    )  # cut short; the headings say the same
    return page.replace("# `longvis`", "# Commands and options", 1)


def columns_page() -> str:
    """The files of a run and every column of its tables."""
    return relink((ROOT / "results" / "README.md").read_text(encoding="utf-8"), ROOT / "results")


def data_page() -> str:
    """The README of the data sets."""
    source = ROOT / "longvis_bench" / "data"
    return relink((source / "README.md").read_text(encoding="utf-8"), source)


def models_page() -> str:
    """The README of every family, one after the other."""
    parts = ["# Models\n"]
    for readme in sorted((ROOT / "models").glob("*/README.md")):
        text = re.sub(r"^#", "##", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)
        parts.append(f"(family-{readme.parent.name})=\n\n{relink(text, readme.parent)}")
    return "\n".join(parts)


def readme_page() -> str:
    """The README, to be included by docs/index.md."""
    return relink((ROOT / "README.md").read_text(encoding="utf-8"), ROOT, page=DOCS)


def relink(text: str, folder: Path, page: Path = GENERATED) -> str:
    """Links that hold in the repository become links that hold in the site.

    Arguments:
        text: Markdown.
        folder: where its links start.
        page: folder of the page it becomes.
    """

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        path = (folder / target).resolve()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        family = re.fullmatch(r"models/(\w+)/README\.md", name)
        if family:
            return f"]({os.path.relpath(GENERATED / 'models.md', page)}#family-{family[1]})"
        path = PAGES.get(name, path)
        where = os.path.relpath(path, page) + (f"#{anchor}" if anchor else "")
        outside = path.suffix == ".md" and not path.is_relative_to(DOCS)
        return f"]({'path:' if outside else ''}{where})"

    return re.sub(r"(\]\()(?!\w+:|#)([^)\s]+)\)", link, text)


if __name__ == "__main__":
    for written in write(GENERATED):
        print(written.relative_to(ROOT))
