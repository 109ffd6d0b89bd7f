"""Token mixers: what a token sees, values, gradients, and MACs against written formulas."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from torch import Tensor, nn

from longvis_bench import units
from longvis_bench.backbones import mixers
from longvis_bench.backbones.atlas import Atlas
from longvis_bench.backbones.biformer import RoutedAttention
from longvis_bench.backbones.fastervit import FasterViT
from longvis_bench.backbones.longvit import DilatedAttention
from longvis_bench.backbones.mambavision import SelfAttention
from longvis_bench.backbones.mila import MILA, GatedAttention
from longvis_bench.backbones.mixer_network import MixerBlock
from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.ops.dilated_attention import reference
from longvis_bench.ops.window_pyramid import WindowBlock
from longvis_bench.registry.mixers import MixerVariant
from longvis_bench.registry.registry import Registry
from longvis_bench.sizes.atlas import atlas_scales
from longvis_bench.sizes.longvit import LONGVIT_RATIOS, longvit_segments
from longvis_bench.sizes.mixers import frame_macs

DIM, HEADS, SIDE, PATCH = 32, 4, 16, 2
TINY: dict[str, dict[str, Any]] = {
    "window": {"window": 4},
    "shifted-window": {"window": 4},
    "dilated": {"segments": [16, 64, 256], "ratios": [1, 2, 4]},
    "carrier-tokens": {"window": 4},
    "atlas": {"window": 4},
    "neighbourhood": {"kernel": 3},
    "dilated-neighbourhood": {"kernel": 3},
    "block-grid": {"window": 4},
    "halo": {"window": 4, "halo": 1},
    "bi-level": {"regions": 4, "topk": 2},
    "long-short": {"group": 4},
    "agent": {"agents": 9},
}
"""Arguments with which a grid of 16 x 16 tokens has several windows."""
NAMES = [variant.variant for variant in Registry(()).mixers()]
MIXING = [name for name in NAMES if name != "none"]
CENTRE = (5, 6)


@cache
def tiny(name: str) -> MixerVariant:
    """A mixer on a grid of 16 x 16 tokens of 32 channels, in two blocks."""
    own = {"dim": DIM, "heads": HEADS, "blocks": 2, "patch": PATCH, **TINY.get(name, {})}
    inside = ",".join(f"{key}={value!r}" for key, value in own.items())
    return cast(MixerVariant, Registry(()).find(f"mixer:{name}[{inside}]"))


def network(name: str) -> Any:
    """In double precision, with weights large enough that nothing vanishes."""
    torch.manual_seed(0)
    model = tiny(name).build(resolution=SIDE * PATCH, num_classes=5).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model


def mixer(name: str, block: int = 0) -> nn.Module:
    """The mixer of a block: (batch, rows, columns, dim) -> the same."""
    found = network(name).layers[0][block]
    return cast(nn.Module, found.mixer if isinstance(found, MixerBlock) else found)


def grid(batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, SIDE, SIDE, DIM, dtype=torch.float64)


def seen(module: nn.Module, x: Tensor) -> Tensor:
    """Which tokens of the grid have an influence on the one at CENTRE, in some image: (rows, columns)."""
    x = x.clone().requires_grad_()
    out = module(x)[:, CENTRE[0], CENTRE[1]]
    (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), x)
    return (gradient.abs().sum(-1) > 1e-25).any(0)


def where(rule: Callable[[int, int], bool]) -> Tensor:
    """The grid's tokens for which a rule of row and column holds."""
    return torch.tensor([[rule(row, column) for column in range(SIDE)] for row in range(SIDE)])


def _cell(size: int, shift: int = 0) -> Callable[[int, int], bool]:
    """In the same window as CENTRE; windows shifted by `shift` are cut off at the edges."""
    own = [(place - shift) // size for place in CENTRE]
    return lambda row, column: [(row - shift) // size, (column - shift) // size] == own


def _near(radius: int) -> Callable[[int, int], bool]:
    return lambda row, column: max(abs(row - CENTRE[0]), abs(column - CENTRE[1])) <= radius


def _dilated(row: int, column: int) -> bool:
    token, other = SIDE * CENTRE[0] + CENTRE[1], SIDE * row + column
    branches = ((16, 1), (64, 2), (256, 4))
    return any(token // s == other // s and token % r == other % r for s, r in branches)


def _everything(row: int, column: int) -> bool:
    return True


SEEN: dict[str, tuple[Callable[[int, int], bool], ...]] = {
    "none": (lambda row, column: (row, column) == CENTRE,),
    "window": (_cell(4),),
    "shifted-window": (_cell(4, 2), _cell(4)),
    "dilated": (_dilated,),
    # a convolution of 3 along raster order, then a scan from the start
    "mambavision": (lambda row, column: SIDE * row + column <= SIDE * CENTRE[0] + CENTRE[1] + 1,),
    "neighbourhood": (_near(1),),
    # 16 // 3 = 5 apart: rows 0, 5, 10, 15 are a row of their own, columns 1, 6, 11
    "dilated-neighbourhood": (lambda row, column: row in (0, 5, 10) and column in (1, 6, 11), _near(1)),
    # spread by 16 / 4 = 4
    "block-grid": (_cell(4), lambda row, column: row % 4 == 1 and column % 4 == 2),
    "halo": (lambda row, column: 3 <= row <= 8 and 3 <= column <= 8,),
    "long-short": (_cell(4), lambda row, column: row % 4 == 1 and column % 4 == 2),
}
"""Mixer -> what CENTRE sees in blocks 0, 1, ..., where that is not everything; bi-level routing apart."""


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bi-level"])
@pytest.mark.parametrize("block", [0, 1])
def test_a_token_sees_what_the_definition_says(name: str, block: int) -> None:
    rules = SEEN.get(name, (_everything,))
    expected = where(rules[block % len(rules)])
    found = seen(mixer(name, block), grid(8))  # a maximum passes no gradient to most tokens of an image
    assert found.tolist() == expected.tolist()


def test_a_token_sees_the_regions_that_its_own_chooses_and_a_convolution_around_it() -> None:
    routed, x = cast(RoutedAttention, mixer("bi-level")), grid()
    q, k, _ = routed.qkv["qkv"](x).chunk(3, dim=-1)
    means = [F.avg_pool2d(t.permute(0, 3, 1, 2), 4).flatten(2).mT[0] for t in (q, k)]
    chosen = (means[0] @ means[1].T)[4 * (CENTRE[0] // 4) + CENTRE[1] // 4].topk(2).indices.tolist()
    expected = where(lambda row, column: 4 * (row // 4) + column // 4 in chosen or _near(2)(row, column))
    assert seen(routed, x).tolist() == expected.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_gradients_and_batch_invariance(name: str) -> None:
    model = network(name)
    images = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH, dtype=torch.float64)
    model(images).square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        together, apart = model(images), torch.cat([model(image[None]) for image in images])
    assert together.shape == (2, 5)
    torch.testing.assert_close(together, apart)


def attention(layer: SelfAttention, tokens: Tensor) -> Tensor:
    """Softmax attention of one sequence (tokens, dim), head by head."""
    q, k, v = layer.qkv(tokens).chunk(3, dim=-1)
    d = DIM // HEADS
    parts = [slice(h * d, (h + 1) * d) for h in range(HEADS)]
    read = [torch.softmax(q[:, own] @ k[:, own].T / d**0.5, -1) @ v[:, own] for own in parts]
    out: Tensor = layer.proj(torch.cat(read, -1))
    return out


def test_full_attention_equals_a_slow_form() -> None:
    module, x = cast(mixers.OnTokens, mixer("full")), grid()
    slow = attention(cast(SelfAttention, module.mixer), x[0].flatten(0, 1))
    torch.testing.assert_close(module(x)[0].flatten(0, 1), slow)


def test_axial_attention_equals_a_slow_form() -> None:
    module, x = cast(mixers.Axial, mixer("axial")), grid()
    rows = torch.stack([attention(module.along_rows, row) for row in x[0]])
    slow = torch.stack([attention(module.along_columns, rows[:, c]) for c in range(SIDE)], dim=1)
    torch.testing.assert_close(module(x)[0], slow)


def alone(block: nn.Module, *layers: nn.Module) -> nn.Module:
    """A block without what stands around its mixer: norms are identities, given layers give zero."""
    for name in [name for name, _ in block.named_children()]:
        if name.startswith("norm"):
            setattr(block, name, nn.Identity())
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return block


@pytest.mark.parametrize("name", ["window", "shifted-window"])
def test_windows_equal_swins_block(name: str) -> None:
    module, x = cast(mixers.InWindows, mixer(name)), grid(2)
    block = WindowBlock(DIM, module.mixer, module.frame, 1.0, 0.0).double()
    whole = alone(block, block.mlp.fc1, block.mlp.fc2)(x)
    torch.testing.assert_close(module(x), whole - x)


@pytest.mark.parametrize("number", [0, 1])
def test_block_and_grid_attention_equal_those_of_timms_maxvit(number: int) -> None:
    module, x = cast(mixers.BlockOrGrid, mixer("block-grid", number)), grid(2)
    config = MaxxVitTransformerCfg(dim_head=DIM // HEADS, window_size=(4, 4))
    block = PartitionAttentionCl(DIM, ("block", "grid")[number], config).double()
    block.attn.load_state_dict(module.attn.state_dict())
    whole = alone(block, block.mlp.fc1, block.mlp.fc2)(x)
    torch.testing.assert_close(module(x), whole - x)


def test_dilated_attention_equals_the_reference() -> None:
    module, x = cast(mixers.OnTokens, mixer("dilated")), grid()
    layer = cast(DilatedAttention, module.mixer)
    projected = (p(x.flatten(1, 2)) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k, v = (torch.unflatten(each, 2, (HEADS, -1)) for each in projected)
    slow = layer.out_proj(layer.inner_norm(reference(q, k, v, [16, 64, 256], [1, 2, 4]).flatten(2)))
    torch.testing.assert_close(module(x).flatten(1, 2), slow)


def test_atlas_equals_a_stage_of_the_backbone() -> None:
    module, x = cast(mixers.MultiScale, mixer("atlas")), grid(2)
    backbone = Atlas(
        resolution=16 * SIDE, num_classes=2, dim=DIM, heads=HEADS, stem_dim=DIM // 4, depths=[1, 1], window=4
    ).double()
    stage: Any = backbone.stages[0]
    stage.blocks[0].load_state_dict(module.block.state_dict())
    fine = x.view(2, 4, 4, 4, 4, DIM).transpose(2, 3).reshape(2 * 16, 16, DIM)
    coarse = F.max_pool2d(x.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1).reshape(2, 16, DIM)
    expected = stage([fine, coarse])[0].view(2, 4, 4, 4, 4, DIM).transpose(2, 3).reshape(x.shape)
    torch.testing.assert_close(module(x), expected)


def test_carrier_tokens_equal_stage_3_of_the_backbone() -> None:
    module, x = cast(mixers.OnMap, mixer("carrier-tokens")), grid(2)
    backbone = FasterViT(
        resolution=16 * SIDE,
        num_classes=2,
        dim=DIM // 4,
        in_dim=4,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, HEADS, HEADS],
        window_size=[4, 4, 4, 4],
    ).double()
    stage: Any = backbone.levels[2]
    stage.downsample = nn.Identity()
    stage.load_state_dict(module.mixer.state_dict())
    torch.testing.assert_close(module(x), stage(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_linear_attention_equals_a_block_of_mila() -> None:
    module, x = cast(GatedAttention, mixer("linear")), grid(2)
    backbone = MILA(num_classes=2, embed_dim=DIM, depths=[1], num_heads=[HEADS]).double()
    layer: Any = backbone.layers[0]
    block = layer.blocks[0]
    block.load_state_dict(module.state_dict(), strict=False)
    around = (block.cpe1, block.cpe2, block.mlp.fc1, block.mlp.fc2)
    whole = alone(block, *around)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), whole - x)


@pytest.mark.parametrize("name", ["halo", "focal", "ss2d"])
def test_maps_reach_their_mixer_with_channels_first(name: str) -> None:
    module, x = cast(mixers.OnMap, mixer(name)), grid(2)
    torch.testing.assert_close(module(x).permute(0, 3, 1, 2), module.mixer(x.permute(0, 3, 1, 2)))


@pytest.mark.parametrize("name", ["agent", "inline"])
def test_the_grid_is_one_window(name: str) -> None:
    module, x = cast(mixers.InWindows, mixer(name)), grid(2)
    torch.testing.assert_close(module(x).flatten(1, 2), module.mixer(x.flatten(1, 2)[:, None])[:, 0])


@pytest.mark.parametrize("name", ["mambavision", "bidirectional-scan", "channel"])
def test_tokens_are_in_raster_order(name: str) -> None:
    module, x = cast(mixers.OnTokens, mixer(name)), grid(2)
    torch.testing.assert_close(module(x).flatten(1, 2), module.mixer(x.flatten(1, 2)))


POSITION = 512
"""Hidden width of the position MLPs of Atlas and FasterViT."""


def _windowed(side: int, d: int, keys: int) -> int:
    """Projections of queries, keys, values and output, and attention of each token to `keys` others."""
    tokens = side**2
    return 4 * tokens * d * d + 2 * tokens * keys * d


def _atlas(side: int, d: int) -> int:
    """Of one whole block, scale by scale."""
    stride = 8 if side == 96 else 4
    scales = atlas_scales(side, side, window=16, stride=stride)
    tokens = [scale.grid[0] ** 2 for scale in scales]
    inside = [scale.window[0] ** 2 for scale in scales]
    macs, last = 0, len(scales) - 1
    for s, (n, w) in enumerate(zip(tokens, inside, strict=True)):
        macs += w * (2 * POSITION + POSITION * d)
        macs += n * d * d * (1 + 2 + 1 + 8 + (2 if last else 0))  # q, kv, proj, MLP; kv of the result
        macs += 2 * n * sum(inside[s:]) * d
        if s:
            macs += n * d * d * (1 + 1 + 8 + (2 if s < last else 0)) + 2 * n * inside[s - 1] * d
    return macs


def _carriers(side: int, d: int, h: int) -> int:
    """Of one whole block."""
    n, w, c = side**2, 16, 2
    coarse = side // w * c
    macs = 9 * n * d
    for tokens, sequences, length, grid_side in (
        (coarse**2, 1, coarse**2, coarse),
        (n + coarse**2, (side // w) ** 2, w * w + c * c, w),
    ):
        macs += grid_side**2 * (2 * POSITION + POSITION * d)
        macs += (2 * grid_side - 1) ** 2 * (2 * POSITION + POSITION * h)
        macs += 12 * tokens * d * d + 2 * sequences * length**2 * d
    return macs


def _dilated_macs(side: int, d: int) -> int:
    n = side**2
    macs = 4 * n * d * d
    for segment, ratio in zip(longvit_segments(32 * side), LONGVIT_RATIOS, strict=True):
        length = min(segment, n)
        seen = -(-length // ratio)
        macs += 2 * -(-n // length) * seen**2 * d
    return macs


def _focal(side: int, d: int) -> int:
    return side**2 * (d * (2 * d + 4) + 2 * d * d + (9 + 25 + 49) * d)


def _distance(side: int, d: int, h: int) -> int:
    p = d // 16
    return _windowed(side, d, 64) + 15**2 * (2 * p + 2 * p * p + p * h)


def _vim(side: int, d: int) -> int:
    n, inner, rank = side**2, 2 * d, -(-d // 16)
    outputs = rank + 2 * 16
    return n * (2 * d * inner + inner * d) + 2 * ((n) * 4 * inner + n * inner * outputs + n * rank * inner)


def _mambavision(side: int, d: int) -> int:
    half, rank = d // 2, -(-d // 16)
    return side**2 * (2 * d * d + 3 * d + half * (rank + 2 * 8) + rank * half)


def _ss2d(side: int, d: int) -> int:
    rank = -(-d // 16)
    return side**2 * (2 * d * d + 9 * d + 4 * (d * (rank + 2) + rank * d))


MACS: dict[str, Callable[[int, int, int], int]] = {
    "none": lambda side, d, h: 0,
    "full": lambda side, d, h: _windowed(side, d, side**2),
    "window": lambda side, d, h: _windowed(side, d, 256),
    "shifted-window": lambda side, d, h: _windowed(side, d, 256),
    "dilated": lambda side, d, h: _dilated_macs(side, d),
    "carrier-tokens": _carriers,
    "mambavision": lambda side, d, h: _mambavision(side, d),
    "atlas": lambda side, d, h: _atlas(side, d),
    "neighbourhood": lambda side, d, h: _windowed(side, d, 49),
    "dilated-neighbourhood": lambda side, d, h: _windowed(side, d, 49),
    "block-grid": lambda side, d, h: _windowed(side, d, 64),
    # no output projection; each head's queries times 2 x (2 x 14 - 1) distances
    "halo": lambda side, d, h: _windowed(side, d, 14**2) + side**2 * (54 * d - d * d),
    # 64 regions' mean queries times mean keys; a convolution of 5 x 5
    "bi-level": lambda side, d, h: _windowed(side, d, side**2 // 16) + 64 * 64 * d + 25 * side**2 * d,
    "long-short": _distance,
    # agents read all keys, queries read all agents; a convolution
    "agent": lambda side, d, h: side**2 * (4 * d * d + 4 * 49 * d + 9 * d),
    # keys times values and queries times that, queries times the mean key, a convolution and its weights
    "inline": lambda side, d, h: (
        side**2 * (4 * d * d + 2 * d * d // h + d + 9 * d) + d * d // h + 9 * d * d // h
    ),
    "linear": lambda side, d, h: side**2 * (5 * d * d + 2 * 9 * d + d + 2 * d * d // h),
    "ss2d": lambda side, d, h: _ss2d(side, d),
    "bidirectional-scan": lambda side, d, h: _vim(side, d),
    "focal": lambda side, d, h: _focal(side, d),
    "axial": lambda side, d, h: 2 * _windowed(side, d, side),
    "channel": lambda side, d, h: side**2 * (4 * d * d + 2 * d * d // h),
}
"""MACs of one mixer on side x side tokens of d channels with h heads."""
SCANS: dict[str, Callable[[int, int], int]] = {
    "mambavision": lambda n, d: 9 * n * d // 2 * 8,
    "ss2d": lambda n, d: 9 * n * 4 * d,
    "bidirectional-scan": lambda n, d: 9 * n * 2 * 2 * d * 16,
}
"""FLOPs of the scans of one mixer on n tokens of d channels."""


def test_every_mixer_has_a_formula() -> None:
    assert list(MACS) == NAMES


@pytest.mark.parametrize(("name", "side"), [*product(NAMES, [64, 96]), *product(MIXING, [512])])
def test_macs_equal_the_written_formula(name: str, side: int) -> None:
    """With the paper's width, heads and blocks; 96 x 96 tokens are the paper's, 512 x 512 are 262,144."""
    variant = cast(MixerVariant, Registry(()).find(f"mixer:{name}"))
    a = variant.arguments
    assert (a["dim"], a["heads"], a["blocks"], a["mlp_ratio"], a["patch"]) == (768, 12, 4, 4, 4)
    counted = count_variant(variant, 4 * side, 10)
    rest = frame_macs(4 * side, 10, whole=variant.entry.whole, **a)
    assert counted.macs == rest + 4 * MACS[name](side, 768, 12)
    assert variant.mixer_macs(counted.macs, 4 * side, 10) == MACS[name](side, 768, 12)
    scanned = SCANS[name](side**2, 768) if name in SCANS else 0
    assert counted.scan_flops == 4 * scanned
    assert counted.coverage == 1.0


def test_the_network_alone_counts_as_written() -> None:
    variant = Registry(()).find("mixer:none[mlp_ratio=0,blocks=2,dim=8,heads=2,patch=8]")
    assert count_variant(variant, 64, 3).macs == 64 * 3 * 64 * 8 + 8 * 3
    variant = Registry(()).find("mixer:none[mlp_ratio=2,blocks=2,dim=8,heads=2,patch=8]")
    assert count_variant(variant, 64, 3).macs == 64 * (3 * 64 * 8 + 2 * 2 * 2 * 8 * 8) + 8 * 3


def test_the_map_is_what_the_head_reads() -> None:
    model = network("window")
    image = torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH, dtype=torch.float64)
    (found,) = model.forward_maps(image)
    assert model.map_strides == (PATCH,)
    assert found.shape == (1, DIM, SIDE, SIDE)
    torch.testing.assert_close(model.norm(found.permute(0, 2, 3, 1)), model.forward_features(image))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = network("atlas")
    images = torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH, dtype=torch.float64)
    found = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(images).sum().backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*found)


PAGE = Path(__file__).parents[2] / "docs" / "mixers.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the source tree")
def test_the_page_has_the_macs_of_every_mixer() -> None:
    text = PAGE.read_text(encoding="utf-8").split("## What they cost and see")[1].split("## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    assert {cells[0].strip(" `"): [cell.strip() for cell in cells[1:3]] for cells in rows} == {
        name: [units.count(MACS[name](side, 768, 12)) for side in (96, 512)] for name in NAMES
    }
