"""Every family in eval mode under autocast, torch.export and ONNX: it works, or its card says why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.registry.registry import Registry

RESOLUTION = 256
CARDS = {found.card.family: found.card for found in Registry(()).cards}
NANO = {family: card.nano for family, card in CARDS.items()}


def _model(family: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A family's nano variant in eval mode, one image, and its logits."""
    name = NANO[family]
    assert name is not None
    torch.manual_seed(0)
    model = Registry(()).find(name).build(resolution=RESOLUTION, num_classes=10).eval()
    image = torch.randn(1, 3, RESOLUTION, RESOLUTION)
    with torch.no_grad():
        return model, image, model(image.clone())


def _autocast(model: nn.Module, image: Tensor, _folder: Path) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = model(image)
    return logits.float()


def _export(model: nn.Module, image: Tensor, _folder: Path) -> Tensor:
    with torch.no_grad():
        logits: Tensor = torch.export.export(model, (image,)).module()(image)
    return logits


def _onnx(model: nn.Module, image: Tensor, folder: Path) -> Tensor:
    """Logits by ONNX Runtime, which shares no code with torch."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(model, (image,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(folder / "model.onnx"))
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return torch.from_numpy(logits)


WAYS: dict[Any, tuple[Callable[[nn.Module, Tensor, Path], Tensor], float]] = {
    "autocast": (_autocast, 0.05),
    "torch.export": (_export, 1e-5),
    "onnx": (_onnx, 1e-4),
}
"""How a model is run, and how far its logits may be from those of eager float32, over the largest of them."""

SLOW = [pytest.param(name, marks=[] if name == "mambavision" else pytest.mark.slow) for name in NANO]
BOTH = [
    pytest.param(
        way,
        name,
        marks=pytest.mark.slow
        if not card.tour and (card.implementation == "timm" or way == "torch.export")
        else [],
    )
    for way in ("autocast", "torch.export")
    for name, card in CARDS.items()
]
"""Families of the default run both ways, and the other native ones under autocast; `make deep` has all."""


def _check(family: str, way: Any, folder: Path) -> None:
    run, tolerance = WAYS[way]
    model, image, expected = _model(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own deprecations
        if way in CARDS[family].unsupported:
            with pytest.raises(
                Exception, match=r"selective_scan|functional graph|Failed to (decompose|convert)"
            ):
                run(model, image, folder)
            return
        found = run(model, image, folder)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("way", "family"), BOTH)
def test_runs_under_autocast_and_exports(family: str, way: str, tmp_path: Path) -> None:
    _check(family, way, tmp_path)


@pytest.mark.parametrize("family", SLOW)
def test_exports_to_onnx_or_the_card_says_why_not(family: str, tmp_path: Path) -> None:
    _check(family, "onnx", tmp_path)
