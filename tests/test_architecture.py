"""The house: arrows that run one way, a small root, a family in three files, modules of bounded length."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from longvis_bench.registry.discovery import built_in_cards

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "longvis_bench"

FAMILY_FILES = ("backbones", "sizes")
"""Folders that hold a file per family, beside its card."""
NAMED = {
    "atlas": {
        "training/recipe.py": "a recipe is named after the paper that states it",
        "sweep/config_file.py": "models of an example line, which is commented out",
    },
    "vit": {"sweep/config_file.py": "models of an example line, which is commented out"},
}
"""Other modules in which a family's name stands, and why."""

PRIVATE_NAMES_IN = {"measure/latency/test_simulated_clocks.py"}
"""Tests that still use a private name of the package; none is to be added."""

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree")


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache"], cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)}
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and of its contract, to break."""
    shutil.copytree(PACKAGE, tmp_path / "longvis_bench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_follow_the_arrows() -> None:
    found = _lint(ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("records.py", "import longvis_bench.data.protocol"),
        ("runs/merge.py", "import longvis_bench.sweep.session"),
        ("measure/flops/formulas.py", "from longvis_bench.isolation import runner"),
        ("ops/windows.py", "from longvis_bench.registry.card import Card"),
    ],
)
def test_an_import_against_the_arrows_fails_the_contract(copy: Path, module: str, line: str) -> None:
    file = copy / "longvis_bench" / module
    file.write_text(file.read_text() + f"\n\ndef _against() -> None:\n    {line}\n")
    found = _lint(copy)
    assert found.returncode != 0
    assert "is not allowed to import" in found.stdout


def test_a_package_that_the_contract_does_not_name_fails_it(copy: Path) -> None:
    (copy / "longvis_bench" / "misc.py").write_text('"""A module without a place."""\n')
    assert _lint(copy).returncode != 0


def test_the_root_holds_only_what_every_package_may_import() -> None:
    modules = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(modules) <= 16, modules


def test_no_module_is_longer_than_500_lines_but_declared_tables() -> None:
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name for name, lines in lengths.items() if lines > 500} <= {"report/columns.py"}


def test_heavy_imports_are_allowed_by_folder_never_by_file() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ignored = settings["tool"]["ruff"]["lint"]["per-file-ignores"]
    assert all(pattern.endswith("/**") for pattern, rules in ignored.items() if "TID253" in rules)


@cache
def _code(path: Path) -> str:
    """Source without docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _mentions(family: str) -> set[str]:
    """Modules outside the family's own files in which its name stands, comments and docstrings apart."""
    word = re.compile(rf"""["'`.]{family}["'`.:-]""")
    modules = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
    return {
        name.as_posix()
        for name, path in modules.items()
        if name.parts[0] not in FAMILY_FILES and word.search(_code(path))
    }


@pytest.mark.parametrize("family", [found.card.family for found in built_in_cards()])
def test_a_family_is_named_in_its_own_files_only(family: str) -> None:
    assert _mentions(family) == set(NAMED.get(family, ()))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _root(node: ast.expr) -> str | None:
    """The name at the left end of `name.attribute(...).attribute`."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a module imports of the package, and under which name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            parts = (node.module or "").split(".")
            yield from (
                (alias.asname or alias.name, name) for alias in node.names for name in (*parts, alias.name)
            )
        if isinstance(node, ast.Import):
            for alias in node.names:
                root, *inner = alias.name.split(".")
                if root == PACKAGE.name:
                    yield from ((alias.asname or root, name) for name in (root, *inner))


def private_names(source: str) -> set[str]:
    """Names of the package with a leading underscore that a module imports, reads or replaces."""
    tree = ast.parse(source)
    imports = list(_imported(tree))
    bound, found = {local for local, _ in imports}, {name for _, name in imports}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _root(node) in bound:
            found.add(node.attr)
        if isinstance(node, ast.Call):
            words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            texts = [word for word in words if isinstance(word, str)]
            if node.args and _root(node.args[0]) in bound:  # setattr(module, "name", ...)
                found.update(texts)
            found.update(part for t in texts if t.startswith(f"{PACKAGE.name}.") for part in t.split("."))
    return {name for name in found if _is_private(name)}


def test_tests_use_no_private_name_of_the_package() -> None:
    folder = ROOT / "tests"
    users = {
        path.relative_to(folder).as_posix(): names
        for path in folder.rglob("*.py")
        if (names := private_names(path.read_text()))
    }
    assert {file: names for file, names in users.items() if file not in PRIVATE_NAMES_IN} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from longvis_bench.files import _whole", {"_whole"}),
        ("from longvis_bench.files import _whole as whole", {"_whole"}),
        ("from longvis_bench._files import whole", {"_files"}),
        ("import longvis_bench._files", {"_files"}),
        ("import longvis_bench.files\nlongvis_bench.files._whole()", {"_whole"}),
        ("from longvis_bench import files as f\nf._whole(1)", {"_whole"}),
        ("def test():\n    from longvis_bench import files\n    files.A()._b", {"_b"}),
        ("from longvis_bench import files\nmonkeypatch.setattr(files, '_whole', None)", {"_whole"}),
        ("from longvis_bench import files\ngetattr(files, '_whole')", {"_whole"}),
        ("monkeypatch.setattr('longvis_bench.files._whole', None)", {"_whole"}),
        ("import torch\nfrom longvis_bench import files\ntorch._C\nfiles.__file__", set()),
        ("self._calls = 1\nos._exit(0)", set()),
    ],
)
def test_a_private_name_is_found_however_it_is_used(source: str, names: set[str]) -> None:
    assert private_names(source) == names
