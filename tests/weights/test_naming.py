"""Names of a file and of a model that belong together and differ: prefixes, wrappers, layouts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from longvis_bench.errors import CheckpointError
from longvis_bench.weights.matching import load_weights


class Net(nn.Module):
    """Two blocks and a head; `inner` puts a wrapper's attribute before every name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inner)


def _same(model: nn.Module, expected: nn.Module) -> bool:
    found, wanted = list(model.state_dict().values()), list(expected.state_dict().values())
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


PREFIXES = [
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.",
    "_forward_module.model.",
    "net.",
    "timm_model.",
    "vit.",
    "0.",
    "backbone.0.body.",
    "_module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_of_the_file_is_taken_off(prefix: str) -> None:
    source, target = Net(), Net()
    extra = {"optimizer_step": torch.ones(1)}
    report = load_weights(target, {**{prefix + n: t for n, t in source.state_dict().items()}, **extra})
    assert _same(target, source)
    assert (report.missing, report.unused) == ((), ("optimizer_step",))


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
@pytest.mark.parametrize("attribute", ["model", "net", "0", "module"])
def test_files_of_the_inner_model_load_into_a_wrapper(prefix: str, attribute: str) -> None:
    source, target = Net(), Wrapper(Net(), attribute)
    report = load_weights(target, {prefix + name: value for name, value in source.state_dict().items()})
    assert _same(target, source)
    assert (report.missing, report.unused) == ((), ())


def test_files_of_a_wrapper_load_into_the_compiled_model() -> None:
    source, target = Wrapper(Net(), "model"), torch.compile(Net())
    assert isinstance(target, nn.Module)
    load_weights(target, source.state_dict())
    assert _same(target, source)


@pytest.mark.parametrize(
    "part", ["_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "module", "_fpw_module"]
)
@pytest.mark.parametrize("prefix", ["", "_fsdp_wrapped_module.", "model."])
def test_names_that_wrappers_insert_are_passed_over(part: str, prefix: str) -> None:
    source, target = Net(), Net()
    names = {n: n.replace("blocks.0.", f"blocks.0.{part}.") for n in source.state_dict()}
    load_weights(target, {prefix + names[name]: value for name, value in source.state_dict().items()})
    assert _same(target, source)
    inserted = Net()
    inserted.blocks[0] = Wrapper(inserted.blocks[0], part)
    load_weights(inserted, source.state_dict())
    assert _same(inserted, source)


@pytest.mark.parametrize("part", ["inner", "base_layer", "_wrapped_module", "a.b"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_that_an_unknown_wrapper_inserts_are_passed_over(part: str, prefix: str) -> None:
    """Around every layer or around some, in the file or in the model."""
    source = Net()
    for where in ("blocks.0.", "blocks.1.", "stem."):
        target = Net()
        names = {name: name.replace(where, f"{where}{part}.") for name in source.state_dict()}
        report = load_weights(target, {prefix + names[n]: t for n, t in source.state_dict().items()})
        assert _same(target, source)
        assert (report.missing, report.unused) == ((), ())
    inserted = Net()
    for name in reversed(part.split(".")):
        inserted.blocks[1] = Wrapper(inserted.blocks[1], name)
    load_weights(inserted, {prefix + name: tensor for name, tensor in source.state_dict().items()})
    assert _same(inserted, source)


def test_a_layer_and_its_adapter_are_not_taken_for_one_another() -> None:
    state = dict(Net().state_dict())
    adapted = {name.replace("blocks.0.", "blocks.0.base_layer."): tensor for name, tensor in state.items()}
    for name in ("lora_A.default.weight", "lora_A.default.scale"):
        assert "lacks 2 tensors" in _refusal({**adapted, f"blocks.0.{name}": torch.ones(2, 4)})


def test_the_set_whose_shapes_fit_is_chosen() -> None:
    source, target, other = Net(), Net(), Net()
    other.stem = nn.Conv2d(3, 8, 2)
    both = {f"teacher.{n}": t for n, t in other.state_dict().items()}
    load_weights(target, both | {f"student.{n}": t for n, t in source.state_dict().items()})
    assert _same(target, source)


@pytest.mark.parametrize(
    "prefixes", [("student.", "teacher."), ("", "ema."), ("model.", "model_ema.module.")]
)
def test_two_sets_under_prefixes_are_refused_unless_they_are_equal(prefixes: tuple[str, str]) -> None:
    one, other = Net(), Net()
    both = {prefixes[0] + n: t for n, t in one.state_dict().items()}
    equal = {prefixes[1] + n: t.clone() for n, t in one.state_dict().items()}
    target = Net()
    load_weights(target, both | equal)
    assert _same(target, one)
    differing = {prefixes[1] + n: t for n, t in other.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"2 sets of weights that fit this model: .*choose one with FILE#KEY"
    ):
        load_weights(Net(), both | differing)


def _refusal(given: dict[str, Tensor]) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_weights(Net(), given)
    return str(refused.value)


def test_every_refusal_shows_three_names_of_each_side() -> None:
    state = dict(Net().state_dict())
    strange = {f"encoder.layer.{i}.kernel": torch.ones(1) for i in range(9)}
    assert _refusal(strange).endswith(
        "The model's names are like stem.weight, stem.bias, blocks.0.weight; the file's are like "
        "encoder.layer.0.kernel, encoder.layer.1.kernel, encoder.layer.2.kernel."
    )
    for name in ("head.weight", "stem.bias"):  # what differs comes first
        given = {key: value for key, value in state.items() if key != name} | strange
        assert f"names are like {name}, " in _refusal(given)
    others = {
        "another shape": state | {"stem.weight": torch.ones(2, 3, 2, 2)},
        "more tensors": state | {"blocks.2.weight": torch.ones(4, 4), "blocks.2.bias": torch.ones(4)},
        "another kind": state | {"stem.bias": torch.ones(4, dtype=torch.int8)},
    }
    for words, given in others.items():
        said = _refusal(given)
        assert words in said
        ours, theirs = said.partition("The model's names are like ")[2].split("; the file's are like ")
        assert len(ours.split(", ")) == len(theirs.split(", ")) == 3


def test_layouts_of_the_authors_load_into_a_wrapper() -> None:
    """timm converts the old names of its ConvNeXt for the inner model."""
    source = timm.create_model("test_convnext", num_classes=3)
    target = Wrapper(timm.create_model("test_convnext", num_classes=3), "model")
    theirs = {f"module.{_by_facebook(name)}": value for name, value in source.state_dict().items()}
    report = load_weights(target, theirs)
    assert (report.missing, report.random) == ((), ())
    assert _same(target, source)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_layouts_of_the_authors_load_into_what_a_wrapper_holds(wrap: Callable[[nn.Module], Any]) -> None:
    source = timm.create_model("test_convnext", num_classes=3)
    target = wrap(timm.create_model("test_convnext", num_classes=3))
    load_weights(target, {_by_facebook(name): value for name, value in source.state_dict().items()})
    assert _same(target, source)


def _by_facebook(name: str) -> str:
    import re

    for ours, theirs in (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.fc\.", "head."),
        (r"^head\.norm\.", "norm."),
    ):
        name = re.sub(ours, theirs, name)
    return name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: (t * 10).to(torch.int8),
        lambda t: t > 0,
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    ],
)
def test_values_of_another_kind_are_refused(spoil: Callable[[Tensor], Tensor]) -> None:
    state = dict(Net().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state["stem.weight"] = spoil(state["stem.weight"])
    with pytest.raises(CheckpointError, match=r"another kind for 1 of .*stem.weight \(\w+, not float32\)"):
        load_weights(Net(), state)


def test_fractions_for_whole_numbers_are_refused_and_whole_ones_taken() -> None:
    model = nn.BatchNorm2d(2)
    state = dict(model.state_dict())
    load_weights(model, state | {"num_batches_tracked": torch.tensor(7.0)})
    assert int(model.state_dict()["num_batches_tracked"]) == 7
    with pytest.raises(CheckpointError, match="num_batches_tracked"):
        load_weights(model, state | {"num_batches_tracked": torch.tensor(0.5)})


@pytest.mark.parametrize("wrap", [False, True])
def test_what_transformers_saves_loads(tmp_path: Path, wrap: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3
    )
    source, inner = (transformers.SwinForImageClassification(config) for _ in range(2))
    source.save_pretrained(tmp_path)
    target = Wrapper(inner, "model") if wrap else inner
    report = load_weights(target, tmp_path / "model.safetensors")
    assert report.missing == ()
    assert _same(target, source)
