"""Golden vectors of families added later: where they lie, and how a model is built and loaded from one.

tests/golden/README.md says what a vector holds.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from longvis_bench.weights.matching import load_weights

FOLDER = Path(__file__).parents[1] / "golden" / "families"


def _formula() -> ModuleType:
    file = Path(__file__).parents[2] / "scripts" / "golden" / "formula.py"
    spec = importlib.util.spec_from_file_location("golden_formula", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMULA = _formula()


def paths(pattern: str) -> list[Path]:
    """The vectors of a name; there must be some."""
    found = sorted(FOLDER.glob(f"{pattern}.safetensors"))
    assert found, pattern
    return found


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A vector's config and tensors."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def shapes(vector: dict[str, Tensor]) -> dict[str, list[int]]:
    """Official names and shapes of a published size, whose weights a formula makes."""
    found: dict[str, list[int]] = json.loads(zlib.decompress(bytes(vector["shapes"].tolist())))
    return found


def weight_as(name: str, kind: str, shape: list[int]) -> Tensor:
    """A tensor by the formula of a kind, with the numbers that the name gives.

    The formula knows kinds by the end of a name, which other authors call otherwise (`A_logs`).
    """
    noise: Tensor = FORMULA.uniform(name, shape)
    last = kind.rpartition(".")[2]
    if kind == name:
        found: Tensor = FORMULA.weight(name, shape)
        return found
    if last == "A_log":
        return torch.arange(1.0, shape[1] + 1).log() + noise / 8
    offsets = {"dt_proj.bias": (-1.5, 2), "pos_embed": (0.0, 2), "D": (1.0, 8)}
    offset, divisor = offsets[kind]
    return offset + noise / divisor


def load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the model a vector's tensors under their official names; each of its own takes one, as it is."""
    report = load_weights(model, tensors)
    assert (report.missing, report.random, report.reshaped) == ((), (), {})
    assert len(report.loaded) == len(set(report.loaded))


def logits_error(path: Path, build: Callable[..., nn.Module]) -> float:
    """Largest difference of a model's logits from those of the authors' code.

    Arguments:
        path: of a vector with weights and `expected.logits`.
        build: called with the vector's arguments, `resolution` and `num_classes`.
    """
    config, tensors = read(path)
    expected = tensors.pop("expected.logits")
    model = build(
        **config["arguments"], resolution=config["resolution"], num_classes=config["num_classes"]
    ).eval()
    load(model, tensors)
    with torch.inference_mode():
        logits = model(FORMULA.image(config["batch"], config["resolution"]))
    return float((logits - expected).abs().max())


def watch(model: nn.Module, stages: dict[str, str]) -> dict[str, Tensor]:
    """Samples of what stages give, filled as the model runs: name in the vector -> our module."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(_: nn.Module, __: object, out: Any) -> None:
            parts = out if isinstance(out, list | tuple) else [out]
            kept.update({f"{name}.{i}": FORMULA.sample(part) for i, part in enumerate(parts)})

        return hook

    for name, module in stages.items():
        model.get_submodule(module).register_forward_hook(keep(name))
    return kept
