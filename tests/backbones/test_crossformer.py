"""CrossFormer equals the authors' code, a naive form of its groups, and a written count."""

from __future__ import annotations

from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longvis_bench.backbones.crossformer import CrossFormer, GroupAttention
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.plan import tokens_of
from tests.backbones.family_vectors import logits_error, paths


@pytest.mark.parametrize("path", paths("crossformer_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, CrossFormer) < 1e-4


def naive(attention: GroupAttention, x: Tensor) -> Tensor:
    """Token by token: which others share its group, and its weights over them."""
    group, interval = attention.group, attention.interval
    _, height, width, channels = x.shape
    block, d = group * interval, channels // attention.heads
    tokens = [(r, c) for r in range(height) for c in range(width)]
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    bias = attention.pos(group)[0].view(attention.heads, group, group, group, group)
    out = torch.zeros_like(x)
    for r, c in tokens:
        mine = (r // block, c // block, r % interval, c % interval)
        others = [
            t for t in tokens if (t[0] // block, t[1] // block, t[0] % interval, t[1] % interval) == mine
        ]
        here = (r % block // interval, c % block // interval)
        rows, columns = zip(*others, strict=True)
        places = [(row % block // interval, column % block // interval) for row, column in others]
        for h in range(attention.heads):
            own = slice(h * d, (h + 1) * d)
            apart = torch.stack([bias[h][here][place] for place in places])
            scores = (k[:, rows, columns, own] @ q[:, r, c, own, None]).squeeze(-1) / d**0.5 + apart
            weights = torch.softmax(scores, dim=-1)
            out[:, r, c, own] = (weights[:, None] @ v[:, rows, columns, own]).squeeze(1)
    return attention.proj(out)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("side", "group", "interval"), [(6, 3, 1), (6, 3, 2), (5, 3, 1), (5, 2, 2)], ids=str)
def test_outputs_and_gradients_equal_those_of_naive_groups(side: int, group: int, interval: int) -> None:
    """The last two pad: padded keys have no weight."""
    torch.manual_seed(0)
    attention = GroupAttention(16, 2, group, interval).double()
    x = torch.randn(2, side, side, 16, dtype=torch.float64, requires_grad=True)
    asked = [x, *attention.parameters()]
    fast, slow = attention(x), naive(attention, x)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), asked) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def written_count(resolution: AnyResolution, a: dict[str, Any]) -> int:
    """MACs before the classifier, padding included."""
    width, macs = a["embed_dim"], 0
    tokens = tokens_of(resolution, 4)
    parts = [width // 2, width // 4, width // 8, width // 8]
    macs += sum(tokens * 3 * size * size * part for size, part in zip((4, 8, 16, 32), parts, strict=True))
    for i, depth in enumerate(a["depths"]):
        w, grid = width * 2**i, [side // (4 * 2**i) for side in sides(resolution)]
        side, tokens = min(grid), prod(grid)
        for j in range(depth):
            whole = side <= a["group_size"][i]
            group = side if whole else a["group_size"][i]
            interval = a["crs_interval"][i] if j % 2 and not whole else 1
            padded = prod(ceil(side / (group * interval)) * group * interval for side in grid)
            p = w // 16
            macs += padded * (4 * w * w + 2 * group * group * w) + tokens * 8 * w * w
            macs += (2 * group - 1) ** 2 * (2 * p + 2 * p * p + p * a["num_heads"][i])
            if a.get("use_acl") and (j + 1) % 3 == 0 and j + 1 < depth:
                macs += tokens * 9 * w
        if i + 1 < len(a["depths"]):
            macs += tokens // 4 * (4 * w * w + 16 * w * w)
    return int(macs)


@pytest.mark.parametrize(
    "resolution",
    [
        224,
        pytest.param(1024, marks=pytest.mark.slow),
        2048,
        pytest.param(4096, marks=pytest.mark.slow),
        (512, 1024),
        (1248, 224),
        (128, 960),
    ],
)
@pytest.mark.parametrize("name", ["crossformer-s", "crossformer-pp-s"])
def test_macs_follow_the_written_formula(name: str, resolution: AnyResolution) -> None:
    variant = Registry().find(name)
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    counted, a = count(model, resolution=resolution), variant.arguments
    assert counted.macs == written_count(resolution, a) + 1000 * 8 * a["embed_dim"]
    assert counted.coverage == 1


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("crossformer-t", 27.78, 2.86), ("crossformer-s", 30.66, 4.91), ("crossformer-pp-s", 23.33, 4.43)],
)
def test_parameters_and_macs_are_those_of_the_authors_code(name: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = Registry().find(name).build(resolution=224, num_classes=1000)
    counted = count(model, resolution=224)
    assert counted.params / 1e6 == pytest.approx(millions, abs=0.006)
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.005)


def small(**more: Any) -> CrossFormer:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "resolution": 96,
        "num_classes": 3,
        "embed_dim": 16,
        "depths": [2, 4, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "group_size": [4, 4, 2, 2],
        "crs_interval": [4, 2, 2, 1],
    }
    return CrossFormer(**{**defaults, **more})


def test_cooling_layers_stand_after_every_third_block_but_the_last() -> None:
    model = small(use_acl=True, depths=[3, 4, 6, 7])
    cooled = [
        [getattr(block, "ex_conv", None) is not None for block in stage.blocks]  # type: ignore[union-attr]
        for stage in model.layers
    ]
    assert [[j for j, has in enumerate(stage) if has] for stage in cooled] == [[], [2], [2], [2, 5]]


@pytest.mark.parametrize("use_acl", [False, True])
def test_every_parameter_trains(use_acl: bool) -> None:
    model = small(drop_path_rate=0.1, use_acl=use_acl)
    model(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_adaptive_intervals_span_the_map() -> None:
    model = small(adaptive_interval=True, resolution=128, depths=[2, 2, 2, 2])
    blocks = [stage.blocks[1].attn for stage in model.layers]  # type: ignore[index, union-attr]
    assert [(a.group, a.interval) for a in blocks] == [(4, 8), (4, 4), (2, 4), (2, 2)]
    plan = Registry().find("crossformer-s[adaptive_interval=True]").plan(1024)
    assert "intervals of 37, 19, 10, 5" in plan.reach


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"embed_dim": 24}, "multiple of 16"),
        ({"group_size": [4, 4]}, "4 numbers, one per stage"),
        ({"group_type": "linear"}, "group_type of crossformer must be 'constant'"),
    ],
)
def test_arguments_that_make_no_crossformer_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        small(**wrong)


def test_illegal_sizes_name_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="992, 1024"):
        Registry().find("crossformer-n").plan(1000)
