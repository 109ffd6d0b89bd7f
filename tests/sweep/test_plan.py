"""From options to cells: defaults, bad input, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from longvis_bench.environment import default_threads, machine_name, read_environment
from longvis_bench.errors import (
    CheckpointError,
    DeviceError,
    IllegalSize,
    LongvisError,
    MissingDependency,
    UnknownName,
)
from longvis_bench.records import Cell
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.code_hash import cell_key, code_hash
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.estimate import PROCESS_S
from longvis_bench.sweep.plan import Plan, make_plan
from longvis_bench.sweep.session import start

ENVIRONMENT = read_environment()
FAMILIES = Path(__file__).parents[1] / "families"


def plan(**options: Any) -> Plan:
    return make_plan(SweepConfig(models_dirs=(FAMILIES,), device="cpu", **options), ENVIRONMENT)


def test_the_quick_default_is_every_family_at_three_sizes() -> None:
    cells = make_plan(SweepConfig(device="cpu"), ENVIRONMENT).cells
    families = {planned.cell.family for planned in cells}
    assert len(cells) == 21
    assert families == {"atlas", "convnext", "fastervit", "longvit", "mambavision", "vit", "swin"}
    assert all(planned.cell.variant.endswith("-n") for planned in cells)
    assert [planned.cell.resolution for planned in cells] == [256] * 7 + [512] * 7 + [1024] * 7
    assert {planned.request.settings.budget_s for planned in cells} == {5.0}


def test_the_quick_default_brings_weights_at_256() -> None:
    cells = make_plan(SweepConfig(device="cpu", resolutions=(256,)), ENVIRONMENT).cells
    assert all(planned.cell.weights and planned.cell.weights_sha256 for planned in cells)


def test_defaults_of_a_cpu() -> None:
    cell = plan(models=("moody-fine",), resolutions=(64,)).cells[0].cell
    assert (cell.dtype, cell.threads, cell.images, cell.num_classes) == ("fp32", default_threads(), 128, 10)


def test_cheap_cells_come_first() -> None:
    cells = plan(models=("moody-fine", "moody-nan"), resolutions=(128, 64), batch_sizes=(2, 1)).cells
    order = [(p.cell.resolution, p.cell.batch_size) for p in cells]
    assert order == sorted(order)
    assert len(cells) == 8


def test_repeats_add_processes_to_a_cell_and_no_cells() -> None:
    once, thrice = (plan(models=("moody-fine",), resolutions=(64, 128), repeats=n) for n in (1, 3))
    assert [p.request.key for p in once.cells] == [p.request.key for p in thrice.cells]
    assert once.config.name == thrice.config.name


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": ("atlas-z",)}, UnknownName, "did you mean"),
        ({"models": ("moody-fine",), "resolutions": (40,)}, IllegalSize, "32, 48"),
        ({"models": ("moody-fine",), "data": "digit"}, UnknownName, "digits"),
        ({"models": ("moody-fine",), "weights": Path("no.safetensors")}, CheckpointError, "does not exist"),
        ({"models": ("mambavision-s@upstream",), "resolutions": (64,)}, MissingDependency, "pip install"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan(**{"resolutions": (64,), **options})


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "tpu", "gpu"])
def test_a_device_that_is_not_there(device: str) -> None:
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(DeviceError, match=r"has no cuda|unknown device"):
        make_plan(SweepConfig(models=("vit-n",), resolutions=(64,), device=device), ENVIRONMENT)


def test_if_some_can_run_the_rest_become_rows() -> None:
    cells = plan(models=("moody-fine",), resolutions=(64, 72)).cells
    decided = [planned.decided for planned in cells]
    assert decided[0] is None
    assert decided[1] is not None
    assert decided[1].status == "illegal_size"
    assert "64, 80" in (decided[1].reason or "")


def test_a_dtype_the_card_does_not_name_is_a_row() -> None:
    cells = plan(models=("moody-fine",), resolutions=(64,), dtypes=("fp32", "fp16")).cells
    assert [planned.decided and planned.decided.status for planned in cells] == [None, "unsupported"]


def test_weights_for_two_models_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="for one model"):
        plan(models=("moody-fine", "moody-nan"), resolutions=(64,), weights=file)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"budget_s": -1}, "budget_s"), ({"colour": "red"}, "colour"), ({"precision": 2}, "precision")],
)
def test_a_bad_option_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LongvisError, match=words) as caught:
        start(options)
    assert "\n" not in str(caught.value)


def test_the_name_of_a_run_follows_its_configuration() -> None:
    one, same, other = (
        plan(models=("moody-fine",), resolutions=(size,)).config.name for size in (64, 64, 128)
    )
    assert one == same != other
    assert one.startswith("moody-fine-64-")


def test_features_are_other_cells_of_another_run() -> None:
    """And runs of logits keep the names that they had without this option."""
    logits, features = (
        plan(models=("moody-fine",), resolutions=(64,), output=output) for output in ("logits", "features")
    )
    assert logits.config.name != features.config.name
    assert logits.config.name == plan(models=("moody-fine",), resolutions=(64,)).config.name
    numbers = logits.config.model_dump(mode="json")
    assert numbers.pop("output") == "logits"
    assert logits.cells[0].request.key != features.cells[0].request.key
    assert features.cells[0].cell.output == "features"


@pytest.mark.parametrize("metrics", [("accuracy",), ("reach",), ("accuracy", "reach")])
def test_features_have_nothing_that_needs_the_head(metrics: tuple[str, ...]) -> None:
    with pytest.raises(LongvisError, match="no accuracy and no reach to measure; add time"):
        plan(models=("moody-fine",), resolutions=(64,), output="features", metrics=metrics)


def test_every_field_of_a_cell_is_part_of_its_key(cell: Cell) -> None:
    keys = {cell_key(cell, "code", "env")}
    changes: dict[str, Any] = {
        "model": "x", "family": "x", "variant": "x", "implementation": "x", "arguments": {"a": 1},
        "resolution": 7, "batch_size": 7, "mode": "train", "dtype": "bf16", "device": "cuda", "threads": 7,
        "memory_format": "contiguous", "fuse": True, "compile": True, "output": "features",
        "data": "x", "num_classes": 7,
        "batch_auto": True, "world": 2,
        "grad_checkpointing": True, "images": 7, "metrics": ("time",), "seed": 7,
        "weights": "x", "weights_sha256": "x", "round": 7, "normalisation": ((0.0,) * 3, (1.0,) * 3),
    }  # fmt: skip
    assert set(changes) == set(Cell.model_fields)
    for name, value in changes.items():
        keys.add(cell_key(cell.model_copy(update={name: value}), "code", "env"))
    keys |= {cell_key(cell, "other", "env"), cell_key(cell, "code", "other")}
    assert len(keys) == 1 + len(changes) + 2


def test_the_code_of_another_modules_factory_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "own"
    folder.mkdir(parents=True)
    card = (FAMILIES / "moody" / "card.toml").read_text()
    (folder / "card.toml").write_text(
        card.replace("moody.py:build", "own_package_x:build").replace("moody", "own")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    hashes = []
    for text in ("def build(): ...", "def build(): pass"):
        (tmp_path / "own_package_x.py").write_text(text)
        hashes.append(code_hash(Registry(working_dir=tmp_path).find("own-fine")))
    assert hashes[0] != hashes[1]


def test_the_code_hash_is_of_measuring_code_only() -> None:
    registry = Registry((FAMILIES,))
    assert code_hash(registry.find("vit-n")) != code_hash(registry.find("atlas-n"))
    assert code_hash(registry.find("vit-n")) == code_hash(registry.find("vit-s"))
    assert code_hash(registry.find("moody-fine")) == code_hash(registry.find("moody-nan"))


def test_options_without_defaults_are_refused() -> None:
    with pytest.raises(ValidationError):
        SweepConfig.model_validate({"modes": ["sleep"]})


def test_the_machine_has_a_name_without_a_host() -> None:
    import platform

    assert machine_name("Intel(R) Xeon(R) CPU @ 2.60GHz", 2) == "intel-xeon-2.60ghz-2c"
    stored = ENVIRONMENT.model_dump_json()
    assert platform.node() not in stored
    assert str(Path.home()) not in stored


def test_the_estimate_follows_metrics_and_macs() -> None:
    def estimated(*metrics: str, size: int = 1024, model: str = "vit-s") -> float:
        return plan(models=(model,), resolutions=(size,), metrics=metrics, threads=2, budget_s=30).estimated_s

    assert estimated("count") < 5
    assert 30 <= estimated("time", model="vit-n") < 60
    assert estimated("memory", size=2048) > 10 * estimated("memory", size=1024)
    assert estimated("time", model="moody-fine") >= 30
    one = plan(models=("vit-n",), resolutions=(64,), metrics=("time",), budget_s=30, repeats=1).estimated_s
    ten = plan(models=("vit-n",), resolutions=(64,), metrics=("time",), budget_s=30, repeats=10).estimated_s
    assert ten - one == pytest.approx(9 * PROCESS_S)
    slow = {"models": ("atlas-b",), "resolutions": (4096,), "metrics": ("time",), "budget_s": 1}
    assert plan(**slow, repeats=10).estimated_s == plan(**slow, repeats=1).estimated_s  # one process
    none = plan(models=("moody-fine",), resolutions=(64,), metrics=("memory",), budget_s=500).estimated_s
    assert none < 10  # no timing, no budget
