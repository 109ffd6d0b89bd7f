"""One cell in this process: phases, parts of a row, classification of what goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from longvis_bench.data.protocol import ImageData
from longvis_bench.measure import cell as cell_module
from longvis_bench.measure.cell import measure_cell
from longvis_bench.measure.latency.timing import time_parts
from longvis_bench.measure.memory.peak import PeakMemory
from longvis_bench.ops.selective_scan.operator import ScanSize
from longvis_bench.records import Cell, Request, Row, Settings
from longvis_bench.report.columns import COLUMNS

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


def test_a_compiled_training_step_needs_no_count_among_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where a tensor may be past 2^31 elements, which its largest output rules out."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    row = measure_cell(request(metrics=("time",), mode="train", compile=True))
    assert row.status == "ok", row.reason
    assert row.timing is not None
    assert row.count is None


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
    found = time_parts(parts, Ticking(), budget)
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


@pytest.mark.slow
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
    assert "its cost is unknown" in row.validity.reference


def test_the_peak_is_no_less_than_what_the_model_holds() -> None:
    row = measure_cell(request(resolution=512))
    assert row.memory is not None
    parts = row.memory.parts_bytes
    assert parts["input"] == 3 * 512 * 512 * 4
    assert row.memory.peak_bytes >= parts["weights"] + parts["buffers"] + parts["input"]
    assert row.memory.peak_bytes == sum(parts.values())


def test_the_reference_is_not_run_where_its_attention_would_not_fit() -> None:
    from longvis_bench.measure.row_builder import RowBuilder
    from longvis_bench.measure.validity.policy import why_no_reference

    builder = RowBuilder(request().model_copy(update={"settings": Settings()}))
    row = measure_cell(request())
    builder.timing, builder.memory = row.timing, row.memory
    builder.largest_output = 10
    assert why_no_reference(builder) is None
    builder.request = request().model_copy(update={"settings": Settings(budget_s=1e-6)})
    assert "it would take about" in (why_no_reference(builder) or "")  # longer than the timing
    builder.request = request().model_copy(update={"settings": Settings()})
    builder.largest_output = 10**13
    assert "of memory" in (why_no_reference(builder) or "")
    builder.largest_output = None
    assert "its cost is unknown" in (why_no_reference(builder) or "")


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
    from longvis_bench.measure.row_builder import RowBuilder
    from longvis_bench.measure.validity.policy import why_too_late

    builder = RowBuilder(request())
    builder.timing = measure_cell(request()).timing
    assert why_too_late(builder) is None
    builder.overhead_s["time"] = 600.0
    assert "the cell's time limit leaves 0" in (why_too_late(builder) or "")


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


Measured = Callable[..., Row]


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    """Measure the model of a file, given as its text; it has a function `build`."""

    def measure(text: str, **changes: Any) -> Row:
        (tmp_path / "net.py").write_text("import os, sys, numpy, torch\nfrom torch import nn\n" + text)
        cell = request(**changes).cell.model_copy(update={"model": "net.py:build"})
        return measure_cell(Request(cell=cell, settings=Settings(budget_s=0.05), working_dir=tmp_path))

    return measure


def a_model(forward: str, *, init: str = "pass", build: str = "pass") -> str:
    """The text of a model with a linear `self.head` of 3 inputs, which `forward` is given as x (batch, 3)."""
    return (
        "class Net(nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, n)\n"
        f"        {init}\n"
        "    def forward(self, x):\n"
        "        x = x.mean(dim=(2, 3))\n"
        f"        {forward}\n"
        "def build(resolution, num_classes, in_chans=3):\n"
        f"    {build}\n"
        "    return Net(num_classes)\n"
    )


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Put back what a model that is allowed to change the process changes."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_what_a_factory_sets_is_set_back(measured: Measured, unchanged: None) -> None:
    folder = Path.cwd()
    row = measured(
        a_model(
            "return self.head(x)",
            build="torch.set_num_threads(1); torch.set_default_dtype(torch.float64); os.chdir('/'); "
            "torch.manual_seed(3); torch.set_grad_enabled(False); os.environ['PLANTED'] = '1'; "
            "torch.use_deterministic_algorithms(True); torch.set_float32_matmul_precision('medium')",
        ),
        mode="train",
        batch_size=2,
    )
    assert row.status == "ok", row.reason
    assert torch.get_num_threads() == 2
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert Path.cwd() == folder
    assert "PLANTED" not in os.environ
    assert row.changed_settings == ()
    assert "changed_settings" not in {note.code for note in row.notes}
    assert row.count is not None
    assert row.count.macs == 30


def test_what_a_forward_sets_is_a_warning(measured: Measured, unchanged: None) -> None:
    row = measured(a_model("torch.set_num_threads(1); return self.head(x)"), metrics=("time",))
    assert row.status == "ok", row.reason
    assert row.changed_settings == ("threads (2, now 1), while it was timed",)
    assert "changed_settings" in {note.code for note in row.notes}


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """As in a terminal: a shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("sys.exit('needs a GPU,\\n  sorry')", "needs a GPU, sorry"),
        ("sys.exit(3)", "sys.exit(3)"),
        ("sys.exit()", "sys.exit()"),
        ("sys.exit(['a', 'list'])", "['a', 'list']"),
        ("raise SystemExit(ValueError('no licence'))", "no licence"),
        ("raise KeyboardInterrupt('by itself')", None),
        ("raise type('Stop', (BaseException,), {})('not an Exception')", "Stop: not an Exception"),
    ],
)
@pytest.mark.parametrize("where", ["build", "init", "forward"])
def test_a_model_that_ends_the_process_keeps_its_text(
    measured: Measured, where: str, call: str, text: str | None, ctrl_c_raises: None
) -> None:
    arguments = {"forward": "return self.head(x)", where: call}
    if text is None:  # Ctrl-C looks the same where SIGINT raises KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            measured(a_model(**arguments))
        return
    row = measured(a_model(**arguments))
    assert row.status == "error"
    assert text in (row.reason or "")
    assert "net.py:" in (row.reason or "")


UNCOUNTED = {
    "a branch on values": {"forward": "return self.head(x if x.sum().item() > 0 else -x)"},
    "numpy": {"forward": "return self.head(torch.from_numpy(x.numpy() + 0))"},
    "a value in the constructor": {
        "forward": "return self.head(x)",
        "init": "self.p = torch.zeros(3).sum().item()",
    },
    "indices of values": {"forward": "return self.head(x)[x[:, 0].isfinite().nonzero()[:, 0].tolist()]"},
}


@pytest.mark.parametrize("case", UNCOUNTED)
@pytest.mark.parametrize("metrics", [("count",), ("count", "time")])
def test_parameters_are_known_where_operations_are_not(
    measured: Measured, case: str, metrics: tuple[str, ...]
) -> None:
    row = measured(a_model(**UNCOUNTED[case]), metrics=metrics)
    assert row.status == "ok", row.reason
    assert row.count is None
    assert row.null_reasons["count"]
    assert row.params == 40
    shown = {column.name: column.value(row) for column in COLUMNS}
    assert shown["params"] == 40
    assert shown["macs"] is None


def test_batch_norm_at_batch_1_says_what_helps(measured: Measured) -> None:
    text = a_model("return self.head(self.norm(x))", init="self.norm = nn.BatchNorm1d(3)")
    row = measured(text, mode="train")
    assert row.status == "unsupported"
    assert (row.reason or "").endswith("use --batch 2.")


SPECIAL = {
    "a sparse buffer": (
        "self.register_buffer('table', torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 2]]), "
        "torch.tensor([1.0, 2.0]), (3, 3), check_invariants=False))",
        "return self.head(torch.sparse.mm(self.table, x.T).T)",
    ),
    "a sparse buffer made from a dense one": (
        "self.register_buffer('table', torch.eye(3).to_sparse())",
        "return self.head(torch.sparse.mm(self.table, x.T).T)",
    ),
    "a compressed sparse buffer": (
        "self.register_buffer('table', torch.eye(3).to_sparse_csr())",
        "return self.head((self.table @ x.T).T)",
    ),
    "a sparse buffer that is not used": (
        "self.register_buffer('table', torch.eye(3).to_sparse())",
        "return self.head(x)",
    ),
    "a complex parameter": (
        "self.waves = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))",
        "return self.head((x.to(torch.complex64) @ self.waves).abs().to(x.dtype))",
    ),
    "a complex buffer": (
        "self.register_buffer('waves', torch.randn(3, 3, dtype=torch.complex64))",
        "return self.head((x.to(self.waves.dtype) @ self.waves).real.to(x.dtype))",
    ),
    "a tensor from numpy": (
        "self.table = torch.from_numpy(numpy.ones(3, numpy.float32))",
        "return self.head(x * self.table.to(x.dtype))",
    ),
    "a tensor made in forward": ("pass", "return self.head(x + torch.zeros(3).to(x.dtype))"),
}


CHANGES: list[dict[str, Any]] = [{}, {"mode": "train", "batch_size": 2}, {"dtype": "bf16"}]
QUICK = ("a complex parameter", "a sparse buffer")


@pytest.mark.parametrize(
    ("changes", "case"),
    [
        pytest.param(
            changes,
            case,
            id=f"{changes}-{case}",
            marks=pytest.mark.slow if changes and case not in QUICK else [],
        )
        for changes in CHANGES
        for case in SPECIAL
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Casting complex")
def test_a_model_that_runs_is_measured_whatever_its_tensors(
    measured: Measured, changes: dict[str, Any], case: str
) -> None:
    init, forward = SPECIAL[case]
    if "sparse" in case and "used" not in case and changes.get("dtype"):
        pytest.skip("torch has no sparse product in bfloat16")
    row = measured(a_model(forward, init=init), **changes)
    assert row.status == "ok", row.reason
    assert row.timing is not None
    assert row.memory is not None
    assert row.count is not None or row.params is not None
    if "sparse" not in case:
        assert row.count is not None, row.null_reasons
        assert row.tensors is not None, row.null_reasons


def test_complex_parameters_keep_their_imaginary_part(measured: Measured) -> None:
    row = measured(
        a_model(
            "w = self.waves; assert w.is_complex() and w.imag.abs().min() > 0; return self.head(x)",
            init="self.waves = nn.Parameter(torch.full((3, 3), 1 + 1j))",
        ),
        metrics=("time",),
    )
    assert row.status == "ok", row.reason


def test_what_the_cell_s_dtype_asks_of_torch_outlives_the_building(measured: Measured) -> None:
    """torch allows TF32 in convolutions by default, and an fp32 cell forbids it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        build = "torch.backends.cudnn.allow_tf32 = True; torch.backends.cuda.matmul.allow_tf32 = True"
        row = measured(a_model("return self.head(x)", build=build), metrics=("count", "time"))
        assert row.status == "ok", row.reason
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(("mode", "dtype"), [("infer", torch.bfloat16), ("train", torch.float32)])
def test_libraries_and_the_models_own_scans_start_before_memory_is_watched(
    mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled or allocated once would otherwise be a part of the model's peak."""
    events: list[Any] = []

    def watch(images: torch.Tensor) -> PeakMemory:
        events.append("watched")
        return PeakMemory(images)

    def start(cell: Cell, data: ImageData) -> None:
        events.append("libraries")

    def warm_up(device: str, sizes: Iterable[ScanSize], **how: object) -> None:
        events.append((set(sizes), how))

    monkeypatch.setattr(cell_module, "PeakMemory", watch)
    monkeypatch.setattr(cell_module, "start_libraries", start)
    monkeypatch.setattr(cell_module, "warm_up_scan", warm_up)
    row = measure_cell(
        request(
            model="mambavision-n",
            family="mambavision",
            variant="mambavision-n",
            implementation="native",
            mode=mode,
            dtype="bf16",
            metrics=("memory",),
        )
    )
    assert row.status == "ok", row.reason
    libraries, (sizes, how), watched = events
    assert (libraries, watched) == ("libraries", "watched")
    assert how == {"dtype": dtype, "backward": mode == "train"}
    assert sizes
    assert all(size.channels > 2 and size.states > 2 for size in sizes)
