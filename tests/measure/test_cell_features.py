"""A cell of `--output features`: maps in place of logits, in every part of its row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from longvis_bench.measure.cell import measure_cell
from longvis_bench.measure.iteration import TrainStep, make_optimizer
from longvis_bench.measure.memory.tensor_peak import tensor_peak
from longvis_bench.records import Cell, Request, Row, Settings
from longvis_bench.registry.output import build_output
from longvis_bench.registry.registry import Registry
from longvis_bench.report.columns import BY_NAME, null_reason

pytestmark = pytest.mark.usefixtures("two_threads")
REGISTRY = Registry()
SIDES = {"swin-n": (64, 32, 16, 8), "vit-n": (16,)}


def cell(model: str, **changes: object) -> Cell:
    variant = REGISTRY.find(model)
    names = {"model": model, "family": variant.family, "variant": model}
    made = Cell(**names, implementation=variant.implementation, resolution=256, output="features")
    return made.model_copy(update={"threads": 2, **changes})


def measured(model: str, **changes: object) -> Row:
    return measure_cell(Request(cell=cell(model, **changes), settings=Settings(budget_s=0.1)))


@pytest.mark.parametrize("model", SIDES)
def test_a_row_of_features_has_maps_and_no_accuracy(model: str) -> None:
    row = measured(model, batch_size=2)
    assert row.status == "ok", row.reason
    assert row.features is not None
    assert row.features.strides == tuple(256 // side for side in SIDES[model])
    held = 4 * 2 * sum(c * s * s for c, s in zip(row.features.channels, SIDES[model], strict=True))
    assert row.features.held_bytes == held == BY_NAME["feature_bytes"].value(row)
    assert row.timing is not None
    assert row.memory is not None
    assert row.tensors is not None
    assert row.tensors.peak_bytes >= held
    assert row.validity is not None
    assert row.validity.verdict == "ok"
    assert row.validity.batch_error is not None
    assert row.accuracy is None
    assert null_reason(BY_NAME["top1"], row) == "maps have no classes (--output features)"
    assert BY_NAME["num_classes"].value(row) is None
    assert Row.model_validate_json(row.to_json()) == row


def test_a_row_of_logits_has_no_maps() -> None:
    row = measured("vit-n", output="logits", metrics=("count",))
    assert row.features is None
    assert null_reason(BY_NAME["feature_strides"], row) == "the output is logits"


@pytest.mark.parametrize(("mode", "dtype"), [("infer", "bf16"), ("train", "fp32"), ("train", "fp16")])
def test_maps_are_held_in_the_dtype_of_the_cell(mode: str, dtype: str) -> None:
    row = measured("swin-n", mode=mode, dtype=dtype, metrics=("time",))
    assert row.status == "ok", row.reason
    assert row.features is not None
    assert row.features.held_bytes is not None
    elements = sum(c * s * s for c, s in zip(row.features.channels, SIDES["swin-n"], strict=True))
    if mode == "infer":
        assert row.features.held_bytes == 2 * elements
    else:
        assert set(row.timing.parts_s) == {"forward", "backward", "optimizer"}  # type: ignore[union-attr]
        assert 2 * elements <= row.features.held_bytes <= 4 * elements


def test_counting_alone_knows_the_maps_and_not_their_bytes() -> None:
    row = measured("swin-n", metrics=("count",))
    assert row.features is not None
    assert row.features.strides == (4, 8, 16, 32)
    assert row.features.held_bytes is None
    assert null_reason(BY_NAME["feature_bytes"], row) == "no iteration ran"


def test_reach_is_a_matter_of_the_whole_model() -> None:
    row = measured("vit-n", metrics=("count", "reach"))
    assert row.reach is None
    assert row.null_reasons["reach"] == "measured of models with their head only (--output logits)"


def test_a_training_step_gives_gradients_by_all_maps() -> None:
    torch.manual_seed(0)
    made = cell("mila-n", mode="train", resolution=64)
    model = build_output(REGISTRY.find("mila-n"), "features", resolution=64, num_classes=10).train()
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, maps: tuple[Tensor, ...]) -> None:
        seen.extend(maps)
        for one in maps:
            one.retain_grad()

    model.register_forward_hook(keep)
    step = TrainStep(made, model, torch.randn(1, 3, 64, 64), make_optimizer(model))
    step.forward()
    step.backward()
    assert len(seen) == 4
    for one in seen:
        assert one.grad is not None
        assert (one.grad != 0).float().mean() > 0.9
    assert step.loss.item() == pytest.approx(sum(one.abs().mean().item() for one in seen), rel=1e-5)


def test_the_weights_of_the_head_are_not_held() -> None:
    variant = REGISTRY.find("swin-n")
    wide = {"num_classes": 100_000, "resolution": 64, "metrics": ("memory",)}
    logits = tensor_peak(variant, cell("swin-n", output="logits", **wide))
    features = tensor_peak(variant, cell("swin-n", **wide))
    model = variant.build(resolution=64, num_classes=100_000)
    head = sum(4 * p.numel() for name, p in model.named_parameters() if name.startswith(("head.", "norm.")))
    assert logits.parts_bytes["weights"] - features.parts_bytes["weights"] == head


def test_batch_norms_fold_and_gradients_are_checkpointed_without_the_head() -> None:
    row = measured("mambavision-n", fuse=True, metrics=("time", "validity"), resolution=64)
    assert row.status == "ok", row.reason
    assert int(row.backends["folded"]) > 0
    plain, checked = (
        tensor_peak(REGISTRY.find("swin-n"), cell("swin-n", mode="train", grad_checkpointing=on))
        for on in (False, True)
    )
    assert checked.parts_bytes["activations"] < plain.parts_bytes["activations"]


def test_a_random_head_does_not_make_the_backbone_random(tmp_path: Path) -> None:
    """Weights of another number of classes fit a backbone as a whole."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    trained = REGISTRY.find("swin-n").build(resolution=64, num_classes=10)
    tensors = {name: t for name, t in trained.state_dict().items() if not name.startswith("head.")}
    save_file(tensors, tmp_path / "backbone.safetensors")
    made = cell("swin-n", resolution=64, metrics=("validity",), weights="backbone.safetensors")
    request = Request(
        cell=made, settings=Settings(budget_s=0.1), weights_path=tmp_path / "backbone.safetensors"
    )
    row = measure_cell(request)
    assert row.status == "ok", row.reason
    assert row.size is not None
    assert row.size.random_tensors == ()


def test_a_model_without_maps_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n"
        "def build(*, resolution, num_classes, in_chans=3):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, num_classes))\n",
        encoding="utf-8",
    )
    for metrics in (("count",), ("time",)):
        made = cell("vit-n", resolution=64, metrics=metrics)
        row = measure_cell(
            Request(cell=made, model=f"{tmp_path}/mine.py:build", settings=Settings(budget_s=0.1))
        )
        assert row.status == "unsupported"
        assert "offers no maps" in (row.reason or "")
