"""Listing and helping are instant: they import no torch; and this test can fail."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import longvis_bench

HEAVY = ("torch", "timm", "pandas", "matplotlib", "sklearn")

PROBE = """
import sys
{action}
print(",".join(name for name in {heavy!r} if name in sys.modules))
"""


def imported_by(action: str) -> list[str]:
    code = PROBE.format(action=action, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines()[-1].split(",") if name]


def command(*arguments: str) -> str:
    return (
        f"sys.argv = {['longvis', *arguments]!r}\n"
        "from longvis_bench.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )


DRY_RUN = ("bench", "--dry-run", "--device", "cpu")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("models",), ("models", "atlas"), ("bench", "--help"), DRY_RUN]
)
def test_no_heavy_import(arguments: tuple[str, ...]) -> None:
    assert imported_by(command(*arguments)) == []


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_by("import longvis_bench") == []


def test_the_probe_sees_a_heavy_import() -> None:
    assert imported_by("import longvis_bench.api, longvis_bench.weights.matching") == ["torch"]


@pytest.mark.alone
@pytest.mark.parametrize("arguments", [("--help",), ("models",)])
def test_it_answers_in_under_half_a_second(arguments: tuple[str, ...]) -> None:
    """On a machine too slow for that, in five times what importing typer and pydantic takes there."""
    limits, times = [0.5], []
    for _ in range(5):
        limits.append(5 * seconds("-c", "import typer, pydantic"))
        times.append(seconds("-m", "longvis_bench", *arguments))
    assert min(times) < max(limits[0], min(limits[1:]))


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


def test_public_names_are_sorted_and_there() -> None:
    assert longvis_bench.__all__ == sorted(longvis_bench.__all__)
    assert dir(longvis_bench) == longvis_bench.__all__
    for name in longvis_bench.__all__:
        assert getattr(longvis_bench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        longvis_bench.nothing  # noqa: B018
