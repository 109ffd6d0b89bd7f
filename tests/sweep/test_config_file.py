"""Files of --config and --save-config."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from longvis_bench.errors import LongvisError
from longvis_bench.sweep.config import SweepConfig, read_config
from longvis_bench.sweep.config_file import read_config_file, write_config_file

OPTIONS = {"models": ["vit-n", 'x"\\y'], "resolutions": ["1k"], "hours_for": "100x2", "skip_after_oom": False}


def test_what_is_saved_is_read_again() -> None:
    write_config_file(Path("sweep.toml"), OPTIONS)
    again = read_config_file(Path("sweep.toml"), {})
    assert set(again) == set(OPTIONS)
    assert read_config(again) == read_config(OPTIONS)


def test_every_other_field_is_a_comment_that_can_be_used() -> None:
    write_config_file(Path("sweep.toml"), {})
    text = Path("sweep.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text) == {}
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line and "[--" not in line]
    used = tomllib.loads("\n".join(lines))
    assert set(used) == set(SweepConfig.model_fields)
    read_config(used)


def test_a_byte_order_mark_is_no_fault() -> None:
    Path("sweep.toml").write_bytes(b"\xef\xbb\xbf" + b'models = ["vit-n"]\n')
    assert read_config_file(Path("sweep.toml"), {}) == {"models": ["vit-n"]}


def test_toml_that_is_none_says_where() -> None:
    Path("sweep.toml").write_text('models = ["vit-n"\nprecision = \n')
    with pytest.raises(LongvisError, match=r"--config sweep.toml is not valid TOML: .* line "):
        read_config_file(Path("sweep.toml"), {})


def test_nothing_is_overwritten() -> None:
    Path("sweep.toml").write_text("kept")
    with pytest.raises(LongvisError, match="exists already"):
        write_config_file(Path("sweep.toml"), {})
    assert Path("sweep.toml").read_text() == "kept"


def test_an_impossible_configuration_is_not_saved() -> None:
    with pytest.raises(LongvisError, match="precision"):
        write_config_file(Path("sweep.toml"), {"precision": 3})
    assert not Path("sweep.toml").exists()
