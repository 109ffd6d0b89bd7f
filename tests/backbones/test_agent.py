"""Agent-Swin equals the authors' code, a naive form of its attention, and a written count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.backbones.agent import AgentAttention, AgentSwin
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import tokens_of
from tests.backbones.family_vectors import logits_error, paths


@pytest.mark.parametrize("path", paths("agent-swin_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, AgentSwin) < 1e-4


def naive(attention: AgentAttention, windows: Tensor) -> Tensor:
    """Equations of the paper for one window of one image, head by head."""
    side, heads = attention.window[0], attention.heads
    agents = attention.raster**2

    def resized(table: Tensor) -> Tensor:
        return F.interpolate(table, (side, side), mode="bilinear").flatten(2)

    first = resized(attention.an_bias) + (attention.ah_bias + attention.aw_bias)[0].reshape(heads, agents, -1)
    second = resized(attention.na_bias).mT + (attention.ha_bias + attention.wa_bias)[0].reshape(
        heads, -1, agents
    )
    rows = []
    for tokens in windows.flatten(0, 1):
        q, k, v = attention.qkv(tokens).chunk(3, dim=-1)
        pooled = F.adaptive_avg_pool2d(q.T.view(1, -1, side, side), attention.raster)[0].flatten(1).T
        d, parts = q.shape[-1] // heads, []
        for h in range(heads):
            own = slice(h * d, (h + 1) * d)
            gathered = torch.softmax(pooled[:, own] @ k[:, own].T / d**0.5 + first[h], -1) @ v[:, own]
            weights = torch.softmax(q[:, own] @ pooled[:, own].T / d**0.5 + second[h], -1)
            parts.append(weights @ gathered)
        convolved = attention.dwc(v.T.reshape(1, -1, side, side))[0].flatten(1).T
        rows.append(attention.proj(torch.cat(parts, dim=-1) + convolved))
    return torch.stack(rows).view_as(windows)


def test_outputs_and_gradients_equal_those_of_the_equations() -> None:
    torch.manual_seed(0)
    attention = AgentAttention(8, 2, 6, 4).double()
    windows = torch.randn(2, 3, 36, 8, dtype=torch.float64, requires_grad=True)
    asked = [windows, *attention.parameters()]
    fast, slow = attention(windows), naive(attention, windows)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), asked) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def written_count(resolution: AnyResolution, a: dict[str, Any], softmax_window: int) -> int:
    """MACs before the classifier; the last stage has softmax attention."""
    macs = tokens_of(resolution, 4) * 48 * a["embed_dim"]
    for i, depth in enumerate(a["depths"]):
        w, tokens = a["embed_dim"] * 2**i, tokens_of(resolution, 4 * 2**i)
        block = tokens * 12 * w * w
        block += tokens * w * (4 * a["agent_num"][i] + 9 if i < 3 else 2 * softmax_window**2)
        macs += depth * block
        if i < 3:
            macs += tokens // 4 * 8 * w * w
    return int(macs)


@pytest.mark.parametrize(
    ("resolution", "window"), [(224, 7), (1024, 8), (4096, 8), ((512, 1024), 8), ((672, 448), 7)]
)
def test_macs_follow_the_written_formula(resolution: AnyResolution, window: int) -> None:
    variant = Registry().find("agent-t")
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    counted = count(model, resolution=resolution)
    assert counted.macs == written_count(resolution, variant.arguments, window) + 1000 * 768
    assert counted.coverage == 1


def small(**more: Any) -> AgentSwin:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "resolution": 64,
        "num_classes": 3,
        "embed_dim": 8,
        "depths": [2, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": [16, 8, 2, 2],
        "agent_num": [4, 4, 4, 4],
        "attn_type": "AABB",
    }
    return AgentSwin(**{**defaults, **more})


def test_every_parameter_trains() -> None:
    model = small(drop_path_rate=0.1)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_windows_follow_the_size_and_the_row_says_which() -> None:
    plan = Registry().find("agent-t").plan(1024)
    assert plan.arguments["window_size"] == [0, 0, 0, 8]
    assert "windows of 256, 128, 64, 8 tokens per side; 9, 16, 49 agents" in plan.reach
    assert Registry().find("agent-t").plan(224).reach.startswith("windows of 56, 28, 14, 7")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"attn_type": "AAX"}, "letters of AB"), ({"agent_num": [4, 5, 4, 4]}, "square numbers")],
)
def test_arguments_that_make_no_agent_swin_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        small(**wrong)


@pytest.mark.parametrize(
    ("name", "size", "legal"), [("agent-n", 1000, "992, 1024"), ("agent-n[window_size=7]", 1024, "896, 1120")]
)
def test_illegal_sizes_name_legal_ones(name: str, size: int, legal: str) -> None:
    with pytest.raises(IllegalSize, match=legal):
        Registry().find(name).plan(size)
