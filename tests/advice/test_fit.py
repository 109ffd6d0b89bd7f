"""What fits into a memory: without a GPU, against direct executions and hand counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import longvis_bench as lv
from longvis_bench.advice.fit import MOST_PIXELS, FitRow, Question, fit, legal_sizes, make_device
from longvis_bench.advice.gpus import GPUS, find_gpu
from longvis_bench.advice.need import Device, need_of
from longvis_bench.errors import LongvisError, MissingDependency, UnknownName, Unsupported
from longvis_bench.measure.memory.cuda_allocator import rounded
from longvis_bench.measure.memory.tensor_peak import planned_trace, tensor_peak
from longvis_bench.records import Cell, Mode
from longvis_bench.registry.registry import Registry
from longvis_bench.report.peak_flops import peak_flops

GIB = 1 << 30
FAMILIES = ("atlas", "convnext", "fastervit", "longvit", "mambavision", "swin", "vit")
QUICK_FAMILIES = [
    pytest.param(name, marks=[] if name in ("atlas", "convnext", "mambavision") else pytest.mark.slow)
    for name in FAMILIES
]
MODEL_FILE = """import torch
from torch import nn
def build(*, resolution, num_classes, in_chans=3):
    return Net(num_classes)
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.head = nn.Linear(3, n)
    def forward(self, x):
"""


def cell(name: str, resolution: int, batch: int = 1, mode: Mode = "infer", **more: object) -> Cell:
    variant = Registry().find(name)
    asked = {
        "model": name,
        "family": variant.family,
        "variant": name,
        "implementation": variant.implementation,
    }
    condition = {"resolution": resolution, "batch_size": batch, "mode": mode, **more}
    return Cell.model_validate(asked | condition)


def rows(
    *names: str, memory: int = 24 * GIB, device: str = "cuda", gpu: str | None = None, **more: object
) -> list[FitRow]:
    question = {"resolutions": (256,), "search": False, **more}
    return list(fit(names, Question(make_device(device, gpu, memory), **question), Registry()))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("family", QUICK_FAMILIES)
def test_on_a_cpu_the_trace_peaks_where_the_tensor_peak_of_rows_does(family: str, mode: Mode) -> None:
    """The trace leaves out the optimizer's operators; its peak is that of the whole step all the same."""
    asked = cell(f"{family}-n", 512, mode=mode)
    variant = Registry().find(f"{family}-n")
    wanted, found = tensor_peak(variant, asked), planned_trace(variant, asked)
    assert found.peak() == pytest.approx(wanted.peak_bytes, rel=0.005)


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("family", QUICK_FAMILIES)
def test_a_batch_that_was_worked_out_equals_one_that_is_executed(family: str, mode: Mode) -> None:
    (row,) = rows(f"{family}-n", modes=(mode,), batch_sizes=(5,), gpu="a100-40")
    asked = cell(f"{family}-n", 256, 5, mode, device="cuda", dtype="bf16", num_classes=1000)
    direct = planned_trace(Registry().find(f"{family}-n"), asked, (8, 0))
    need = need_of(direct, Device("cuda", GIB, (8, 0)), train=mode == "train")
    assert (row.predicted_peak_bytes, row.needed_bytes) == (need.peak_bytes, need.high_bytes)


def test_attention_of_a_vit_grows_with_the_tokens_and_not_with_their_square() -> None:
    """With products its logits alone would take 385 GiB: 12 heads x 65536^2 x 4 or 8 bytes."""
    (row,) = rows("vit-b", resolutions=(4096,), gpu="a100-40")
    assert row.attention == "flash"
    assert row.needed_bytes is not None
    assert row.needed_bytes < 4 * GIB
    assert row.fits == "yes"


def test_a_gpu_without_a_kernel_for_bf16_takes_products_and_says_so() -> None:
    (turing,) = rows("vit-n", resolutions=(1024,), gpu="t4", memory=GIB)
    (ampere,) = rows("vit-n", resolutions=(1024,), gpu="a100-40", memory=GIB)
    assert (turing.attention, ampere.attention) == ("math", "flash")
    assert turing.predicted_peak_bytes
    assert ampere.predicted_peak_bytes
    assert turing.predicted_peak_bytes > 5 * ampere.predicted_peak_bytes


def test_training_under_autocast_keeps_half_of_float32s_activations() -> None:
    parts = [
        rows("vit-n", modes=("train",), resolutions=(512,), dtype=dtype, gpu="h100")[0].parts_bytes
        for dtype in ("fp32", "bf16")
    ]
    assert parts[0]["weights"] == pytest.approx(parts[1]["weights"], rel=0.01)
    assert 0.3 < parts[1]["activations"] / parts[0]["activations"] < 0.8


def test_checkpointing_is_a_row_of_its_own_and_takes_less() -> None:
    plain, checkpointed = rows("vit-n", modes=("train",), resolutions=(1024,), grad_checkpointing=True)
    assert (plain.grad_checkpointing, checkpointed.grad_checkpointing) == (False, True)
    assert checkpointed.predicted_peak_bytes
    assert plain.predicted_peak_bytes
    assert checkpointed.predicted_peak_bytes < 0.9 * plain.predicted_peak_bytes


def test_the_parts_sum_to_the_need_and_the_verdict_follows_from_its_ends() -> None:
    (row,) = rows("convnext-n", modes=("train",))
    assert row.needed_bytes
    assert row.needed_low_bytes
    assert sum(row.parts_bytes.values()) == row.needed_bytes
    ends = {row.needed_bytes: "yes", row.needed_bytes - 1: "tight", row.needed_low_bytes - 1: "no"}
    for memory, answer in ends.items():
        assert rows("convnext-n", modes=("train",), memory=memory)[0].fits == answer


def test_largest_batch_and_size_are_the_last_that_surely_fit() -> None:
    memory = 2 * GIB
    (row,) = rows("convnext-n", resolutions=(512,), memory=memory, search=True)
    assert row.largest_batch
    assert row.largest_resolution
    for batch, answer in ((row.largest_batch, True), (row.largest_batch + 1, False)):
        found = rows("convnext-n", resolutions=(512,), batch_sizes=(batch,), memory=memory)[0]
        assert (found.fits == "yes") == answer
    for size, answer in ((row.largest_resolution, True), (row.largest_resolution + 32, False)):
        assert (rows("convnext-n", resolutions=(size,), memory=memory)[0].fits == "yes") == answer


def test_where_nothing_fits_the_largest_batch_is_zero() -> None:
    (row,) = rows("convnext-n", memory=64 << 20, search=True)
    assert (row.fits, row.largest_batch, row.largest_resolution) == ("no", 0, None)
    assert "needs at least" in row.reason


def test_an_illegal_size_has_its_reason_beside_sizes_that_are_legal() -> None:
    illegal, legal = rows("vit-n", resolutions=(1000, 256), memory=GIB, search=True)
    assert illegal.fits is None
    assert "not a legal size" in illegal.reason
    assert legal.fits == "yes"
    assert illegal.largest_resolution == legal.largest_resolution


def test_a_model_that_needs_data_is_unknown_and_never_yes(tmp_path: Path) -> None:
    Path("net.py").write_text(MODEL_FILE + "        return self.head(x.mean((2, 3))) * x.max().item()\n")
    with pytest.raises(Unsupported, match=r"net.py:build cannot be executed by shape: .*\.$"):
        lv.fit(["net.py:build"], [64], memory="24GiB")
    frame = lv.fit(["net.py:build", "vit-n"], [64], memory="24GiB")
    assert list(frame.fits) == [None, "yes"]
    assert frame.predicted_peak_bytes.isna().tolist() == [True, False]


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_features_need_the_backbone_and_its_maps_alone(mode: Mode) -> None:
    """At a hundred thousand classes the head weighs more than the rest."""
    wide: dict[str, Any] = {"modes": (mode,), "num_classes": 100_000, "dtype": "fp32"}
    (logits,), (features,) = rows("swin-n", **wide), rows("swin-n", output="features", **wide)
    model = Registry().find("swin-n").build(resolution=256, num_classes=100_000)
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("head.", "norm.")))
    assert (logits.output, features.output) == ("logits", "features")
    saved = logits.parts_bytes["weights"] - features.parts_bytes["weights"]
    assert saved == pytest.approx(4 * head, abs=4096)  # blocks of the allocator
    assert features.fits == "yes"


def test_a_frame_has_the_columns_that_were_promised() -> None:
    frame = lv.fit(
        ["vit-n"], [256], memory="24GiB", modes=["infer"], dtype="bf16", batch_sizes=[1], device="cuda"
    )
    promised = (
        "model resolution mode batch_size predicted_peak_bytes fits largest_batch largest_resolution reason"
    )
    assert next(iter(frame.columns)) == "model"
    assert set(promised.split()) < set(frame.columns)
    assert frame.fits[0] == "yes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "24"}, r"24 what\? 24GiB"),
        ({"memory": "lots"}, "a size like 8GiB"),
        ({"gpu": "rtx490"}, "unknown GPU 'rtx490': did you mean .*rtx4090"),
        ({"gpu": "zzz"}, "known: t4"),
        ({}, "give the memory to fit into: --memory 24GiB"),
        ({"memory": "1GiB", "device": "mps"}, "cuda and of cpu, not of 'mps'"),
        ({"gpu": "t4", "device": "cpu"}, "leave out --device cpu"),
    ],
)
def test_bad_input_is_one_sentence(options: dict[str, str], message: str) -> None:
    with pytest.raises(LongvisError, match=message):
        lv.fit(["vit-n"], [256], **options)  # type: ignore[arg-type]


def test_a_size_that_no_model_takes_and_a_package_that_is_missing() -> None:
    with pytest.raises(LongvisError, match="1000 px is not a legal size"):
        lv.fit(["vit-n", "dinov3-n"], [1000], memory="1GiB")
    with pytest.raises(MissingDependency):
        lv.fit(["mambavision-s@upstream"], [224], memory="24GiB")


def test_tf32_is_for_gpus() -> None:
    with pytest.raises(Unsupported, match="tf32 needs an NVIDIA GPU"):
        lv.fit(["vit-n"], [256], memory="24GiB", device="cpu", dtype="tf32")


@pytest.mark.parametrize("spelling", ["rtx4090", "RTX 4090", "rtx-4090", "NVIDIA GeForce RTX 4090"])
def test_gpus_are_found_however_they_are_spelled(spelling: str) -> None:
    assert find_gpu(spelling) is GPUS["rtx4090"]


def test_each_gpu_is_one_that_the_table_of_peaks_knows_by_its_device() -> None:
    for name, gpu in GPUS.items():
        assert peak_flops(gpu.device, "fp16"), name
        assert gpu.source
    with pytest.raises(UnknownName):
        find_gpu("rtx")


def test_need_on_cuda_is_rounded_tensors_and_stated_constants() -> None:
    variant = Registry().find("vit-n")
    trace = planned_trace(variant, cell("vit-n", 256, device="cuda", dtype="bf16"), (8, 0))
    need = need_of(trace, Device("cuda", GIB, (8, 0)), train=False)
    mib = 1 << 20
    assert need.peak_bytes == trace.peak(rounded)
    assert need.low_bytes == need.peak_bytes + int(8.125 * mib) + 300 * mib
    assert need.parts_bytes["context"] == 700 * mib
    assert need.high_bytes > need.low_bytes


def test_legal_sizes_are_those_that_plan() -> None:
    registry = Registry()
    assert legal_sizes(registry.find("vit-n"))[:2] == [32, 64]
    assert 8192 in legal_sizes(registry.find("atlas-n"))
    assert 1000 not in legal_sizes(registry.find("atlas-n"))
    assert legal_sizes(registry.find("convnext-n"))[-1] == MOST_PIXELS
