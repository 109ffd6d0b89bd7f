"""The wheel: what is in it and what is not; versions agree."""

from __future__ import annotations

import re
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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
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
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        return archive.namelist()


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
    assert {"torch", "timm", "fastervit", "pydantic"} <= {pin.split("==")[0] for pin in pins}
