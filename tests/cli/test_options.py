"""How the values of options are read, and what the guard does when even the traceback finds no room."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import typer

from longvis_bench import units
from longvis_bench.cli.app import app
from longvis_bench.cli.guard import guarded
from longvis_bench.cli.options import band_numbers, batch, reader, several, shard, window_bounds
from longvis_bench.errors import HarnessFault, LongvisError
from longvis_bench.sweep.config import FLAGS, SweepConfig


@pytest.mark.parametrize(
    ("text", "value"),
    [("8GiB", 8 << 30), ("8g", 8_000_000_000), ("500MB", 500_000_000), ("1.5 KiB", 1536), ("42B", 42)],
)
def test_sizes(text: str, value: int) -> None:
    assert reader("--memory-limit", units.read_size)(text) == value


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "0", "8GB/s", "1e9", "42", "42.5", "8 GiB more"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(LongvisError, match="--memory-limit takes a size"):
        reader("--memory-limit", units.read_size)(text)


def test_shards() -> None:
    read = reader("--shard", shard)
    assert read("2/8") == (2, 8)
    assert read(" auto ") == "auto"
    for text in ("", "2", "2/", "a/b", "-1/2"):
        with pytest.raises(LongvisError, match="like 2/8"):
            read(text)


def test_batches_and_windows() -> None:
    assert several("--batch", batch)("1, 8,auto") == (1, 8, "auto")
    assert reader("--window", window_bounds)("100,4000") == (100.0, 4000.0)
    assert [reader("--bands", band_numbers)(text) for text in ("3,2,1", "13")] == [(3, 2, 1), (13,)]
    for text in ("0", "2,1", "1,2,3,4", "a", "1,2,"):
        with pytest.raises(LongvisError, match="--bands takes one or three numbers of bands"):
            reader("--bands", band_numbers)(text)
    for text in ("0", "some", "1.5"):
        with pytest.raises(LongvisError, match="--batch takes auto or whole numbers from 1 up"):
            several("--batch", batch)(text)
    for text in ("", "1", "1,2,3", "nan,1"):
        with pytest.raises(LongvisError, match="--window takes two numbers"):
            reader("--window", window_bounds)(text)


def test_every_field_of_a_configuration_is_an_option_of_its_name() -> None:
    command = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    options = {param.name: param.opts for param in command.params}
    options |= {"skip_after_oom": options["no_skip"], "cache": options["no_cache"]}
    assert set(FLAGS) == set(SweepConfig.model_fields)
    for field, flag in FLAGS.items():
        assert flag in options[field]


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
