"""The wheel: what is in it and what is not; versions agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from longvis_bench import __version__

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the tests run apart from the source tree"
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [
        sys.executable,
        "-m",
        "build",
        "-q",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return file.namelist()


def cards_seen_with(*folders: Path, cwd: Path) -> Path:
    """Where a fresh interpreter with these folders on its path finds the built-in cards."""
    code = (
        "from longvis_bench.registry.discovery import built_in_folder as b; "
        "from longvis_bench.registry.registry import Registry; Registry(); print(b())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def test_an_unpacked_wheel_finds_its_own_cards(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "site")
    assert cards_seen_with(tmp_path / "site", cwd=tmp_path) == tmp_path / "site" / "longvis_bench" / "_models"


def test_a_stale_copy_of_an_editable_install_is_not_looked_at(tmp_path: Path) -> None:
    """hatchling leaves `_models` in site-packages, before the source tree on the path."""
    stale = tmp_path / "site" / "longvis_bench" / "_models" / "stale"
    stale.mkdir(parents=True)
    (stale / "card.toml").write_text("not even a card")
    assert cards_seen_with(tmp_path / "site", ROOT, cwd=tmp_path) == ROOT / "models"


def test_a_foreign_models_folder_is_not_looked_at(tmp_path: Path) -> None:
    """A tree whose pyproject.toml is somebody else's brings no built-in cards."""
    copy = tmp_path / "theirs"
    shutil.copytree(ROOT / "longvis_bench", copy / "longvis_bench", ignore=shutil.ignore_patterns("_models"))
    (copy / "models").mkdir()
    (copy / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    with pytest.raises(subprocess.CalledProcessError) as caught:
        cards_seen_with(copy, cwd=tmp_path)
    assert "cards of the built-in models are missing" in caught.value.stderr


def test_the_wheel_holds_one_package(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"longvis_bench", f"longvis_bench-{__version__}.dist-info"}


def test_the_wheel_holds_types_and_cards(wheel: list[str]) -> None:
    assert "longvis_bench/py.typed" in wheel
    for card in (ROOT / "models").glob("*/card.toml"):
        assert f"longvis_bench/_models/{card.parent.name}/card.toml" in wheel
    assert sum(name.endswith(".safetensors") for name in wheel) >= 7


def test_the_wheel_holds_no_golden_vectors_or_results(wheel: list[str]) -> None:
    assert not [name for name in wheel if "golden" in name or "results" in name]


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in changelog
    released = re.findall(r"^## (\d\S*)", changelog, flags=re.MULTILINE)
    assert not released or released[0] == __version__


def test_constraints_name_versions_and_no_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", pin) for pin in pins)
    assert {"torch", "timm", "fvcore", "pydantic"} <= {pin.split("==")[0] for pin in pins}
