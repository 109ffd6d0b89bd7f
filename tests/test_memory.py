"""Peak memory against models whose peak is known, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 1 << 20

PROGRAM = """
import sys
import torch
from torch import nn
from longvis_bench.measure.memory import PeakMemory

torch.set_num_threads(1)
torch.zeros(64, 64) @ torch.zeros(64, 64)
memory = PeakMemory(torch.zeros(1))
{body}
record = memory.read(model)
print(record.peak_bytes, record.parts_bytes["weights"], record.parts_bytes["gradients"])
"""


def peak(body: str) -> tuple[int, int, int]:
    code = PROGRAM.format(body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, third = map(int, done.stdout.split())
    return first, second, third


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process its peak on Linux only")
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # one weight of 64 MiB, input and output of 4 KiB
        ("model = nn.Linear(4096, 4096, bias=False); model(torch.zeros(1, 4096))", 64 * MIB),
        # a single huge activation: 1 MiB in, 256 MiB out
        (
            "model = nn.Linear(16, 4096, bias=False)\n"
            "with torch.inference_mode(): model(torch.zeros(16384, 16))",
            257.25 * MIB,
        ),
        # four layers of 16 MiB in training: weights, gradients, and five activations of 8 MiB kept
        (
            "model = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(4)])\n"
            "model(torch.zeros(1024, 2048)).sum().backward()",
            (4 * 16 + 4 * 16 + 5 * 8 + 8) * MIB,
        ),
    ],
)
def test_known_peaks(body: str, expected: float) -> None:
    measured, _, _ = peak(body)
    assert measured == pytest.approx(expected, rel=0.10, abs=12 * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process its peak on Linux only")
def test_parts_are_named() -> None:
    body = "model = nn.Linear(2048, 2048, bias=False); model(torch.zeros(4, 2048)).sum().backward()"
    measured, weights, gradients = peak(body)
    assert weights == gradients == 16 * MIB
    assert measured >= weights + gradients
