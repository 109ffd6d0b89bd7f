"""Vim equals the authors' code, a naive scan each way, and a written count."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.backbones.vim import BiMamba, Vim
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count
from longvis_bench.ops.selective_scan.operator import reference
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import tokens_of
from longvis_bench.weights.matching import load_weights
from tests.backbones.family_vectors import FORMULA, load, logits_error, paths, read, shapes, watch, weight_as


@pytest.mark.parametrize("path", paths("vim_*"), ids=lambda path: path.stem)
def test_logits_equal_the_authors(path: Path) -> None:
    assert logits_error(path, Vim) < 1e-4


@pytest.mark.slow
def test_the_published_size_equals_the_authors() -> None:
    """Blocks give what their mixer gave and the sum of all before, as the authors' do."""
    config, vector = read(paths("published_vim-t_*")[0])
    alias = {"A_b_log": "A_log", "dt_proj_b.bias": "dt_proj.bias", "cls_token": "pos_embed"}
    weights = {}
    for name, shape in shapes(vector).items():
        found = next((end for end in alias if name.endswith(end)), None)
        weights[name] = weight_as(name, name if found is None else alias[found], shape)
    model = Registry().find("vim-t").build(resolution=config["resolution"], num_classes=1000).eval()
    load(model, weights)
    numbers = sorted({int(name.split(".")[2]) for name in vector if name.startswith("tokens.layers.")})
    kept = watch(model, {f"tokens.layers.{i}": f"layers.{i}" for i in numbers})
    with torch.inference_mode():
        kept["logits"] = FORMULA.sample(model(FORMULA.image(1, config["resolution"])))
    apart = {name: (kept[name] - vector[name]).abs().max().item() for name in kept}
    assert kept.keys() == vector.keys() - {"shapes"}
    assert max(apart.values()) < 1e-4, apart


def naive(mixer: BiMamba, tokens: Tensor) -> Tensor:
    """Direction by direction, token by token."""
    x, z = mixer.in_proj(tokens).chunk(2, dim=-1)
    out = torch.zeros_like(x)

    def turn(t: Tensor, end: str) -> Tensor:
        return t.flip(1) if end else t

    for end, rate in (("", "A_log"), ("_b", "A_b_log")):
        conv, project, step = (getattr(mixer, f"{n}{end}") for n in ("conv1d", "x_proj", "dt_proj"))
        u = F.silu(F.conv1d(F.pad(turn(x, end).mT, (3, 0)), conv.weight, conv.bias, groups=x.shape[-1]))
        dt, B, C = project(u.mT).split([mixer.rank, mixer.states, mixer.states], dim=-1)
        A = -torch.exp(getattr(mixer, rate).float())
        D = getattr(mixer, f"D{end}").float()
        y = reference(u, (dt @ step.weight.T).mT, A, B.mT, C.mT, D, step.bias.float())
        out = out + turn(y.mT * F.silu(turn(z, end)), end)
    return mixer.out_proj(out * mixer.scale)  # type: ignore[no-any-return]


@pytest.mark.parametrize("halve", [True, False])
def test_outputs_and_gradients_equal_those_of_a_naive_scan(halve: bool) -> None:
    torch.manual_seed(0)
    mixer = BiMamba(6, 3, halve)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mixer = mixer.double()
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    asked = [x, *mixer.parameters()]
    fast, slow = mixer(x), naive(mixer, x)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = (torch.autograd.grad((y * weight).sum(), asked) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("resolution", [224, 1024, 4096, (512, 1024), (672, 224)])
@pytest.mark.parametrize("name", ["vim-t", "vim-s"])
def test_macs_and_scans_follow_the_written_formula(name: str, resolution: AnyResolution) -> None:
    variant = Registry().find(name)
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=1000)
    counted = count(model, resolution=resolution)
    width, depth, states = variant.arguments["embed_dim"], variant.arguments["depth"], 16
    patches, inner, rank = tokens_of(resolution, 16), 2 * width, ceil(width / 16)
    tokens = patches + 1
    block = 2 * width * inner + 2 * (4 * inner + inner * (rank + 2 * states) + rank * inner) + inner * width
    assert counted.macs == 768 * width * patches + depth * tokens * block + 1000 * width
    assert counted.scan_flops == depth * 9 * 2 * tokens * inner * states
    assert counted.coverage == 1


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"), [("vim-t", 7.15, 1.30), ("vim-s", 25.80, 4.85), ("vim-b", 97.60, 18.8)]
)
def test_parameters_and_macs_are_those_of_the_authors_code(name: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = Registry().find(name).build(resolution=224, num_classes=1000)
    counted = count(model, resolution=224)
    assert counted.params / 1e6 == pytest.approx(millions, abs=0.006)
    assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def small(**more: Any) -> Vim:
    torch.manual_seed(0)
    return Vim(**{"resolution": 64, "num_classes": 3, "embed_dim": 16, "depth": 3, **more})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_middle_cls_token": False},
        {"if_cls_token": False, "use_middle_cls_token": False, "final_pool_type": "max"},
        {"if_cls_token": False, "use_middle_cls_token": False, "final_pool_type": "none"},
        {"rms_norm": False, "if_abs_pos_embed": False, "drop_path_rate": 0.2},
    ],
    ids=str,
)
def test_every_form_trains(more: dict[str, Any]) -> None:
    model = small(**more)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("middle", [True, False])
def test_a_position_table_is_resized_without_its_class_token(middle: bool) -> None:
    """The class token's row stands in the middle of the authors' table; only the grid is resized."""
    source = small(use_middle_cls_token=middle)
    assert source.patch_pos_embed is not None
    assert source.cls_position_embed is not None
    with torch.no_grad():
        source.patch_pos_embed.fill_(2.0)
        source.cls_position_embed.fill_(-7.0)
    tensors = dict(source.state_dict())
    row = 8 if middle else 0
    table, token = tensors.pop("patch_pos_embed"), tensors.pop("cls_position_embed")
    tensors["pos_embed"] = torch.cat([table[:, :row], token, table[:, row:]], dim=1)
    larger = small(use_middle_cls_token=middle, resolution=96)
    report = load_weights(larger, tensors)
    assert list(report.reshaped) == ["patch_pos_embed"]
    assert larger.patch_pos_embed is not None
    torch.testing.assert_close(larger.patch_pos_embed, torch.full_like(larger.patch_pos_embed, 2.0))
    torch.testing.assert_close(larger.cls_position_embed, source.cls_position_embed)


def test_the_residual_stream_is_float32_in_half_precision() -> None:
    model = small().bfloat16().eval()
    streams: list[torch.dtype] = []
    model.layers[1].register_forward_hook(lambda _, __, out: streams.append(out[1].dtype))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64).bfloat16()).dtype == torch.bfloat16
    assert streams == [torch.float32]


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    model = small().eval()
    image = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bimamba_type": "v1"}, "bimamba_type of vim must be 'v2'"),
        ({"if_cls_token": False}, "needs if_cls_token"),
        ({"final_pool_type": "all"}, "mean, none or max"),
    ],
)
def test_arguments_that_make_no_vim_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        small(**wrong)


@pytest.mark.parametrize(
    ("name", "size", "legal"),
    [("vim-n", 1000, "992, 1008"), ("vim-n[stride=8]", 100, "96, 104"), ("vim-n", 8, "16")],
)
def test_illegal_sizes_name_legal_ones(name: str, size: int, legal: str) -> None:
    with pytest.raises(IllegalSize, match=legal):
        Registry().find(name).plan(size)
