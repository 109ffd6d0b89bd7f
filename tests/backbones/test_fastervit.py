"""FasterViT: the package's own model, on meta as on the CPU, without what the package leaves behind."""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from longvis_bench.backbones import fastervit
from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.errors import IllegalSize
from longvis_bench.registry.registry import Registry
from longvis_bench.weights.matching import load_weights

REGISTRY = Registry()
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")  # of the package as it is imported here
    for message in ("Importing from timm.models:FutureWarning", "Overwriting .* in registry:UserWarning")
]


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return REGISTRY.find("fastervit-n").build(resolution=256, num_classes=10)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", range(7))
def test_variants_are_those_the_package_names(size: int) -> None:
    """The card's arguments give the layout of `faster_vit_N_any_res`."""
    from fastervit.models import faster_vit_any_res as package

    with torch.device("meta"), fastervit.without_deprecations(), LinspaceOnCpu():
        ours = REGISTRY.find(f"fastervit-{size}[window_size=(7,7,7,7)]").build(
            resolution=448, num_classes=1000
        )
        theirs = getattr(package, f"faster_vit_{size}_any_res")(resolution=[448, 448])
    derived = fastervit.derived_buffers(theirs)
    expected = {name: t.shape for name, t in theirs.state_dict().items() if name not in derived}
    assert {name: t.shape for name, t in ours.state_dict().items()} == expected
    assert fastervit.derived_buffers(ours) == derived


def test_it_computes_what_the_package_computes(images: torch.Tensor) -> None:
    from fastervit.models.faster_vit_any_res import FasterViT

    variant = REGISTRY.find("fastervit-n[layer_scale=0.5,do_propagation=True]")
    ours = variant.build(resolution=256, num_classes=10).eval()
    arguments = {**variant.arguments, "window_size": [7, 7, 8, 8], "ct_size": 2, "mlp_ratio": 4}
    theirs = FasterViT(resolution=[256, 256], num_classes=10, **arguments).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


def test_the_largest_cell_is_built_and_run_on_meta_at_once() -> None:
    start = time.process_time()
    with torch.device("meta"), torch.no_grad():
        model = REGISTRY.find("fastervit-4").build(resolution=4096, num_classes=10).eval()
        assert model(torch.empty(1, 3, 4096, 4096)).shape == (1, 10)
    assert time.process_time() - start < 6
    buffers = list(model.buffers())
    assert all(buffer.is_meta for buffer in buffers)
    assert sum(buffer.nbytes for buffer in buffers) < 1.1 * 2**30


def test_gradients_reach_every_parameter(model: torch.nn.Module, images: torch.Tensor) -> None:
    model.train()(images).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    biases = [p.grad for name, p in model.named_parameters() if "cpb_mlp" in name]
    assert biases
    assert all(grad is not None and grad.abs().sum() > 0 for grad in biases)


def test_without_carrier_tokens_their_layer_is_dead() -> None:
    model = REGISTRY.find("fastervit-n").build(resolution=128, num_classes=10)
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
        **REGISTRY.find("fastervit-n").arguments,
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
    assert not fastervit.derived_buffers(model) & set(state)
    assert {name.rpartition(".")[2] for name in fastervit.derived_buffers(model)} == set(fastervit.DERIVED)
    other = REGISTRY.find("fastervit-n").build(resolution=256, num_classes=10).eval()
    other.load_state_dict(state)
    model.load_state_dict(state)
    with torch.inference_mode():
        assert torch.equal(other(images), logits)
        assert torch.equal(model(images), logits)


def test_weights_of_one_size_run_at_another(model: torch.nn.Module) -> None:
    larger = REGISTRY.find("fastervit-n").build(resolution=448, num_classes=10)
    larger.load_state_dict(model.state_dict())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_checkpoints_load(tmp_path: Path, prefix: str) -> None:
    """In the layout of NVIDIA's fastervit_*_224_1k.pth.tar: the square form's state dict, buffers and all."""
    with fastervit.without_deprecations():
        from fastervit.models.faster_vit import FasterViT

        variant = REGISTRY.find("fastervit-n[window_size=(7,7,7,7)]")
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
    assert {name.rpartition(".")[2] for name in report.unused} == set(fastervit.DERIVED)
    with torch.inference_mode():
        assert torch.equal(ours(images), expected)
    larger = REGISTRY.find("fastervit-n").build(resolution=512, num_classes=10)
    report = load_weights(larger, tmp_path / "fastervit_0_224_1k.pth.tar")
    assert (report.missing, report.random) == ((), ())


def test_window_sizes_are_an_argument() -> None:
    variant = REGISTRY.find("fastervit-n[window_size=(7,7,16,8)]")
    assert "windows of 16 and 8" in variant.plan(256).reach
    model = variant.build(resolution=256, num_classes=10)
    assert [level.window_size for level in model.levels] == [7, 7, 16, 8]  # type: ignore[union-attr, union-attr]


def test_the_smallest_size() -> None:
    with pytest.raises(IllegalSize, match="at least 64 px"):
        REGISTRY.find("fastervit-n").build(resolution=32, num_classes=2)
    model = REGISTRY.find("fastervit-n").build(resolution=64, num_classes=2).eval()
    assert torch.isfinite(model(torch.randn(1, 3, 64, 64))).all()


def test_no_print_and_no_warning_in_a_fresh_process() -> None:
    code = (
        "import torch; from longvis_bench.registry.registry import Registry; "
        "m = Registry().find('fastervit-n').build(resolution=64, num_classes=2); m(torch.zeros(2, 3, 64, 64))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_warnings_are_not_silenced() -> None:
    with pytest.warns(UserWarning, match="mine"), fastervit.without_deprecations():
        warnings.warn("mine", UserWarning, stacklevel=1)
