"""The cache gives back what was computed, never anything else, and rows say what came from it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import longvis_bench.measure.cache as cache_module
import longvis_bench.sweep.execute as sweep_module
from longvis_bench.hashing import sha256_file
from longvis_bench.isolation.runner import Runner
from longvis_bench.measure.cache import VARIABLE, Cache, Kind, cache_folder
from longvis_bench.measure.cell import measure_cell
from longvis_bench.measure.memory.tensor_peak import TensorPeak, tensor_peak
from longvis_bench.records import Cell, Request, Row
from longvis_bench.registry.registry import Registry
from longvis_bench.report.columns import BY_NAME
from longvis_bench.runs.predictions import read_predictions
from longvis_bench.sweep.execute import Outcome
from longvis_bench.sweep.session import start

FAMILIES = Path(__file__).parents[1] / "families"
KINDS: tuple[Kind, ...] = ("count", "shapes", "accuracy")
CELL: dict[str, Any] = {
    "model": "vit-n",
    "family": "vit",
    "variant": "vit-n",
    "implementation": "timm",
    "resolution": 64,
    "images": 8,
    "metrics": ("count", "memory", "accuracy"),
}


class Value(BaseModel):
    """What the tests store."""

    number: int
    text: str = ""


def request(**changes: Any) -> Request:
    """Of a cell with a cache; `changes` are fields of the cell, or of the request where it has them."""
    fields = {name: changes.pop(name) for name in list(changes) if name in Request.model_fields}
    cell = Cell(**CELL | changes)
    given = {"code": "code", "environment": "environment", "cache_dir": Path("cache")}
    return Request(cell=cell, **given | fields)


def stored(asked: Request, kind: Kind = "count", number: int = 1, **more: Any) -> int | None:
    """The number that the cache has; None where it computed, and now has `number`."""
    variant = Registry(asked.models_dirs).find(asked.model or asked.cell.model)
    cache = Cache(asked, variant)
    found = cache.get(kind, Value, lambda: Value(number=number), **more)
    assert cache.used == ([kind] if cache.used else [])
    return found.number if cache.used else None


def entries() -> list[Path]:
    """Files of the cache."""
    return [path for path in Path("cache").rglob("*") if path.is_file()]


# What an entry depends on -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_computed_is_read_the_next_time(kind: Kind) -> None:
    assert stored(request(), kind, 1) is None
    assert stored(request(), kind, 2) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        {"code": "other"},
        {"environment": "other"},
        {"resolution": 96},
        {"num_classes": 11},
        {"arguments": {"depth": 2}},
        {"variant": "vit-s"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_kind_is_computed_again_where_this_changes(kind: Kind, change: dict[str, Any]) -> None:
    stored(request(), kind)
    assert stored(request(**change), kind) is None


ACCURACY_ONLY = [
    {"weights_sha256": "other"},
    {"data": "pairs"},
    {"images": 9},
    {"threads": 2},
    {"dtype": "bf16"},
    {"memory_format": "contiguous"},
    {"seed": 1},
]


@pytest.mark.parametrize("change", ACCURACY_ONLY, ids=lambda change: next(iter(change)))
def test_an_accuracy_also_depends_on_weights_data_and_how_it_is_computed(change: dict[str, Any]) -> None:
    for kind in KINDS:
        stored(request(), kind, 1)
    assert stored(request(**change), "accuracy", 2) is None
    assert stored(request(**change), "count", 2) == 1


def test_an_accuracy_depends_on_torch_s_settings_the_logits_and_the_scans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(request(), "accuracy", logits=(0, 1), numerics={"tf32": "false"})
    assert stored(request(), "accuracy", logits=(0, 2), numerics={"tf32": "false"}) is None
    assert stored(request(), "accuracy", logits=(0, 1), numerics={"tf32": "true"}) is None
    monkeypatch.setattr(cache_module, "scans_hash", lambda: "other scans")
    assert stored(request(), "accuracy", logits=(0, 1), numerics={"tf32": "false"}) is None


@pytest.mark.parametrize("kind", ["count", "accuracy"])
def test_the_cell_s_batch_matters_for_shapes_alone(kind: Kind) -> None:
    for each in ("shapes", kind):
        stored(request(), each, 1)
    assert stored(request(batch_size=2), kind, 2) == 1
    assert stored(request(batch_size=2), "shapes", 2) is None


def test_a_changed_card_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    stored(request())
    monkeypatch.setattr(cache_module, "sha256_file", lambda path: "another card")
    assert stored(request()) is None


# Whose values are cached --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "moody-fine", "models_dirs": (FAMILIES,)},
        {"data": "folder:pets"},
        {"code": None},
        {"environment": ""},
        {"cache_dir": None},
    ],
    ids=["a user's card", "a user's images", "code unknown", "environment unknown", "off"],
)
def test_what_no_hash_covers_is_never_cached(changes: dict[str, Any]) -> None:
    for kind in KINDS:
        assert stored(request(**changes), kind) is None
        assert stored(request(**changes), kind) is None
    assert not entries()


def test_a_model_of_timm_is_cached() -> None:
    name = "timm:vit_tiny_patch16_224"
    assert stored(request(model=name), number=1) is None
    assert stored(request(model=name), number=2) == 1
    assert stored(request(model="timm:vit_small_patch16_224"), number=3) is None


def test_a_cell_of_a_user_s_card_computes_everything() -> None:
    asked = request(model="moody-fine", models_dirs=(FAMILIES,), metrics=("count", "memory"))
    for row in (measure_cell(asked), measure_cell(asked)):
        assert row.status == "ok", row.reason
        assert row.cached == ()
    assert not entries()


# What is not trusted ------------------------------------------------------------------------------------


def torn(path: Path) -> None:
    """As after a power cut."""
    path.write_bytes(path.read_bytes()[:-20])


def changed(path: Path) -> None:
    """Another number in the value, under the old hash."""
    path.write_text(path.read_text().replace('\\"number\\":1', '\\"number\\":7'))


def of_another_key(path: Path) -> None:
    """A whole entry of another cell under this name."""
    stored(request(resolution=96), number=7)
    other = next(file for file in entries() if file != path)
    path.write_bytes(other.read_bytes())


def of_another_form(path: Path) -> None:
    """A whole entry whose value is something else."""
    path.unlink()

    class Text(BaseModel):
        number: str

    asked = request()
    Cache(asked, Registry().find("vit-n")).get("count", Text, lambda: Text(number="many"))
    assert path.is_file()


def not_json(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x95\x00")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [torn, changed, of_another_key, of_another_form, not_json, empty])
def test_an_entry_that_is_not_what_was_stored_is_computed_again(damage: Callable[[Path], None]) -> None:
    stored(request(), number=1)
    (path,) = entries()
    before = path.read_bytes()
    damage(path)
    assert path.read_bytes() != before
    assert stored(request(), number=1) is None
    assert path.read_bytes() == before
    assert stored(request(), number=2) == 1


def test_a_folder_in_the_place_of_an_entry_costs_only_time() -> None:
    stored(request())
    (path,) = entries()
    path.unlink()
    path.mkdir()
    assert stored(request()) is None
    assert stored(request()) is None


def test_a_folder_that_takes_no_files_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache_module, "write_whole", refuse)
    assert stored(request()) is None
    Path("file").write_text("")
    assert stored(request(cache_dir=Path("file"))) is None


def test_what_fails_is_not_stored() -> None:
    def fail() -> Value:
        raise RuntimeError("no")

    cache = Cache(request(), Registry().find("vit-n"))
    with pytest.raises(RuntimeError):
        cache.get("count", Value, fail)
    assert not entries()
    assert stored(request()) is None


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cache import Cache, Registry, Value, request
cache, text = Cache(request(), Registry().find("vit-n")), "x" * 200_000
for turn in range(150):
    value = cache.get("count", Value, lambda: Value(number=1, text=text))
    assert value == Value(number=1, text=text)
    for path in Path("cache").rglob("*.json") if turn % 3 == int(sys.argv[2]) else ():
        path.unlink(missing_ok=True)
print(len(cache.used))
"""


def test_two_processes_at_once_read_whole_entries_or_none() -> None:
    commands = [[sys.executable, "-c", TWO, str(Path(__file__).parent), str(number)] for number in (0, 1)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert all(0 < int(output) < 150 for output in outputs)
    assert all(path.suffix == ".json" for path in entries()), "no file in the making is left"


# Where it is --------------------------------------------------------------------------------------------


def test_a_variable_moves_the_cache_or_turns_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert cache_folder() is None
    monkeypatch.setenv(VARIABLE, "here")
    assert cache_folder() == Path.cwd() / "here"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder = cache_folder()
    assert folder is not None
    assert folder.name == "longvis-bench"


# Whole cells --------------------------------------------------------------------------------------------


class InProcess:
    """Measures cells in this process, which has torch already."""

    forks = True

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, asked: Request, on_tick: Callable[[], object]) -> Row:
        return measure_cell(asked)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random values of vit-n at 64 px, for ten classes."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = Registry().find("vit-n").build(resolution=64, num_classes=10)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, weights: Path, two_threads: None, no_figures: None
) -> Callable[..., Outcome]:
    """Sweep over one cell of vit-n into the named folder."""
    monkeypatch.setattr(sweep_module, "Runner", InProcess)

    def sweep(name: str, **options: Any) -> Outcome:
        given = {
            "models": ("vit-n",),
            "resolutions": (64,),
            "metrics": CELL["metrics"],
            "images": 8,
            "device": "cpu",
            "threads": 2,
            "weights": weights,
        }
        return start(given | options, out=Path(name)).run()

    return sweep


def test_a_second_run_has_the_same_values_and_says_where_they_are_from(run: Callable[..., Outcome]) -> None:
    (first,), (second,) = run("first").rows, run("second").rows
    assert first.status == second.status == "ok", first.reason
    assert first.cached == ()
    assert second.cached == KINDS
    assert BY_NAME["cached"].value(first) is None
    assert BY_NAME["cached"].value(second) == "count shapes accuracy"
    for name in ("count", "tensors", "accuracy"):
        assert getattr(first, name) is not None
        assert getattr(first, name) == getattr(second, name)
    answers = [read_predictions(row, [Path(name)]) for row, name in ((first, "first"), (second, "second"))]
    assert answers[0] is not None
    assert answers[1] is not None
    for name in ("labels", "predictions", "indices"):
        assert getattr(answers[0], name).tolist() == getattr(answers[1], name).tolist()
    assert answers[0].classes == answers[1].classes


def test_the_measured_peak_does_not_depend_on_the_cache() -> None:
    """In fresh forks of one server; without the rehearsal the peaks read 1.0 MB apart."""
    asked = request(resolution=256, metrics=("count", "memory"), threads=2, cache_dir=Path.cwd() / "cache")
    asked = asked.model_copy(update={"cell": asked.cell.model_copy(update={"model": "atlas-n"})})
    with Runner() as runner:
        rows = [runner.run(asked) for _ in range(2)]
    assert [row.cached for row in rows] == [(), ("count", "shapes")]
    peaks = [row.memory.peak_bytes for row in rows if row.memory is not None]
    assert peaks[1] == pytest.approx(peaks[0], abs=400_000)


def test_other_weights_are_measured(run: Callable[..., Outcome], weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    run("first")
    before = sha256_file(weights)
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights)
    assert sha256_file(weights) != before
    (row,) = run("second").rows
    assert row.cached == ("count", "shapes")


def test_without_the_cache_everything_is_computed(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("first")
    assert run("second", cache=False).rows[0].cached == ()
    monkeypatch.setenv(VARIABLE, "")
    assert run("third").rows[0].cached == ()


def test_cells_of_one_sweep_share_what_is_the_same_for_them(run: Callable[..., Outcome]) -> None:
    rows = run("run", batch_sizes=(1, 2)).rows
    assert [row.cached for row in rows] == [(), ("count", "accuracy")]


def test_every_field_of_a_shape_run_is_read_as_it_was_stored() -> None:
    asked = request(model="mambavision-n")
    variant = Registry().find("mambavision-n")
    cell = asked.cell.model_copy(update={"model": "mambavision-n", "family": "mambavision"})
    found = [
        Cache(asked, variant).get("shapes", TensorPeak, lambda: tensor_peak(variant, cell)) for _ in "ab"
    ]
    assert len(entries()) == 1
    assert found[0].scans
    assert found[0] == found[1]
