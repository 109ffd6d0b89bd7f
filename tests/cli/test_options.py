"""Values of options, and what the guard does when even the traceback finds no room."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import typer

from longvis_bench.cli.guard import guarded
from longvis_bench.cli.options import shard, size
from longvis_bench.errors import HarnessFault, LongvisError


@pytest.mark.parametrize(
    ("text", "value"),
    [("8GiB", 8 << 30), ("8g", 8 << 30), ("500MB", 500_000_000), ("1.5 KiB", 1536), ("42", 42), ("42B", 42)],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text, "--memory-limit") == value


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "0", "8GB/s", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(LongvisError, match="--memory-limit takes a size"):
        size(text, "--memory-limit")


def test_shards() -> None:
    assert shard(None) is None
    assert shard("2/8") == (2, 8)
    for text in ("", "2", "2/", "a/b", "-1/2"):
        with pytest.raises(LongvisError, match="like 2/8"):
            shard(text)


def test_a_cells_own_traceback_is_the_one_that_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise HarnessFault("Traceback of the worker\nKeyError: 'x'")

    with pytest.raises(typer.Exit) as ended:
        guarded(command)()
    assert ended.value.exit_code == 70
    named = capsys.readouterr().err.rsplit(" ", 1)[-1].strip().removesuffix(".")
    assert Path(named).read_text() == "Traceback of the worker\nKeyError: 'x'"


def test_a_traceback_that_no_file_takes_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise KeyError("ours")

    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(typer.Exit) as ended:
        guarded(command)()
    assert ended.value.exit_code == 70
    printed = capsys.readouterr().err
    assert "KeyError: 'ours'" in printed
    assert "the traceback above" in printed
