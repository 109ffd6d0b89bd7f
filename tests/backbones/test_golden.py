"""The native backbones against numbers that the authors' own code made; tests/golden/README.md says how.

Every vector goes the whole way: official tensor names, through `load_weights`, one forward in float32.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from longvis_bench.registry.registry import Registry
from longvis_bench.weights.matching import load_weights

HERE = Path(__file__).parents[1] / "golden"
SMALL = sorted(HERE.glob("*.safetensors"))
CLASSES = {"atlas": "Atlas", "fastervit": "FasterViT", "longvit": "LongViT", "mambavision": "MambaVision"}
AUTHORS_NAMES = {"fastervit"}
"""Families whose tensors have the authors' names, so that nothing is renamed."""
NOT_ARGUMENTS = {"family", "source", "batch", "scales", "seed", "torch"}
QUICK = {
    "atlas-s_1024px",
    "fastervit-0_224px",
    "fastervit_224px",
    "fastervit_320px_padded",
    "atlas_3scale_w4_512px_position",
    "longvit_h12_p16_272px_ragged",
    "longvit_h4_p8_104px_shifted",
    "mambavision_320px_padded",
}
"""Vectors of published sizes and of gradients that run by default; `make deep` runs all."""

Record = Callable[[str, object], None]


def _formula() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "golden_formula", HERE.parents[1] / "scripts" / "golden" / "formula.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMULA = _formula()


def vectors(kind: str) -> list[Any]:
    """Files of one kind as parameters of a test; those that take long are marked so."""
    paths = sorted((HERE / kind).glob("*.safetensors"))
    return [
        pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem)
        for path in paths
    ]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def build(config: dict[str, Any]) -> nn.Module:
    """The variant of a vector as a user names it, or the class with the vector's arguments."""
    if "variant" in config:
        order = config.get("window_order")
        name = config["variant"] + (f"[window_order={order}]" if order else "")
        return Registry().find(name).build(resolution=config["resolution"], num_classes=config["num_classes"])
    family = str(config["family"])
    arguments = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    if family == "mambavision":
        del arguments["resolution"]
    model = getattr(import_module(f"longvis_bench.backbones.{family}"), CLASSES[family])(**arguments)
    assert isinstance(model, nn.Module)
    return model


def load(model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Give it weights under their official names; every tensor of it takes one, as it is."""
    family = import_module(f"longvis_bench.backbones.{config['family']}")
    renamed = family.checkpoint_filter_fn(tensors).keys() != tensors.keys()
    assert renamed is (config["family"] not in AUTHORS_NAMES)
    report = load_weights(model, tensors)
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.random, report.reshaped) == ((), (), {})
    assert len(report.loaded) + len(report.unused) == len(tensors)


def formula_weights(vector: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights by formula, under the official names and shapes that the vector keeps."""
    shapes = json.loads(zlib.decompress(bytes(vector["shapes"].tolist())))
    weights: dict[str, Tensor] = FORMULA.weights(shapes)
    return weights


def test_all_are_here() -> None:
    assert len(SMALL) == 10
    assert len(vectors("published")) == 16
    assert len(vectors("gradients")) == 10


def test_the_formula_gives_what_it_always_gave() -> None:
    """Else every vector would fail at once: this says why."""
    values = FORMULA.uniform("fc.weight", (2, 3)).flatten().tolist()
    assert values == pytest.approx(
        [-1.1857582, 0.4265814, -0.5604622, 1.0480152, 1.3379174, -1.5094329], abs=1e-6
    )


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_logits(path: Path, record_property: Record) -> None:
    config, tensors = read(path)
    expected = tensors.pop("expected.logits")
    model = build(config).eval()
    load(model, config, tensors)
    with torch.inference_mode():
        logits = model(FORMULA.image(config["batch"], config["resolution"]))
    difference = (logits - expected).abs().max().item()
    record_property("largest_absolute_difference", difference)
    print(f"{path.stem}: {difference:.1e}")
    assert difference < 1e-4


def ours(stage: str, family: str) -> str:
    """Our module that gives what a stage of the authors' gives; NVIDIA's levels end with the downsampling."""
    number = stage.rpartition(".")[2]
    if family == "mambavision" and stage.startswith("levels."):
        return f"stages.{number}" if number == "3" else f"downsamples.{number}"
    return stage


def watch(model: nn.Module, stages: set[str], family: str) -> dict[str, Tensor]:
    """Samples of what each stage gives, filled as the model runs."""
    kept: dict[str, Tensor] = {}

    def keep(stage: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(_: nn.Module, __: object, out: Any) -> None:
            for scale, tokens in enumerate(out if isinstance(out, list) else [out]):
                kept[f"tokens.{stage}.{scale}"] = FORMULA.sample(tokens)

        return hook

    for stage in stages:
        model.get_submodule(ours(stage, family)).register_forward_hook(keep(stage))
    return kept


@pytest.mark.parametrize("path", vectors("published"))
def test_tokens_and_logits_of_published_sizes(path: Path, record_property: Record) -> None:
    config, vector = read(path)
    model = build(config).eval()
    load(model, config, formula_weights(vector))
    stages = {
        name.removeprefix("tokens.").rpartition(".")[0] for name in vector if name.startswith("tokens.")
    }
    kept = watch(model, stages, config["family"])
    with torch.inference_mode():
        kept["logits"] = FORMULA.sample(model(FORMULA.image(config["batch"], config["resolution"])))
    expected = {name: value for name, value in vector.items() if name != "shapes"}
    assert kept.keys() == expected.keys()
    apart = {name: (kept[name] - value).abs().max().item() for name, value in expected.items()}
    tokens = max(value for name, value in apart.items() if name != "logits")
    record_property("largest_absolute_difference", apart)
    print(f"\n{path.stem}: tokens {tokens:.1e}, logits {apart['logits']:.1e}")
    assert max(apart.values()) < 1e-4, apart


@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        pytest.param(
            *vector.values,
            dtype,
            marks=[*vector.marks, *([pytest.mark.slow] if "224px" in str(vector.id) else [])],
            id=f"{vector.id}-{str(dtype)[6:]}",
        )
        for vector in vectors("gradients")
        for dtype in (torch.float64, torch.float32)
        if dtype == torch.float64 or not vector.id.startswith("atlas")
    ],
)
def test_gradients_in_train_mode(path: Path, dtype: torch.dtype, record_property: Record) -> None:
    """Each parameter's error relative to its own gradient; the vector was made in float64.

    Atlas's gradient jumps where two tokens of a pooling window, or a ReLU's input and zero, are closer than
    float32 can tell, so that no two float32 programs agree on it everywhere: it is compared in float64 only.
    """
    config, vector = read(path)
    model = build(config).train()
    weights = formula_weights(vector)
    load(model, config, weights)
    logits = model.to(dtype)(FORMULA.image(config["batch"], config["resolution"]).to(dtype))
    assert (FORMULA.sample(logits) - vector["logits"]).abs().max() < 1e-4
    (logits * FORMULA.uniform("loss", logits.shape)).sum().backward()
    apart = compare_gradients(model, config, weights, vector["gradients"])
    worst = max(apart, key=apart.__getitem__)
    record_property("largest_relative_difference", apart[worst])
    print(f"\n{path.stem} in {dtype}: {apart[worst]:.1e} at {worst}")
    assert apart[worst] < (1e-6 if dtype == torch.float64 else 1e-4)


def compare_gradients(
    model: nn.Module, config: dict[str, Any], weights: dict[str, Tensor], rows: Tensor
) -> dict[str, float]:
    """Largest relative difference of each parameter's sampled gradient, by our names.

    Where the gradient is zero by mathematics (a bias before a norm), relative to the model's largest.
    """
    family = import_module(f"longvis_bench.backbones.{config['family']}")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    names = sorted(name for name in weights if not name.endswith(buffers))
    numbered = family.checkpoint_filter_fn({name: torch.tensor(i) for i, name in enumerate(names)})
    overall = rows.abs().max().item()
    apart = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        got = FORMULA.sample(parameter.grad, FORMULA.GRADIENT_SAMPLES)
        expected = rows[numbered.pop(name)][: len(got)]
        own = expected.abs().max().item()
        apart[name] = (got - expected).abs().max().item() / (own if own > 1e-9 * overall else overall)
    assert not numbered.keys() - set(names)  # but for those that the authors' forward never uses
    return apart


def test_the_two_window_orders_differ() -> None:
    """Vectors of three scales hold the same weights, so what differs is the order alone."""
    small = [read(p)[1]["expected.logits"] for p in SMALL if p.stem.startswith("atlas_3scale_w4_1024px")]
    large = [read(p)[1]["tokens.stages.0.0"] for p in (HERE / "published").glob("atlas-s_2048px_*")]
    for by_position, official in (small, large):
        assert (by_position - official).abs().max() > 1e-3
