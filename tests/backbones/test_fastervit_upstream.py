"""`fastervit@upstream`: the package's own model, without what the package leaves behind; ours equals it."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from longvis_bench.backbones import fastervit as native
from longvis_bench.backbones import fastervit_upstream as fastervit
from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.errors import MissingDependency
from longvis_bench.registry.registry import Registry
from longvis_bench.weights.matching import load_weights
from longvis_bench.weights.store import save_weights

HAS_PACKAGE = importlib.util.find_spec("fastervit") is not None
REGISTRY = Registry()
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not HAS_PACKAGE, reason="needs the package fastervit"),
    *[
        pytest.mark.filterwarnings(f"ignore:{message}")  # of the package as it is imported here
        for message in ("Importing from timm.models:FutureWarning", "Overwriting .* in registry:UserWarning")
    ],
]


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return REGISTRY.find("fastervit-n@upstream").build(resolution=256, num_classes=10)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", range(7))
def test_variants_are_those_the_package_names(size: int) -> None:
    """The card's arguments give the layout of `faster_vit_N_any_res`, natively and @upstream."""
    from fastervit.models import faster_vit_any_res as package

    names = (f"fastervit-{size}[window_size=(7,7,7,7)]", f"fastervit-{size}@upstream[window_size=(7,7,7,7)]")
    with torch.device("meta"), fastervit.without_deprecations(), LinspaceOnCpu():
        ours, wrapped = (REGISTRY.find(name).build(resolution=448, num_classes=1000) for name in names)
        theirs = getattr(package, f"faster_vit_{size}_any_res")(resolution=[448, 448])
    derived = fastervit.derived_buffers(theirs)
    expected = {name: t.shape for name, t in theirs.state_dict().items() if name not in derived}
    assert {name: t.shape for name, t in ours.state_dict().items()} == expected
    assert fastervit.derived_buffers(wrapped) == derived


def random_weights(model: torch.nn.Module) -> None:
    """Values at which no branch of the model is nearly off."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0 if parameter.ndim > 1 else 0.5, 0.2)


@pytest.mark.parametrize(
    ("resolution", "arguments"),
    [
        (64, {}),
        (128, {}),
        (256, {}),
        (256, {"layer_scale": 0.5, "do_propagation": True}),
        (256, {"window_size": (7, 7, 7, 7), "ct_size": 3, "do_propagation": True}),
        (320, {"window_size": (7, 7, 7, 7), "layer_scale": 0.5, "mlp_ratio": 2.5}),
        (1024, {"window_size": (7, 7, 7, 7)}),
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_the_native_model_computes_what_the_package_computes(
    resolution: int, arguments: dict[str, Any], train: bool
) -> None:
    torch.manual_seed(0)
    asked = ",".join(f"{name}={value}" for name, value in arguments.items()).replace(" ", "")
    ours, theirs = (
        REGISTRY.find(f"{name}[{asked}]").build(resolution=resolution, num_classes=10).train(train)
        for name in ("fastervit-n", "fastervit-n@upstream")
    )
    random_weights(theirs)
    report = load_weights(ours, theirs.state_dict())
    assert (report.missing, report.random) == ((), ())
    images = torch.randn(2, 3, resolution, resolution)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_weights_go_both_ways(tmp_path: Path) -> None:
    """A file that either implementation saves loads whole into the other."""
    both = [REGISTRY.find(name) for name in ("fastervit-n", "fastervit-n@upstream")]
    images = torch.randn(2, 3, 256, 256)
    for saver, loader in (both, both[::-1]):
        one, other = (variant.build(resolution=256, num_classes=10).eval() for variant in (saver, loader))
        save_weights(one, tmp_path / "one.safetensors", {})
        load_weights(one, tmp_path / "one.safetensors")
        report = load_weights(other, tmp_path / "one.safetensors")
        assert (report.missing, report.unused, report.random) == ((), (), ())
        with torch.inference_mode():
            torch.testing.assert_close(one(images), other(images), rtol=1e-4, atol=1e-5)


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(MissingDependency) as caught:
        REGISTRY.find("fastervit-n@upstream").build(resolution=64, num_classes=2)
    assert caught.value.install == "python -m pip install fastervit"


def test_gradients_reach_every_parameter(model: torch.nn.Module, images: torch.Tensor) -> None:
    model.train()(images).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    biases = [p.grad for name, p in model.named_parameters() if "cpb_mlp" in name]
    assert biases
    assert all(grad is not None and grad.abs().sum() > 0 for grad in biases)


def test_without_carrier_tokens_their_layer_is_dead() -> None:
    model = REGISTRY.find("fastervit-n@upstream").build(resolution=128, num_classes=10)
    model(torch.randn(2, 3, 128, 128)).square().mean().backward()
    dead = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert dead == {"levels.2.global_tokenizer.pos_embed"}


def test_eval_repeats_and_follows_the_weights(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Position biases are not what they were at the first forward."""
    model.eval()
    with torch.inference_mode():
        first = model(images)
        assert torch.equal(first, model(images))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "cpb_mlp" in name:
                p.mul_(5)
        assert not torch.equal(model(images), first)


def test_switching_between_training_and_eval(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        model.eval()(images)
    model.train()(images).square().mean().backward()
    model.train()(images).square().mean().backward()
    assert torch.isfinite(model.eval()(images)).all()


def test_what_a_forward_leaves_behind(model: torch.nn.Module, images: torch.Tensor) -> None:
    model.train()(images)
    assert not any(buffer.requires_grad for buffer in model.buffers())
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(images), model.eval()(images))


def test_the_package_by_itself_leaves_its_graph_behind(images: torch.Tensor) -> None:
    """The fault that is worked around: when this fails, the work-around can go."""
    from fastervit.models.faster_vit_any_res import FasterViT

    arguments = {
        **REGISTRY.find("fastervit-n@upstream").arguments,
        "window_size": [7, 7, 8, 8],
        "ct_size": 2,
        "mlp_ratio": 4,
    }
    model = FasterViT(resolution=[256, 256], num_classes=10, **arguments)
    model(images)
    assert any(buffer.requires_grad for buffer in model.buffers())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)


def test_state_dict_round_trip(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        logits = model.eval()(images)
    state = copy.deepcopy(model.state_dict())
    buffers = {name for name in fastervit.derived_buffers(model) if native.ALIAS not in name}
    assert not buffers & set(state)
    assert {name.rpartition(".")[2] for name in buffers} == set(native.DERIVED)
    other = REGISTRY.find("fastervit-n@upstream").build(resolution=256, num_classes=10).eval()
    other.load_state_dict(state)
    model.load_state_dict(state)
    with torch.inference_mode():
        assert torch.equal(other(images), logits)
        assert torch.equal(model(images), logits)


def test_weights_of_one_size_run_at_another(model: torch.nn.Module) -> None:
    larger = REGISTRY.find("fastervit-n@upstream").build(resolution=448, num_classes=10)
    larger.load_state_dict(model.state_dict())


@pytest.mark.parametrize("implementation", ["", "@upstream"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_checkpoints_load(tmp_path: Path, prefix: str, implementation: str) -> None:
    """In the layout of NVIDIA's fastervit_*_224_1k.pth.tar: the square form's state dict, buffers and all."""
    with fastervit.without_deprecations():
        from fastervit.models.faster_vit import FasterViT

        variant = REGISTRY.find(f"fastervit-n{implementation}[window_size=(7,7,7,7)]")
        arguments = {**variant.arguments, "window_size": [7, 7, 7, 7], "ct_size": 2, "mlp_ratio": 4}
        theirs = FasterViT(
            resolution=224, num_classes=10, hat=[False, False, True, False], **arguments
        ).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs(images)
    state = {prefix + name: value.clone() for name, value in theirs.state_dict().items()}
    assert any(name.endswith("relative_bias") for name in state)
    content = {
        "epoch": 300,
        "arch": "faster_vit_0_224",
        "state_dict": state,
        "args": argparse.Namespace(lr=1),
    }
    torch.save(content, tmp_path / "fastervit_0_224_1k.pth.tar")
    ours = variant.build(resolution=224, num_classes=10).eval()
    report = load_weights(ours, tmp_path / "fastervit_0_224_1k.pth.tar")
    assert (report.missing, report.random, report.reshaped) == ((), (), {})
    unused = [name.removeprefix(prefix) for name in report.unused]
    assert all(native.is_derived(name) for name in unused)
    assert {name.rpartition(".")[2] for name in unused} == {*native.DERIVED, "weight", "bias"}
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-6)
    larger = REGISTRY.find("fastervit-n@upstream").build(resolution=512, num_classes=10)
    report = load_weights(larger, tmp_path / "fastervit_0_224_1k.pth.tar")
    assert (report.missing, report.random) == ((), ())


def test_no_print_and_no_warning_in_a_fresh_process() -> None:
    code = (
        "import torch; from longvis_bench.registry.registry import Registry; "
        "m = Registry().find('fastervit-n@upstream').build(resolution=64, num_classes=2); "
        "m(torch.zeros(2, 3, 64, 64))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_warnings_are_not_silenced() -> None:
    with pytest.warns(UserWarning, match="mine"), fastervit.without_deprecations():
        warnings.warn("mine", UserWarning, stacklevel=1)
