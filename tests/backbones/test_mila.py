"""MILA equals the authors' code, a naive form of its attention, and a written count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.backbones.mila import MILA, LinearAttention, turn
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import tokens_of
from tests.backbones.family_vectors import logits_error, paths


@pytest.mark.parametrize("path", paths("mila_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, MILA) < 1e-4


def rotated(x: Tensor) -> Tensor:
    """Rotary positions by complex numbers, place by place: (batch, height, width, channels)."""
    channels = x.shape[-1]
    out = torch.zeros_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for pair in range(channels // 2):
                half, k = divmod(pair, channels // 4)
                angle = torch.tensor((row, column)[half] / 10000 ** (k / (channels // 4)))
                z = torch.complex(x[:, row, column, 2 * pair], x[:, row, column, 2 * pair + 1])
                z = z * torch.polar(torch.ones_like(angle), angle).to(z.dtype)
                out[:, row, column, 2 * pair], out[:, row, column, 2 * pair + 1] = z.real, z.imag
    return out


def naive(attention: LinearAttention, x: Tensor) -> Tensor:
    """All scores of all pairs of tokens, head by head."""
    batch, height, width, channels = x.shape
    count, d = height * width, channels // attention.heads
    q, k = (1 + F.elu(t) for t in attention.qk(x).chunk(2, dim=-1))
    turned_q, turned_k, v = (t.reshape(batch, count, channels) for t in (rotated(q), rotated(k), x))
    q, k = (t.reshape(batch, count, channels) for t in (q, k))
    out = torch.zeros_like(v)
    for h in range(attention.heads):
        own = slice(h * d, (h + 1) * d)
        scores = turned_q[..., own] @ turned_k[..., own].mT / count
        norm = (q[..., own] @ k[..., own].mT).mean(-1, keepdim=True) + 1e-6
        out[..., own] = scores @ v[..., own] / norm
    convolved: Tensor = attention.lepe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out.view_as(x) + convolved


def test_outputs_and_gradients_equal_those_of_naive_attention() -> None:
    torch.manual_seed(0)
    attention = LinearAttention(8, 2).double()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    asked = [x, *attention.parameters()]
    fast, slow = attention(x), naive(attention, x)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), asked) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rotations_keep_lengths_and_leave_the_first_token() -> None:
    x = torch.randn(1, 5, 6, 16, dtype=torch.float64)
    turned = turn(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, 0, 0], x[:, 0, 0])
    assert not torch.allclose(turned[:, 1, 0], turned[:, 0, 1])


def written_count(
    resolution: AnyResolution, width: int, depths: list[int], heads: list[int], ratio: float
) -> int:
    """MACs before the classifier."""
    half, quarter = tokens_of(resolution, 2), tokens_of(resolution, 4)
    h = width // 2
    macs = half * (27 * h + 2 * 9 * h * h) + quarter * (9 * h * 4 * width + 4 * width * width)
    for i, (depth, n) in enumerate(zip(depths, heads, strict=True)):
        tokens, w = tokens_of(resolution, 4 * 2**i), width * 2**i
        linear = 3 * w * w + 2 * w * w + 2 * int(ratio * w) * w
        attention = 2 * w * w // n + w  # k v, q (k v), and the normaliser
        macs += depth * tokens * (linear + attention + 4 * 9 * w)
        if i + 1 < len(depths):
            macs += tokens * 8 * w * w + tokens // 4 * (9 * 8 * w + 8 * w * 2 * w)
    return macs


@pytest.mark.parametrize("resolution", [224, pytest.param(1024, marks=pytest.mark.slow), 4096, (672, 224)])
@pytest.mark.parametrize("name", ["mila-t", "mila-b"])
def test_macs_follow_the_written_formula(name: str, resolution: AnyResolution) -> None:
    variant = Registry().find(name)
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    counted, a = count(model, resolution=resolution), variant.arguments
    expected = written_count(resolution, a["embed_dim"], a["depths"], a["num_heads"], 4)
    assert counted.macs == expected + 1000 * 8 * a["embed_dim"]
    assert counted.coverage == 1


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("mila-t", 24.39, 4.13), ("mila-s", 43.02, 7.25), ("mila-b", 95.98, 16.11)],
)
def test_parameters_and_macs_are_those_of_the_authors_code(name: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = Registry().find(name).build(resolution=224, num_classes=1000)
    counted = count(model, resolution=224)
    assert counted.params / 1e6 == pytest.approx(millions, abs=0.006)
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.005)


def small(**more: Any) -> MILA:
    torch.manual_seed(0)
    return MILA(
        **{"num_classes": 3, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], **more}
    )


def test_every_parameter_trains_and_no_buffer_follows_the_size() -> None:
    model = small(drop_path_rate=0.1)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    kept = [name for name, _ in model.named_buffers()]
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in kept)


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    model = small().eval()
    image = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"embed_dim": 10}, "multiple of 4"),
        ({"num_heads": [1, 2, 2]}, "as many"),
        ({"num_heads": [3, 2, 2, 4]}, "must divide its width"),
    ],
)
def test_arguments_that_make_no_mila_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        small(**wrong)


def test_illegal_sizes_name_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="992, 1024"):
        Registry().find("mila-n").plan(1000)
