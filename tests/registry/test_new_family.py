"""A family is a card, a file in backbones/ and a file in sizes/: in a copy of the package, one is added."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CARD = """
schema = 1
family = "mosaic"
title = "Mosaic"
summary = "Patches, averaged."
factory = "longvis_bench.backbones.mosaic:build"
implementation = "native"
nano = "mosaic-n"
tour = true
colour = "#123456"
marker = "p"

[licences]
code = "Apache-2.0"

[resolution]
plan = "longvis_bench.sizes.mosaic:plan"

[variants.mosaic-n]
arguments = { dim = 8 }
"""
SIZES = """
from longvis_bench.sizes.plan import SizePlan, require_multiple


def plan(resolution, *, dim):
    require_multiple(resolution, 24, "mosaic")
    return SizePlan(reach=f"patches of {resolution // 24} px", arguments={"patch": resolution // 24})
"""
BACKBONE = """
from torch import nn


class Mosaic(nn.Module):
    def __init__(self, *, resolution, num_classes, in_chans=3, dim, patch):
        super().__init__()
        self.embed = nn.Conv2d(in_chans, dim, patch, stride=patch)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, image):
        return self.head(self.embed(image).mean((2, 3)))


build = Mosaic
"""
PROGRAM = """
import json
import torch
from longvis_bench.environment import read_environment
from longvis_bench.errors import IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.records import Cell, Row
from longvis_bench.registry.registry import Registry
from longvis_bench.report.plots.style import looks
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.plan import make_plan

(planned,) = make_plan(
    SweepConfig(models=("mosaic-n",), resolutions=(48,), device="cpu"), read_environment()
).cells
variant = Registry().find("mosaic-n")
try:
    variant.plan(50)
except IllegalSize as error:
    refused = str(error)
model = variant.build(resolution=48, num_classes=10)
row = Row(key="k", cell=planned.cell, status="ok")
(look,) = looks([row]).values()
print(json.dumps({
    "family": planned.cell.family,
    "key": planned.request.key,
    "quick": sorted(p.cell.model for p in make_plan(
        SweepConfig(device="cpu", resolutions=(48, 64), weights=None), read_environment()
    ).cells if p.cell.family == "mosaic"),
    "refused": refused,
    "logits": list(model(torch.zeros(2, 3, 48, 48)).shape),
    "macs": count(model, resolution=48).macs,
    "look": [look.colour, look.marker],
}))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its cards, with one family more; nothing that was there is changed."""
    shutil.copytree(
        ROOT / "longvis_bench", tmp_path / "longvis_bench", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "models" / "mosaic").mkdir()
    (tmp_path / "models" / "mosaic" / "card.toml").write_text(CARD)
    (tmp_path / "longvis_bench" / "sizes" / "mosaic.py").write_text(SIZES)
    (tmp_path / "longvis_bench" / "backbones" / "mosaic.py").write_text(BACKBONE)
    return tmp_path


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree")
def test_three_files_are_a_family(copy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["family"] == "mosaic"
    assert "mosaic-n" in found["quick"]
    assert "48 and 72" in found["refused"] or "48, 72" in found["refused"]
    assert found["logits"] == [2, 10]
    assert found["macs"] == 24 * 24 * 3 * 2 * 2 * 8 + 8 * 10
    assert found["look"] == ["#123456", "p"]
