"""Reporters of other packages: they get each row, their errors end no sweep, and the pages' examples run."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from longvis_bench.records import MemoryRecord, Row
from longvis_bench.report.columns import COLUMNS
from longvis_bench.sweep.hooks import GROUP, Hooked
from longvis_bench.sweep.reporter import Reporter

PAGE = Path(__file__).parents[2] / "docs" / "reporters.md"


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[Row] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def finish(self, row: Row) -> None:
        self.rows.append(row)


def installed(monkeypatch: pytest.MonkeyPatch, **classes: object) -> list[EntryPoint]:
    """Entry points of a package that is not on the disk."""
    module = ModuleType("made_up_reporters")
    for name, value in classes.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return [EntryPoint(name, f"{module.__name__}:{name}", GROUP) for name in classes]


def hook(calls: list[Any], fails: str = "") -> type:
    class Recording:
        def begin(self, run: str, cells: int) -> None:
            self._call("begin", run, cells)

        def row(self, row: dict[str, Any]) -> None:
            self._call("row", row)

        def end(self) -> None:
            self._call("end")

        def _call(self, name: str, *arguments: Any) -> None:
            calls.append((name, *arguments))
            if name == fails:
                raise RuntimeError("no network")

    return Recording


def swept(shown: Reporter, row: Row, found: list[EntryPoint]) -> None:
    hooked = Hooked(shown, Path("results/runs/mine"), found)
    hooked.begin([], [])
    hooked.finish(row)
    hooked.refine(row)
    hooked.end()


def test_a_hook_gets_each_row_with_every_column(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    swept(Notes(), row, installed(monkeypatch, mine=hook(calls)))
    assert [name for name, *_ in calls] == ["begin", "row", "row", "end"]
    assert calls[0] == ("begin", "mine", 0)
    assert list(calls[1][1]) == [column.name for column in COLUMNS]
    assert calls[1][1]["model"] == row.cell.model


@pytest.mark.parametrize(("fails", "told"), [("begin", 1), ("row", 2), ("end", 4)])
def test_an_error_ends_the_hook_and_not_the_sweep(
    row: Row, monkeypatch: pytest.MonkeyPatch, fails: str, told: int
) -> None:
    broken: list[Any] = []
    fine: list[Any] = []
    shown = Notes()
    swept(shown, row, installed(monkeypatch, broken=hook(broken, fails), fine=hook(fine)))
    assert len(broken) == told
    assert len(fine) == 4
    assert shown.rows == [row]
    assert shown.notes == ["the reporter broken failed (RuntimeError: no network) and gets no more rows"]


def test_a_hook_that_cannot_be_imported_is_noted(row: Row) -> None:
    shown = Notes()
    swept(shown, row, [EntryPoint("gone", "no_such_package:Reporter", GROUP)])
    assert shown.notes[0].startswith("the reporter gone failed (ModuleNotFoundError")


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_the_examples_of_the_page_run(row: Row, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """With a module that records its calls in the place of the package."""
    calls: list[tuple[str, Any]] = []

    def record(name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            calls.append((name, arguments or more))
            return SimpleNamespace(log=record("log"), finish=record("finish"))

        return call

    stub = ModuleType(package)
    stub.__getattr__ = record  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, package, stub)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (source,) = [block for block in blocks if f"import {package}" in block]
    assert len(source.splitlines()) <= 30
    names: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), names)
    (made,) = [value for name, value in names.items() if name.endswith("Reporter")]
    memory = MemoryRecord(peak_bytes=7, baseline_bytes=0, source="test")
    shown = Notes()
    swept(shown, row.model_copy(update={"memory": memory}), installed(monkeypatch, mine=made))
    assert not shown.notes
    assert "peak_memory_bytes" in str(calls)
    assert calls[-1][0] in ("finish", "end_run")
