"""Configuration files of `longvis bench`: `--config` reads one, `--save-config` writes one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longvis_bench.errors import LongvisError
from longvis_bench.sweep.config import FLAGS, SweepConfig, read_config
from longvis_bench.sweep.run_file import read_replay

_EXAMPLES: dict[str, Any] = {
    "preset": "atlas-table1",
    "models": ["atlas-s", "vit-*"],
    "resolutions": [1024, "2k"],
    "dtypes": ["fp32"],
    "devices": "cuda:0,cuda:1",
    "threads": 8,
    "classes": "imagenet100",
    "class_order": "natural",
    "window": [100.0, 4000.0],
    "bands": [3, 2, 1],
    "images": 1000,
    "weights": "weights.safetensors",
    "budget_s": "1m",
    "memory_limit_bytes": "8GiB",
    "hours_for": "126689x320",
    "models_dirs": ["my-models"],
}
"""Example values of fields without a default, for lines that are commented out."""


def read_config_file(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a TOML file, or the resolved ones of a run.json.

    Arguments:
        path: UTF-8, with or without a byte order mark.
        given: options of the command line, which replace those of a run.json.

    Raises:
        LongvisError: the file cannot be read, or is neither of the two.
    """
    wrong = LongvisError(f"--config {path} is neither TOML nor a run.json of longvis.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = read_replay(text, str(path), given) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise LongvisError(f"cannot read --config {path}: {error.strerror or error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise LongvisError(f"--config {path} is not valid TOML: {error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise wrong from error
    if not isinstance(content, dict):
        raise wrong
    return content


def write_config_file(path: Path, options: Mapping[str, Any]) -> None:
    """Write options as TOML, with every other field commented out at its default or an example.

    Arguments:
        path: must not exist yet.
        options: fields of SweepConfig as given; defaults of this machine are not filled in.

    Raises:
        LongvisError: an option is invalid, or the file exists or cannot be written.
    """
    text = config_text(options)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise LongvisError(f"--save-config {path} exists already; give another name.") from None
    except OSError as error:
        raise LongvisError(f"cannot write --save-config {path}: {error.strerror or error}.") from error


def config_text(options: Mapping[str, Any]) -> str:
    """Options as TOML, with every other field commented out at its default or an example.

    Arguments:
        options: see `write_config_file`.

    Raises:
        LongvisError: an option is invalid.
    """
    content = read_config(options).model_dump(mode="json")
    lines = ["# Configuration of `longvis bench --config FILE`; options of the command line replace these."]
    for name, field in SweepConfig.model_fields.items():
        described = " ".join((field.description or "").split())  # a comment has one line
        lines += ["", f"# {described}  [{FLAGS[name]}]", _line(name, content[name], name in options)]
    return "\n".join(lines) + "\n"


def example_text() -> str:
    """All fields as TOML at their defaults; fields whose default depends on the machine are commented out."""
    fields = SweepConfig.model_fields.items()
    return config_text({name: field.default for name, field in fields if field.default not in (None, ())})


def _line(name: str, value: Any, given: bool) -> str:
    if given:
        return f"{name} = {_toml(value)}"
    return f"# {name} = {_toml(_EXAMPLES.get(name, value))}"


def _toml(value: Any) -> str:
    """A value as TOML; strings, numbers, booleans and lists of them have the syntax of JSON."""
    if isinstance(value, dict):  # a length of training
        return json.dumps(f"{value['images']}x{value['epochs']}")
    return json.dumps(value, ensure_ascii=False)
