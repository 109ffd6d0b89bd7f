"""Held-out accuracy shared by two processes (gloo, on the CPU) is that of one; groups are ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from longvis_bench.data.digits import Digits
from longvis_bench.measure.accuracy import measure_accuracy
from longvis_bench.registry.registry import Registry
from longvis_bench.training.evaluate import HeldOutShare
from longvis_bench.weights.matching import load_weights

NET = """
from torch import nn

def net(*, resolution, num_classes, in_chans=3):
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * (resolution // 8) ** 2, num_classes),
    )
"""
PROGRAM = """
import os, sys
from pathlib import Path
import torch
from longvis_bench.cli.app import app
from longvis_bench.data.digits import Digits

asked, batch = [], Digits.batch
def counted(self, split, indices, *rest, **options):
    asked.extend(indices if split == "val" else ())
    return batch(self, split, indices, *rest, **options)
Digits.batch = counted
try:
    app(sys.argv[1:])
finally:
    left = torch.distributed.is_initialized()
    Path("rank" + os.environ["RANK"]).write_text(f"{len(asked)} {left}")
"""


def test_a_share_is_part_of_the_data() -> None:
    data, indices = Digits(), (3, 9, 27)
    share = HeldOutShare(data, indices)
    images, labels = share.batch("val", [2, 0], 8)
    expected = data.batch("val", [27, 3], 8)
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])
    assert share.size("val") == 3


def test_two_processes_share_the_evaluation_and_end_their_group(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--models", "net.py:net", "--res", "32", "--epochs", "1", "--threads", "1", "--device", "cpu"]
    done = subprocess.run(
        [*command, "program.py", "train", *options, "--store", "store"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ranks = [(tmp_path / f"rank{rank}").read_text().split() for rank in range(2)]
    assert [int(asked) for asked, _ in ranks] == [64 + 199, 64 + 198]  # after the epoch, and at the end
    assert [left for _, left in ranks] == ["False", "False"]
    (weights,) = (tmp_path / "store").glob("*/digits-32-*.safetensors")
    facts = json.loads(weights.with_suffix(".json").read_text())
    model = Registry((), tmp_path).find("net.py:net").build(resolution=32, num_classes=10)
    load_weights(model, weights)
    alone = measure_accuracy(model, Digits(), resolution=32, batch_size=32)
    assert facts["images"] == alone.images == 397
    assert facts["top1"] == alone.top1
