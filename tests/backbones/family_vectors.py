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


def watch(model: nn.Module, stages: dict[str, Callable[[nn.Module], nn.Module]]) -> dict[str, Tensor]:
    """Samples of what stages give, filled as the model runs: name in the vector -> module that gives it."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(_: nn.Module, __: object, out: Any) -> None:
            parts = out if isinstance(out, list | tuple) else [out]
            kept.update({f"{name}.{i}": FORMULA.sample(part) for i, part in enumerate(parts)})

        return hook

    for name, find in stages.items():
        find(model).register_forward_hook(keep(name))
    return kept
