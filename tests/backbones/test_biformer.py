"""BiFormer equals the authors' code, a naive form of its attention, and a written count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longvis_bench.backbones.biformer import BiFormer, RoutedAttention
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import tokens_of
from tests.backbones.family_vectors import FORMULA, load, logits_error, paths, read, shapes, watch


@pytest.mark.parametrize("path", paths("biformer_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, BiFormer) < 1e-4


@pytest.mark.slow
def test_the_published_size_equals_the_authors() -> None:
    """The vector's matrices are half of the formula's."""
    config, vector = read(paths("published_biformer-t_*")[0])
    weights = {
        name: tensor / 2 if tensor.ndim > 1 else tensor
        for name, tensor in FORMULA.weights(shapes(vector)).items()
    }
    model = Registry().find("biformer-t").build(resolution=config["resolution"], num_classes=1000).eval()
    load(model, weights)
    kept = watch(model, {f"tokens.stages.{i}": f"stages.{i}" for i in range(4)})
    with torch.inference_mode():
        kept["logits"] = FORMULA.sample(model(FORMULA.image(1, config["resolution"])))
    apart = {name: (kept[name] - vector[name]).abs().max().item() for name in kept}
    assert kept.keys() == vector.keys() - {"shapes"}
    assert max(apart.values()) < 1e-4, apart


def naive(attention: RoutedAttention, x: Tensor) -> Tensor:
    """Region by region and head by head, over the regions chosen one by one."""
    n, (batch, height, width, channels) = attention.regions, x.shape
    rows, columns = height // n, width // n
    q, k, v = attention.qkv["qkv"](x).chunk(3, dim=-1)
    boxes = [
        (slice(r * rows, (r + 1) * rows), slice(c * columns, (c + 1) * columns))
        for r in range(n)
        for c in range(n)
    ]
    out = torch.zeros_like(x)
    d = channels // attention.heads
    for b in range(batch):
        means = [(q[b][box].mean((0, 1)), k[b][box].mean((0, 1))) for box in boxes]
        for here, box in enumerate(boxes):
            likeness = torch.stack([means[here][0] @ mean_k for _, mean_k in means])
            chosen = likeness.argsort(descending=True)[: attention.topk].tolist()
            keys, values = (torch.cat([t[b][boxes[i]].flatten(0, 1) for i in chosen]) for t in (k, v))
            queries = q[b][box].flatten(0, 1)
            heads = []
            for h in range(attention.heads):
                own = slice(h * d, (h + 1) * d)
                weights = torch.softmax(queries[:, own] @ keys[:, own].T / channels**0.5, dim=-1)
                heads.append(weights @ values[:, own])
            mixed = torch.cat(heads, dim=-1).view(rows, columns, channels)
            out[b][box] = mixed
    return attention.wo(out + attention.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def test_outputs_and_gradients_equal_those_of_naive_attention() -> None:
    torch.manual_seed(0)
    attention = RoutedAttention(8, 2, 2, 3, 3, False).double()
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    asked = [x, *attention.parameters()]
    fast, slow = attention(x), naive(attention, x)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), asked) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def written_count(
    resolution: AnyResolution, widths: list[int], depths: list[int], topks: list[int], head_dim: int
) -> int:
    """MACs before the classifier, where 7 x 7 regions fill every routed stage."""
    w = widths[0]
    macs = tokens_of(resolution, 2) * 27 * w // 2 + tokens_of(resolution, 4) * 9 * (w // 2) * w
    for i, (width, depth, topk) in enumerate(zip(widths, depths, topks, strict=True)):
        tokens = tokens_of(resolution, 4 * 2**i)
        keys = tokens if topk == -2 else topk * tokens // 49
        routing = 0 if topk == -2 else 49 * 49 * width
        block = tokens * (4 * width * width + 2 * 3 * width * width + (9 + 25) * width)
        macs += depth * (block + tokens * keys * 2 * width + routing)
        if i + 1 < len(widths):
            macs += tokens // 4 * 9 * width * widths[i + 1]
    return macs


@pytest.mark.parametrize(
    "resolution",
    [
        224,
        pytest.param(896, marks=pytest.mark.slow),
        pytest.param(1792, marks=pytest.mark.slow),
        4032,
        (448, 896),
    ],
)
def test_macs_follow_the_written_formula(resolution: AnyResolution) -> None:
    variant = Registry().find("biformer-t")
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    counted, a = count(model, resolution=resolution), variant.arguments
    expected = written_count(resolution, a["embed_dim"], a["depth"], [1, 4, 16, -2], 32)
    assert counted.macs == expected + 1000 * a["embed_dim"][-1]
    assert counted.coverage == 1
    others = {224: 2.22, 896: 67.4, 1792: 679, 4032: 14673}  # measured with another counter
    if isinstance(resolution, int):
        assert counted.macs / 1e9 == pytest.approx(others[resolution], rel=0.005)


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("biformer-t", 13.14, 2.22), ("biformer-s", 25.54, 4.46), ("biformer-b", 56.80, 9.76)],
)
def test_parameters_and_macs_are_those_of_the_authors_code(name: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = Registry().find(name).build(resolution=224, num_classes=1000)
    counted = count(model, resolution=224)
    assert counted.params / 1e6 == pytest.approx(millions, abs=0.006)
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.005)


def small(**more: Any) -> BiFormer:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_classes": 3,
        "depth": [1, 1, 1, 1],
        "embed_dim": [8, 16, 16, 16],
        "head_dim": 8,
        "n_win": 2,
        "topks": [1, 2, 3, -2],
    }
    return BiFormer(**{**defaults, **more})


def test_every_parameter_trains() -> None:
    model = small(drop_path_rate=0.1)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_padded_maps_keep_their_size_and_the_row_says_how_much() -> None:
    model = small(auto_pad=True).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 72, 72)).shape == (1, 3)
    plan = Registry().find("biformer-t").plan(1024)
    assert plan.padding_ratio == pytest.approx((70 / 64) ** 2 - 1)
    assert "1,024 tokens" in plan.reach


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"topks": [5, 2, 3, -2]}, "1 to 4 regions"),
        ({"head_dim": 5}, "must divide each width"),
        ({"qk_dims": [4, 8, 8, 8]}, "those of embed_dim"),
        ({"soft_routing": True}, "soft_routing of biformer must be False"),
    ],
)
def test_arguments_that_make_no_biformer_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        small(**wrong)


@pytest.mark.parametrize(
    ("name", "size", "legal"),
    [("biformer-t[auto_pad=False]", 1024, "896, 1120"), ("biformer-n", 300, "256, 384")],
)
def test_illegal_sizes_name_legal_ones(name: str, size: int, legal: str) -> None:
    with pytest.raises(IllegalSize, match=legal):
        Registry().find(name).plan(size)
