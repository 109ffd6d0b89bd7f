"""Files appear whole, stand after a power cut, and in one way alone."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from longvis_bench.files import PACKAGE, copy_whole, make_folder, write_whole


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, in order: `flush NAME` and `rename NAME`."""
    seen: list[str] = []
    flush, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        seen.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        flush(descriptor)

    def replace(path: Path, target: Path) -> Path:
        seen.append(f"rename {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return seen


def _content(content: bytes) -> Callable[[IO[bytes]], object]:
    return lambda file: file.write(content)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are looked up in /proc")
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, events: list[str]
) -> None:
    write_whole(tmp_path / "row.json", _content(b"new"))
    assert events == [f"flush .row.json.{os.getpid()}", "rename row.json", f"flush {tmp_path.name}"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are looked up in /proc")
def test_every_new_folder_is_on_the_disk(tmp_path: Path, events: list[str]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert events == [f"flush {tmp_path.name}", "flush a"]


def test_a_file_that_need_not_survive_is_not_flushed(tmp_path: Path, events: list[str]) -> None:
    write_whole(tmp_path / "row.json", _content(b"new"), durable=False)
    assert events == ["rename row.json"]
    assert (tmp_path / "row.json").read_bytes() == b"new"


def test_a_failure_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    write_whole(path, _content(b"old"))

    def half(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, half)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"row.json": b"old"}


def test_a_copy_has_the_content_and_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    copy_whole(tmp_path / "a", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == b"content"


DIRECT = {
    "files.py": "write_whole itself",
    "isolation/fork_server.py": "the log a worker prints to, and a setting of the kernel",
    "isolation/runner.py": "the same log where there is no fork, and a probe for free space",
    "measure/latency/turns.py": "locks, and a note of one short line that its reader may find torn",
    "measure/memory/peak.py": "a setting of the kernel",
    "measure/world.py": "a task for processes that start after it is written",
    "runs/directory.py": "rows are appended one by one, and a torn one is set aside",
    "adapters/scaffold.py": "a new folder of the user's, which replaces nothing",
    "sweep/config_file.py": "a new file of the user's, refused where one is there",
}
"""Modules that open files for writing by themselves, and what for."""


def _writes(path: Path) -> bool:
    """Whether a module opens a file for writing, writes one, renames or copies one, or saves a figure."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(_is_write(call) for call in calls if isinstance(call.func, ast.Attribute))


def _is_write(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    name = call.func.attr
    first = next((a.value for a in call.args if isinstance(a, ast.Constant)), "")
    if name == "open":
        return isinstance(first, str) and set(first) <= set("rwxabt+") and bool(set(first) & set("wxa+"))
    if name == "replace":  # of paths; of texts it takes two
        return len(call.args) == 1 and not call.keywords
    if name == "savefig":  # by its path; `write_whole` gives an open file
        return not call.args or ast.unparse(call.args[0]) != "file"
    return name in ("write_text", "write_bytes", "rename", "renames", "copyfile", "copy", "move") and (
        name != "copy" or ast.unparse(call.func.value) == "shutil"
    )


def test_files_appear_whole_through_one_function_alone() -> None:
    modules = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    assert {name for name, path in modules.items() if _writes(path)} == set(DIRECT)


@pytest.mark.parametrize(
    "line",
    [
        'path.write_text("x")',
        'path.open("wb")',
        "draft.replace(path)",
        "shutil.copyfile(a, b)",
        "f.savefig(p)",
    ],
)
def test_the_search_finds_each_way_of_writing(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.py").write_text(line)
    assert _writes(tmp_path / "m.py")
