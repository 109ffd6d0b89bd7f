"""DiNAT equals the authors' code, a naive form of its attention, and a written count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longvis_bench.backbones import dinat
from longvis_bench.backbones.dinat import DiNAT, attend_neighbours
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import tokens_of
from tests.backbones.family_vectors import logits_error, paths


@pytest.mark.parametrize("path", paths("dinat_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, DiNAT) < 1e-4


def nearest(place: int, side: int, kernel: int, dilation: int) -> list[int]:
    """The kernel places of a token's own dilated row that lie nearest, centred where that can be."""
    row = list(range(place % dilation, side, dilation))
    start = min(max(row.index(place) - kernel // 2, 0), len(row) - kernel)
    return row[start : start + kernel]


def naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, kernel: int, dilation: int) -> Tensor:
    """Token by token."""
    out = torch.zeros_like(q)
    height, width, d = q.shape[2:]
    for r in range(height):
        for c in range(width):
            rows, columns = nearest(r, height, kernel, dilation), nearest(c, width, kernel, dilation)
            scores, values = [], []
            for row in rows:
                for column in columns:
                    apart = bias[:, (row - r) // dilation + kernel - 1, (column - c) // dilation + kernel - 1]
                    scores.append((q[:, :, r, c] * k[:, :, row, column]).sum(-1) / d**0.5 + apart)
                    values.append(v[:, :, row, column])
            weights = torch.softmax(torch.stack(scores, dim=-1), dim=-1)
            out[:, :, r, c] = (weights[..., None] * torch.stack(values, dim=2)).sum(2)
    return out


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("gathered", [1, 2**24])
def test_outputs_and_gradients_equal_those_of_naive_attention(
    kernel: int, dilation: int, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one row of queries at a time, and all at once."""
    monkeypatch.setattr(dinat, "GATHERED", gathered)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 7, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64, requires_grad=True)
    fast, slow = (fn(q, k, v, bias, kernel, dilation) for fn in (attend_neighbours, naive))
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), [q, k, v, bias]) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("resolution", [224, 1024, pytest.param(4096, marks=pytest.mark.slow), (640, 224)])
def test_macs_follow_the_written_formula(resolution: AnyResolution) -> None:
    variant = Registry().find("dinat-mini")
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    width, macs = 64, 0
    macs += tokens_of(resolution, 2) * 27 * 32 + tokens_of(resolution, 4) * 9 * 32 * 64
    for i, depth in enumerate(variant.arguments["depths"]):
        tokens, w = tokens_of(resolution, 4 * 2**i), width * 2**i
        macs += depth * tokens * (4 * w * w + 2 * 49 * w + 2 * 3 * w * w)
        if i < 3:
            macs += tokens // 4 * 9 * w * 2 * w
    counted = count(model, resolution=resolution)
    assert counted.macs == macs + 1000 * 512
    assert counted.coverage == 1


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"), [("dinat-mini", 19.98, 2.69), ("dinat-t", 27.90, 4.30)]
)
def test_parameters_and_macs_are_those_of_the_authors_code(name: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = Registry().find(name).build(resolution=224, num_classes=1000)
    counted = count(model, resolution=224)
    assert counted.params / 1e6 == pytest.approx(millions, abs=0.006)
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.005)


def small(**more: Any) -> DiNAT:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_classes": 3,
        "embed_dim": 8,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "kernel_size": 3,
        "dilations": [[1, 4], [2], [1], [1]],
    }
    return DiNAT(**{**defaults, **more})


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_every_parameter_trains(layer_scale: float | None) -> None:
    model = small(drop_path_rate=0.1, layer_scale=layer_scale)
    model(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_global_dilations_span_the_map() -> None:
    plan = Registry().find("dinat-mini[dilations='global']").plan(1024)
    assert plan.arguments["dilations"][0] == [1, 36, 1]
    assert plan.arguments["dilations"][3] == [1, 4, 1, 4, 1]
    assert "largest dilations 36, 18, 9, 4 (dilations that span the map)" in plan.reach


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dilations": [[1], [1], [1], [1]]}, "one per block"),
        ({"dilations": "all"}, "lists, one per stage, or global"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
    ],
)
def test_arguments_that_make_no_dinat_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        small(**wrong)


def test_illegal_sizes_name_legal_ones() -> None:
    with pytest.raises(IllegalSize, match=r"at least 2[0-2]\d px"):
        Registry().find("dinat-mini").plan(192)
