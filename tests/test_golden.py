"""The native backbones against numbers that the authors' own code made; tests/golden/README.md says how.

Every vector goes the whole way: official tensor names, renamed, loaded strictly, one forward in float32.
"""

import json
from collections.abc import Callable
from importlib import import_module
from math import pi
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
CLASSES = {"atlas": "Atlas", "longvit": "LongViT", "mambavision": "MambaVision"}
NOT_ARGUMENTS = {"family", "source", "batch", "scales", "seed", "torch"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return config, tensors, tensors.pop("expected.logits")


def image(batch: int, resolution: int) -> Tensor:
    """The input of every vector, by formula in float64."""
    b, c, y, x = torch.meshgrid(
        torch.arange(batch),
        torch.arange(3),
        torch.arange(resolution),
        torch.arange(resolution),
        indexing="ij",
    )
    b, c, y, x = (t.double() for t in (b, c, y, x))
    first = torch.sin(2 * pi * ((c + 1) * 3 * x + (b + 1) * 5 * y) / resolution + 0.7 * c)
    second = torch.cos(2 * pi * ((b + 2) * 11 * x - (c + 1) * 7 * y) / resolution)
    return (first + 0.5 * second).float()


def build(config: dict[str, Any]) -> nn.Module:
    family = str(config["family"])
    arguments = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    if family == "mambavision":
        del arguments["resolution"]
    model = getattr(import_module(f"longvis_bench.backbones.{family}"), CLASSES[family])(**arguments)
    assert isinstance(model, nn.Module)
    return model.eval()


def test_all_ten_are_here() -> None:
    assert len(GOLDEN) == 10


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_logits(path: Path, record_property: Callable[[str, object], None]) -> None:
    config, tensors, expected = read(path)
    module = import_module(f"longvis_bench.backbones.{config['family']}")
    assert module.is_official(tensors)
    renamed, unused = module.official_names(tensors)
    model = build(config)
    model.load_state_dict(renamed, strict=True)
    assert len(renamed) + len(unused) == len(tensors)
    with torch.inference_mode():
        logits = model(image(config["batch"], config["resolution"]))
    difference = (logits - expected).abs().max().item()
    record_property("largest_absolute_difference", difference)
    print(f"{path.stem}: {difference:.1e}")
    assert difference < 1e-4


def test_the_two_window_orders_differ() -> None:
    """The two three-scale vectors hold the same weights, so what differs is the order alone."""
    by_position, official = (read(p)[2] for p in GOLDEN if p.stem.startswith("atlas_3scale_w4_1024px"))
    assert (by_position - official).abs().max() > 1e-3
