"""VMamba equals the authors' code, a naive scan of four directions, and a written count."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.backbones.vmamba import SS2D, VMamba
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.ops.selective_scan.operator import reference
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution, sides
from tests.backbones.family_vectors import FORMULA, load, logits_error, paths, read, shapes, watch, weight_as

FORMS = ("v05_noz", "v05", "v0")


@pytest.mark.parametrize("path", paths("vmamba_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, VMamba) < 1e-4


@pytest.mark.slow
def test_the_published_size_equals_the_authors() -> None:
    config, vector = read(paths("published_vmamba-t-s1l8_*")[0])
    alias = {"A_logs": "A_log", "dt_projs_bias": "dt_proj.bias", "Ds": "D"}
    weights = {}
    for name, shape in shapes(vector).items():
        weights[name] = weight_as(name, alias.get(name.rpartition(".")[2], name), shape)
    model = Registry().find("vmamba-t").build(resolution=config["resolution"], num_classes=1000).eval()
    load(model, weights)
    stages = {f"tokens.layers.{i}": f"layers.{i}" for i in range(4)}
    kept = watch(model, {**stages, "tokens.patch_embed": "patch_embed"})
    with torch.inference_mode():
        kept["logits"] = FORMULA.sample(model(FORMULA.image(1, config["resolution"])))
    apart = {name: (kept[name] - vector[name]).abs().max().item() for name in kept}
    assert kept.keys() == vector.keys() - {"shapes"}
    assert max(apart.values()) < 1e-4, apart


def naive(mixer: SS2D, x: Tensor) -> Tensor:
    """Direction by direction, token by token."""
    inner = mixer.in_proj(x.permute(0, 2, 3, 1))
    inner, z = inner.chunk(2, dim=-1) if mixer.gated else (inner, None)
    grid = F.silu(mixer.conv2d(inner.permute(0, 3, 1, 2)))
    height, width = grid.shape[2:]
    numbers = torch.arange(height * width).view(height, width)
    orders = [numbers.flatten(), numbers.T.flatten()]
    orders += [order.flip(0) for order in orders]
    project, expand = mixer.weights()
    channels = grid.shape[1]
    summed = torch.zeros_like(grid.flatten(2))
    for k, order in enumerate(orders):
        u = grid.flatten(2)[:, :, order]
        dt, B, C = torch.split(project[k] @ u, [mixer.rank, mixer.states, mixer.states], dim=1)
        own = slice(k * channels, (k + 1) * channels)
        A = -torch.exp(mixer.A_logs[own].float())
        y = reference(u, expand[k] @ dt, A, B, C, mixer.Ds[own].float(), mixer.dt_projs_bias[k].float())
        summed = summed + torch.zeros_like(summed).index_copy(2, order, y.to(summed.dtype))
    tokens = mixer.out_norm(summed.view_as(grid)).permute(0, 2, 3, 1)
    out = mixer.out_proj(tokens if z is None else tokens * F.silu(z))
    return out.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_equal_those_of_a_naive_scan(form: str) -> None:
    torch.manual_seed(0)
    mixer = SS2D(6, 3, 2.0, 3, form == "v0", form)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mixer = mixer.double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    asked = [x, *mixer.parameters()]
    fast, slow = mixer(x), naive(mixer, x)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), asked) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def half_of(grid: Sequence[int]) -> list[int]:
    return [ceil(side / 2) for side in grid]


def written_count(
    resolution: AnyResolution,
    *,
    dims: list[int],
    depths: list[int],
    states: int,
    ratio: float,
    mlp_ratio: float,
) -> tuple[int, int]:
    """MACs and scan FLOPs of the published form, before the classifier."""
    grid = half_of(sides(resolution))
    macs, scans = prod(grid) * 27 * dims[0] // 2, 0
    grid = half_of(grid)
    macs += prod(grid) * 9 * dims[0] // 2 * dims[0]
    for i, (width, depth) in enumerate(zip(dims, depths, strict=True)):
        tokens, inner, rank = prod(grid), int(ratio * width), ceil(width / 16)
        block = width * inner + 9 * inner + 4 * inner * (rank + 2 * states) + 4 * rank * inner + inner * width
        block += 2 * width * int(mlp_ratio * width)
        macs += depth * tokens * block
        scans += depth * 9 * 4 * tokens * inner * states
        if i + 1 < len(dims):
            grid = half_of(grid)
            macs += prod(grid) * 9 * width * dims[i + 1]
    return macs, scans


@pytest.mark.parametrize("resolution", [224, 1000, 1024, 4096, (512, 1024), (1000, 250)])
@pytest.mark.parametrize("name", ["vmamba-t", "vmamba-b"])
def test_macs_and_scans_follow_the_written_formula(name: str, resolution: AnyResolution) -> None:
    variant = Registry().find(name)
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    counted, a = count(model, resolution=resolution), variant.arguments
    macs, scans = written_count(
        resolution,
        dims=a["dims"],
        depths=a["depths"],
        states=a["ssm_d_state"],
        ratio=a["ssm_ratio"],
        mlp_ratio=4,
    )
    assert (counted.macs - 1000 * a["dims"][-1], counted.scan_flops) == (macs, scans)
    assert counted.coverage == 1


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [
        ("vmamba-t", 30.25, 4.81),
        ("vmamba-t-s2l5", 30.71, 4.72),
        ("vmamba-t-v0", 22.89, 3.68),
        ("vmamba-s-s1l20", 49.01, 8.47),
        ("vmamba-b-s1l20", 86.61, 15.03),
    ],
)
def test_parameters_and_macs_are_those_of_the_authors_code(name: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = Registry().find(name).build(resolution=224, num_classes=1000)
    counted = count(model, resolution=224)
    assert counted.params / 1e6 == pytest.approx(millions, abs=0.006)
    assert counted.macs / 1e9 == pytest.approx(gmacs, abs=0.011)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (72, 40)], ids=str)
def test_any_size_and_every_gradient(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = VMamba(num_classes=3, dims=8, depths=[1, 1, 1, 1], drop_path_rate=0.1)
    model(torch.randn(2, 3, *size)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert [m.drop_path.drop_prob for s in model.layers for m in s.blocks] == pytest.approx(  # type: ignore[union-attr]
        [0, 0.1 / 3, 0.2 / 3, 0.1]
    )


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    torch.manual_seed(0)
    model = VMamba(num_classes=3, dims=8, depths=[1, 1]).eval()
    image = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"forward_type": "v3"}, "one of v05_noz, v05, v0"),
        ({"dims": [8, 16]}, "as many, not 2 and 4"),
        ({"ssm_conv": 2}, "must be odd"),
        ({"posembed": True}, "posembed of vmamba must be False"),
        ({"colour": 1}, "no argument colour"),
    ],
)
def test_arguments_that_make_no_vmamba_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        VMamba(**{"num_classes": 3, "dims": [8, 16, 32, 64], "depths": [1, 1, 1, 1], **wrong})


def test_illegal_size_names_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="32"):
        Registry().find("vmamba-n").build(resolution=16, num_classes=5)
