"""One cell in this process: phases, parts of a row, classification of what goes wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from longvis_bench.measure.cell import _time_apart, measure_cell
from longvis_bench.records import Cell, Request, Row, Settings

FAMILIES = Path(__file__).parents[1] / "families"
pytestmark = pytest.mark.usefixtures("two_threads")


def request(**changes: object) -> Request:
    cell = Cell(
        model="moody-fine",
        family="moody",
        variant="moody-fine",
        implementation="user",
        resolution=64,
        threads=2,
    ).model_copy(update=changes)
    return Request(cell=cell, settings=Settings(budget_s=0.1), models_dirs=(FAMILIES,))


def test_a_row_has_every_part() -> None:
    published: list[Row] = []
    row = measure_cell(request(), published.append)
    assert row.status == "ok", row.reason
    assert row.count is not None
    assert row.timing is not None
    assert row.memory is not None
    assert row.validity is not None
    assert row.validity.verdict == "ok"
    assert row.size is not None
    assert row.size.reach
    assert row.accuracy is None
    assert "longvis train --models moody-fine" in row.null_reasons["accuracy"]
    assert [bool(part.timing) for part in published] == [False, False, True, True]
    assert [bool(part.tensors) for part in published] == [False, True, True, True]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set(threads: int) -> None:
    row = measure_cell(request(threads=threads, metrics=("time",)))
    assert row.status == "ok", row.reason
    assert torch.get_num_threads() == threads


def test_every_second_is_booked() -> None:
    start = time.monotonic()
    row = measure_cell(request().model_copy(update={"sent": start - 1.0}))
    assert row.overhead_s["start"] == pytest.approx(1.0, abs=0.1)
    assert sum(row.overhead_s.values()) == pytest.approx(1.0 + time.monotonic() - start, abs=0.1)
    assert {"start", "import", "count", "build", "time", "validity", "other"} <= set(row.overhead_s)


def test_only_what_is_asked_for_is_measured() -> None:
    row = measure_cell(request(metrics=("count",)))
    assert row.status == "ok"
    assert row.count is not None
    assert [row.timing, row.memory, row.validity] == [None, None, None]


def test_bf16_runs_the_model_in_bf16() -> None:
    row = measure_cell(request(dtype="bf16"))
    assert row.status == "ok", row.reason
    assert row.validity is not None
    assert row.validity.reference.startswith("float32")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_train_step_has_its_parts_and_its_memory(dtype: str) -> None:
    row = measure_cell(request(mode="train", dtype=dtype, batch_size=2))
    assert row.status == "ok", row.reason
    assert row.timing is not None
    assert set(row.timing.parts_s) == {"forward", "backward", "optimizer"}
    assert row.memory is not None
    assert row.memory.peak_bytes == sum(row.memory.parts_bytes.values())
    # of the tensors: what is measured of so small a model in this long-lived process may be nought
    assert row.tensors is not None
    parts = row.tensors.parts_bytes
    assert parts["optimizer"] >= 2 * parts["weights"]


class Ticking:
    """A clock on which everything takes a second."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def time(self, iteration: Callable[[], object]) -> float:
        iteration()
        self.elapsed += 1.0
        return 1.0

    def now(self) -> float:
        return self.elapsed


@pytest.mark.parametrize(("budget", "steps"), [(0.5, 1), (4.0, 2), (100.0, 5)])
def test_steps_apart_keep_to_the_budget(budget: float, steps: int) -> None:
    done: list[str] = []
    parts: dict[str, Callable[[], object]] = {
        name: partial(done.append, name) for name in ("forward", "backward", "optimizer")
    }
    found = _time_apart(parts, Ticking(), budget)
    assert found == dict.fromkeys(parts, (1.0,) * steps)
    assert done == [*parts] * steps


def test_shipped_weights_give_an_accuracy(tmp_path: Path) -> None:
    from longvis_bench.registry.registry import Registry

    variant = Registry().find("vit-n")
    entry = variant.shipped_weights("digits", 256)
    assert entry is not None
    assert entry.file is not None
    cell = request().cell.model_copy(
        update={"model": "vit-n", "family": "vit", "variant": "vit-n", "implementation": "timm"}
    )
    cell = cell.model_copy(update={"resolution": 256, "images": 16, "weights": entry.file})
    wanted = Request(
        cell=cell,
        settings=Settings(budget_s=0.1),
        weights_path=variant.folder / entry.file,
        predictions_path=tmp_path / "p" / "k.npz",
    )
    row = measure_cell(wanted)
    assert row.status == "ok", row.reason
    assert row.accuracy is not None
    assert row.accuracy.images == 16
    assert row.accuracy.correct_top1 > 4
    assert row.accuracy.trained_resolution == 256
    assert (tmp_path / "p" / "k.npz").is_file()


def test_folding_is_recorded() -> None:
    cell = request().cell.model_copy(
        update={
            "model": "convnext-n",
            "family": "convnext",
            "variant": "convnext-n",
            "implementation": "timm",
            "fuse": True,
        }
    )
    row = measure_cell(Request(cell=cell, settings=Settings(budget_s=0.1)))
    assert row.status == "ok", row.reason
    assert row.backends["folded"] == "0"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_compiling_takes_its_time_apart() -> None:
    row = measure_cell(request(compile=True, metrics=("time",)))
    assert row.status == "ok", row.reason
    assert row.timing is not None
    assert row.overhead_s["compile"] > max(row.timing.samples_s)


def test_what_cannot_be_counted_is_still_measured(branchy: Path) -> None:
    """A branch on data does not run on the meta device; the row keeps everything else."""
    cell = request().cell.model_copy(update={"model": f"{branchy.name}:build"})
    row = measure_cell(Request(cell=cell, settings=Settings(budget_s=0.1), working_dir=branchy.parent))
    assert row.status == "ok", row.reason
    assert row.count is None
    assert row.null_reasons["count"]
    assert row.timing is not None
    assert row.validity is not None
    assert row.validity.verdict == "ok"
    assert row.validity.reference.startswith("float64 at sampled rows and windows of ")
    assert "nobody knows" in row.validity.reference


def test_the_peak_is_no_less_than_what_the_model_holds() -> None:
    row = measure_cell(request(resolution=512))
    assert row.memory is not None
    parts = row.memory.parts_bytes
    assert parts["input"] == 3 * 512 * 512 * 4
    assert row.memory.peak_bytes >= parts["weights"] + parts["buffers"] + parts["input"]
    assert row.memory.peak_bytes == sum(parts.values())


def test_the_reference_is_not_run_where_its_attention_would_not_fit() -> None:
    from longvis_bench.measure.row_builder import Draft
    from longvis_bench.measure.validity.policy import _skip_reference

    draft = Draft(request().model_copy(update={"settings": Settings()}))
    row = measure_cell(request())
    draft.values.update(timing=row.timing, memory=row.memory)
    draft.largest_output = 10
    assert _skip_reference(draft) is None
    draft.values["settings"] = Settings(budget_s=1e-6)
    assert "it would take about" in (_skip_reference(draft) or "")  # longer than the timing
    draft.values["settings"] = Settings()
    draft.largest_output = 10**13
    assert "of memory" in (_skip_reference(draft) or "")
    draft.largest_output = None
    assert "nobody knows" in (_skip_reference(draft) or "")


@pytest.fixture
def gigantic(model_file: Callable[..., Path]) -> Callable[..., Row]:
    """Measure a model that reserves 2^30 + 8 elements an image, which no operator that is seen fills."""
    file = model_file(
        "gigantic",
        "torch.empty(len(x), 2**30 + 8, dtype=torch.uint8, device=x.device)  # untouched: no memory",
        "return self.head(x.mean(dim=(2, 3)))",
    )

    def measure(**changes: Any) -> Row:
        cell = request(**changes).cell.model_copy(update={"model": f"{file.name}:build"})
        return measure_cell(Request(cell=cell, settings=Settings(budget_s=0.1), working_dir=file.parent))

    return measure


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"metrics": ("time",)},
        {"metrics": ("count", "time")},
        {"mode": "train"},
        {"mode": "train", "metrics": ("time",)},
    ],
)
def test_a_tensor_past_2_31_elements_that_nobody_looked_at_is_no_result(
    changes: dict[str, Any], gigantic: Callable[..., Row]
) -> None:
    row = gigantic(batch_size=2, **changes)
    assert row.status == "unsupported"
    assert "aten::empty (2, 1073741832); try a smaller batch or resolution" in (row.reason or "")
    assert row.validity is None or row.validity.verdict == "not checked"


def test_a_smaller_batch_of_the_same_model_is_a_result(gigantic: Callable[..., Row]) -> None:
    row = gigantic()
    assert row.status == "ok", row.reason
    assert row.validity is not None
    assert row.validity.verdict == "ok"


def test_what_was_measured_is_not_risked_for_its_check() -> None:
    from longvis_bench.measure.row_builder import Draft
    from longvis_bench.measure.validity.policy import _too_late

    draft = Draft(request())
    draft.values["timing"] = measure_cell(request()).timing
    assert _too_late(draft) is None
    draft.values["overhead_s"]["time"] = 600.0
    assert "the cell's time limit leaves 0" in (_too_late(draft) or "")


@pytest.mark.parametrize(
    ("name", "attention"),
    [("vit-n", "flash"), ("swin-n", "unfused"), ("convnext-n", None)],
)
def test_the_row_names_the_attention_kernel(name: str, attention: str | None) -> None:
    family = name.removesuffix("-n")
    changes = {"model": name, "family": family, "variant": name, "implementation": "timm"}
    row = measure_cell(request(**changes, metrics=("time",), resolution=256))
    assert row.status == "ok", row.reason
    assert row.attention == attention
    assert ("attention" in row.null_reasons) == (attention is None)
