"""InLine-Swin equals the authors' code, the definition of its attention, and a written count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.backbones.inline import InLineAttention, InLineSwin
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import tokens_of
from tests.backbones.family_vectors import logits_error, paths


@pytest.mark.parametrize("path", paths("inline-swin_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, InLineSwin) < 1e-4


def naive(attention: InLineAttention, windows: Tensor) -> Tensor:
    """Weights of every pair of tokens, shifted to sum to one, window by window and head by head."""
    side, heads = attention.window[0], attention.heads
    rows = []
    for tokens in windows.flatten(0, 1):
        q, k, v = attention.qkv(tokens).chunk(3, dim=-1)
        count, d, parts = len(tokens), q.shape[-1] // heads, []
        for h in range(heads):
            own = slice(h * d, (h + 1) * d)
            scores = q[:, own] @ k[:, own].T / d**0.5 / count
            weights = scores - scores.mean(1, keepdim=True) + 1 / count
            torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
            parts.append(weights @ v[:, own])
        kernels = attention.residual(tokens.mean(0)[None, :, None]).view(-1, 1, 3, 3)
        convolved = F.conv2d(v.T.reshape(1, -1, side, side), kernels, padding=1, groups=len(kernels))
        rows.append(attention.proj(torch.cat(parts, dim=-1) + convolved[0].flatten(1).T))
    return torch.stack(rows).view_as(windows)


def test_outputs_and_gradients_equal_those_of_the_definition() -> None:
    torch.manual_seed(0)
    attention = InLineAttention(8, 2, 4).double()
    windows = torch.randn(2, 3, 16, 8, dtype=torch.float64, requires_grad=True)
    asked = [windows, *attention.parameters()]
    fast, slow = attention(windows), naive(attention, windows)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), asked) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("resolution", [224, 1024, 4096, (512, 1024), (672, 224)])
def test_macs_follow_the_written_formula(resolution: AnyResolution) -> None:
    variant = Registry().find("inline-t")
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    counted, a = count(model, resolution=resolution), variant.arguments
    macs = tokens_of(resolution, 4) * 48 * a["embed_dim"]
    for i, (depth, heads) in enumerate(zip(a["depths"], a["num_heads"], strict=True)):
        w, tokens = a["embed_dim"] * 2**i, tokens_of(resolution, 4 * 2**i)
        head = w // heads
        block = tokens * (12 * w * w + 2 * w * head + w + 9 * w)  # linear layers, k v, q (k v), q mean(k)
        macs += depth * (block + 10 * w * head)  # and the network of the convolution's weights
        if i < 3:
            macs += tokens // 4 * 8 * w * w
    assert counted.macs == macs + 1000 * 768
    assert counted.coverage == 1


def small(**more: Any) -> InLineSwin:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "resolution": 64,
        "num_classes": 3,
        "embed_dim": 8,
        "depths": [2, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": [8, 8, 2, 2],
        "attn_type": "IISS",
    }
    return InLineSwin(**{**defaults, **more})


def test_every_parameter_trains() -> None:
    model = small(drop_path_rate=0.1)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_no_weight_depends_on_the_size() -> None:
    shapes = [
        {
            name: tuple(t.shape)
            for name, t in Registry()
            .find("inline-n")
            .build(resolution=size, num_classes=3)
            .state_dict()
            .items()
        }
        for size in (128, 256)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"attn_type": "IAAA"}, "letters of IS"), ({"kernel_func": "cos"}, "kernel_func of inline must be")],
)
def test_arguments_that_make_no_inline_swin_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        small(**wrong)


def test_illegal_sizes_name_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="992, 1024"):
        Registry().find("inline-n").plan(1000)
