"""Hostile command lines, cards, rows and checkpoints: one sentence and a documented exit code, never a fault.

Commands run in this process through the program's own `main`; what would train or measure for long is
replaced, planning, reading and showing are not.  `LONGVIS_CASES` is the number of cases of all kinds
together, 10,000 in `make chaos`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
import typer
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save

import longvis_bench.adapters.conformance as conformance
import longvis_bench.cli.flops as flops_command
import longvis_bench.report.plots.write as plots
import longvis_bench.sweep.session as session
import longvis_bench.training.jobs as training
from longvis_bench.cli.app import COMMANDS, app, main
from longvis_bench.registry.discovery import built_in_folder
from longvis_bench.runs.directory import read_rows
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.execute import Outcome

HERE = Path(__file__).parents[1]
FAMILIES = HERE / "families"
KINDS = 4
CASES = int(os.environ.get("LONGVIS_CASES", "80")) // KINDS
HANGS_AFTER_S = 60
EXIT_CODES = {0, 1, 2, 3}

fuzz = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str


def longvis(*arguments: str) -> Ended:
    """Run a command in this process, within a time limit."""
    output, errors = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)
        for errors in ("strict", "backslashreplace")
    )
    before = sys.argv, sys.stdout, sys.stderr
    signal.alarm(HANGS_AFTER_S)
    sys.argv, sys.stdout, sys.stderr = ["longvis", *arguments], output, errors
    try:
        main()
        code: object = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.alarm(0)
        sys.argv, sys.stdout, sys.stderr = before
    assert isinstance(code, int)
    texts = []
    for stream in (output, errors):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="replace"))
    return Ended(code, *texts)


def check(ended: Ended, arguments: object) -> None:
    """What holds for every command, whatever it was given."""
    assert ended.code != 70, (arguments, ended.errors, _traceback(ended.errors))
    assert ended.code in EXIT_CODES, (arguments, ended)
    assert "Traceback" not in ended.output + ended.errors, (arguments, ended)
    if ended.code in (2, 3):
        assert ended.errors.startswith(("error: ", "Usage: ")), (arguments, ended)
    for text in (ended.output, ended.errors):
        assert "\x1b" not in text, (arguments, ended)
        assert "\x07" not in text, (arguments, ended)
    event(f"exit {ended.code}")


def _traceback(errors: str) -> str:
    """What stands in the file that an internal error names."""
    named = Path(errors.rsplit(" ", 1)[-1].strip().removesuffix("."))
    return named.read_text() if named.is_file() else ""


class TooLong(BaseException):
    """A command that hangs; nothing of ours catches it."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing measures, trains or draws for long, and what hangs is ended."""

    def nothing(*_: object, **__: object) -> list[Any]:
        return []

    def complete(self: session.Session, **_: object) -> Outcome:
        return Outcome((), self.path, was_complete=True, interrupted=False)

    def hang(number: int, frame: FrameType | None) -> None:
        raise TooLong

    monkeypatch.setattr(session.Session, "run", complete)
    monkeypatch.setattr(training, "start_training", _checked_only(training.start_training))
    monkeypatch.setattr(conformance, "check_model", nothing)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    before = signal.signal(signal.SIGALRM, hang)
    yield
    signal.signal(signal.SIGALRM, before)


def _checked_only(start: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    def run(*arguments: Any) -> list[Any]:
        start(*arguments)
        return []

    return run


# What people and programs type ---------------------------------------------------------------------------

TEXT = st.text(max_size=20).filter(lambda text: "\0" not in text)  # no system passes a NUL
UNDECODED = st.binary(max_size=8).map(lambda raw: raw.replace(b"\0", b"").decode(errors="surrogateescape"))
NASTY = st.sampled_from(
    [
        *(
            "",
            " ",
            ",",
            "-",
            "--",
            "-1",
            "0",
            "1e999",
            "nan",
            "inf",
            "9" * 5000,
            "a" * 5000,
            "1,2,3",
            "64,,128",
        ),
        *("[", "]", "[red]", "[/]", "a[b", "a]b", "\x1b[31mred", "\x07", "\r", "é", "\udcff", "%s", "{}"),
        *("../..", "/", ".", "~", "/dev/null", "/proc/self/mem", "[" * 400, "=" * 50, ":", "@"),
        *("timm:", "timm:../x", "timm:hf-hub:", ".py:", "x.py:", "vit-n@", "vit-n[]", "vit-n[=]"),
        *("vit-n[depth=" + "(" * 300 + "]", "vit-n[depth=9**9**9]", "vit-n[a=1,a=2]", "vit-n[depth=0]"),
        *("vit-n[dim=-1]", "vit-n[depth='x']", "vit-n[resolution=3]", "vit-n[__class__=1]"),
    ]
)
MODEL = st.sampled_from(
    ["vit-n", "atlas-n", "moody-fine", "mambavision-s@upstream", "timm:resnet18", "longvit-n"]
)
SIZE = st.integers(-(2**70), 2**70).map(str) | st.sampled_from(["32", "64", "250", "64,128", "1024", "4096"])
VALUE = st.one_of(
    MODEL, SIZE, NASTY, TEXT, UNDECODED, st.sampled_from(["infer", "fp32", "cpu", "digits", "time"])
)
PROGRAM: Any = typer.main.get_command(app)
"""The program as it parses: fuzzed are the options that it has, so that no list of them grows old."""


def options(command: str) -> dict[str, bool]:
    """The options of a command, short forms too, and whether each is a flag that takes no value.

    `-h` is left out: help ends a command before it reads anything else.
    """
    params = PROGRAM.commands[command].get_params(PROGRAM.make_context("longvis", [], resilient_parsing=True))
    return {name: param.is_flag for param in params for name in param.opts if name[0] == "-" and name != "-h"}


OPTIONS = {command: options(command) for command in COMMANDS}
FIELDS = [*SweepConfig.model_fields, "nonsense"]


def test_options_are_those_of_the_program() -> None:
    assert OPTIONS["bench"]["--fuse"]
    assert not OPTIONS["bench"]["-m"]
    assert {"--save-config", "--class-order", "--window", "--hours-for"} <= set(OPTIONS["bench"])
    assert all("--help" in taken for taken in OPTIONS.values())


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with options of its own and values of all kinds; now and then something else altogether."""
    command = draw(st.sampled_from([*COMMANDS, *["bench"] * 6]))
    words = [command]
    if command in ("bench", "eval", "train") and draw(st.booleans()):
        words += ["--models", draw(MODEL), "--models-dir", str(FAMILIES), "--device", "cpu"]
    if command in ("flops", "check", "models", "new", "report", "merge"):
        words += draw(st.lists(VALUE | MODEL, max_size=2))
    for option in draw(st.lists(st.sampled_from(list(OPTIONS[command])), max_size=6)):
        words.append(option)
        if not OPTIONS[command][option]:
            words.append(draw(VALUE))
    if draw(st.integers(0, 9)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(VALUE))
    return words


CONFIG = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | VALUE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def config_files(draw: st.DrawFn) -> str:
    """The content of a --config file: fields of SweepConfig with any values, or no configuration at all."""
    fields = draw(st.dictionaries(st.sampled_from(FIELDS), CONFIG, max_size=4))
    text = json.dumps({"config": fields} if draw(st.booleans()) else draw(CONFIG))
    return draw(st.sampled_from([text, text, text[:-1], "[" * 100_000, "9" * 5000, "\0"]))


@seed(1)
@fuzz
@given(command_lines(), config_files() | st.none())
def test_command_lines(words: list[str], config: str | None) -> None:
    if config is not None and words[0] == "bench":
        Path("config.json").write_text(config, encoding="utf-8", errors="surrogatepass")
        words = [*words, "--config", "config.json"]
    check(longvis(*_cheap(words)), words)


def _cheap(words: list[str]) -> list[str]:
    """Without what is hard to bound: huge counts of what is listed one by one, fvcore, and all models."""
    if words[0] == "claims":
        return [*words, "--models", "vit-t"]
    return [*words, "--no-fvcore"] if words[0] == "flops" else words


# Cards ---------------------------------------------------------------------------------------------------


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_string(str(key))} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return _string(value)
    return str(value).lower()


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested value."""
    found = [prefix]
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += _places(value[key], (*prefix, key))
    return found


JUNK = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    TEXT,
    NASTY,
    st.builds(list),
    st.builds(dict),
    st.builds(lambda: [[1]]),
    st.builds(lambda: {"a": {"b": 1}}),
    st.just("../../etc/passwd"),
    st.just("os:system"),
    st.just(10**4000),
)


def _mutate(draw: st.DrawFn, value: Any) -> Any:
    """The same value with a few places replaced, removed or added to."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(value)))
        if not place:
            continue
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        what = draw(st.integers(0, 4))
        if what == 0:
            del holder[place[-1]]
        elif what == 1 and isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = draw(JUNK)
        elif what == 2:
            holder[place[-1]] = draw(JUNK)
        else:
            holder[place[-1]] = draw(_like(holder[place[-1]]))
    return value


def _like(value: object) -> st.SearchStrategy[Any]:
    """Other values of the same type, the extreme ones too, which a check of types lets through."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 10**400]) | st.integers()
    if isinstance(value, float):
        return st.sampled_from([0.0, -0.0, -1.0, 1e-320, 1e308, float("nan"), float("inf")]) | st.floats()
    if isinstance(value, str):
        return TEXT | NASTY | st.text()
    return JUNK


@st.composite
def cards(draw: st.DrawFn) -> bytes:
    """A real card with something wrong in its values or in its text."""
    folder = draw(
        st.sampled_from([built_in_folder() / "vit", FAMILIES / "moody", built_in_folder() / "atlas"])
    )
    text = (folder / "card.toml").read_text(encoding="utf-8")
    if draw(st.booleans()):
        card = _mutate(draw, tomllib.loads(text) | {"family": "fuzzed"})
        text = "\n".join(f"{_string(str(key))} = {_toml(value)}" for key, value in card.items())
        return text.encode(errors="surrogatepass")
    return _damage(draw, text.encode())


def _damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes changed, cut, doubled or put in."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        what = draw(st.integers(0, 4))
        if what == 0:
            content = content[:place] + draw(st.binary(max_size=8)) + content[place + 1 :]
        elif what == 1:
            content = content[:place]
        elif what == 2:
            content = content[:place] + content[place // 2 :]
        elif what == 3:
            long = draw(
                st.sampled_from([b"[" * 5000, b"9" * 5000, b'"', b"\xff", b"\0", b"{" * 5000, b"\x1b[31m"])
            )
            content = content[:place] + long + content[place:]
        else:
            flipped = content[place : place + 1]
            flipped = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in flipped)
            content = content[:place] + flipped + content[place + 1 :]
    return content


@seed(2)
@fuzz
@given(cards(), st.sampled_from(["models", "models fuzzed", "bench", "flops", "check"]))
def test_cards(content: bytes, what: str) -> None:
    folder = Path("cards/fuzzed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.toml").write_bytes(content)
    words = what.split()
    if what == "bench":
        words += ["--models", "vit-n", "--res", "64", "--dry-run", "--device", "cpu"]
    elif what in ("flops", "check"):
        words += ["vit-x", "--res", "64"]
    check(longvis(*words, "--models-dir", "cards"), (words, content))


# Rows ----------------------------------------------------------------------------------------------------

ROWS = [
    json.loads(row.to_json())
    for run in [HERE / "data" / "schema_v1", *sorted((HERE.parent / "results" / "reference").glob("*/*"))[:1]]
    for row in read_rows(run)[:6]
]


@st.composite
def row_files(draw: st.DrawFn) -> bytes:
    """A cells.jsonl whose rows say what no measurement says, or that is damaged."""
    rows = json.loads(json.dumps(draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=4))))
    lines = [json.dumps(_mutate(draw, row)) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    return _damage(draw, content) if draw(st.integers(0, 3)) == 0 else content


@seed(3)
@fuzz
@given(row_files(), st.integers(0, 39))
def test_rows(content: bytes, number: int) -> None:
    run = Path("run")
    run.mkdir(exist_ok=True)
    (run / "cells.jsonl").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        if number:  # drawing takes seconds
            patch.setattr(plots, "write_plots", lambda rows, folder, more: [])
        check(longvis("report", "run"), content)


# Checkpoints ---------------------------------------------------------------------------------------------


class _Hostile:
    """Makes the folder `owned` where it is unpickled by anything that trusts it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def _seeds() -> list[bytes]:
    """Weight files of every kind, harmless and not."""
    state = {"head.weight": torch.ones(10, 4), "pos_embed": torch.ones(1, 17, 4)}
    files = [save(state), (built_in_folder() / "vit" / "vit-n-digits-256.safetensors").read_bytes()]
    contents: list[Any] = [
        state,
        {"model": state, "args": _Hostile()},
        _Hostile(),
        [state],
        {"state_dict": {}},
    ]
    for content in contents:
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=zipped)
            files.append(stream.getvalue())
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", b"\0" * (8 << 20))
    return [*files, bomb.getvalue(), pickle.dumps(_Hostile()), b""]


SEEDS = _seeds()


@st.composite
def checkpoints(draw: st.DrawFn) -> bytes:
    """A weight file with bytes changed, or a safetensors file with another header."""
    content = draw(st.sampled_from(SEEDS))
    if content[8:9] == b"{" and draw(st.booleans()):
        length = int.from_bytes(content[:8], "little")
        header = _mutate(draw, json.loads(content[8 : 8 + length]))
        text = json.dumps(header).encode(errors="replace")
        return len(text).to_bytes(8, "little") + text + content[8 + length :]
    return _damage(draw, content) if draw(st.integers(0, 9)) else content


@seed(4)
@fuzz
@given(checkpoints(), st.sampled_from(["model.pth", "model.safetensors", "model.pth.tar", "x"]))
def test_checkpoints(content: bytes, name: str) -> None:
    Path(name).write_bytes(content)
    words = ["eval", "--models", "vit-n", "--res", "32", "--images", "1", "--device", "cpu", "--threads", "1"]
    check(longvis(*words, "--weights", name), (name, content[:200]))
    assert not Path("owned").exists()
    assert not Path("../../evil").exists()


# That it can fail ----------------------------------------------------------------------------------------


def test_a_fault_of_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("our own fault")

    monkeypatch.setattr(flops_command, "Registry", broken)
    ended = longvis("flops", "vit-n", "--res", "64")
    with pytest.raises(AssertionError, match="our own fault"):
        check(ended, "")
