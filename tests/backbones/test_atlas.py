from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longvis_bench.backbones import atlas
from longvis_bench.backbones.atlas import (
    Atlas,
    MultiScaleBlock,
    ScaleAttention,
    Stage,
    WindowOrder,
    pyramid,
)
from longvis_bench.errors import IllegalSize
from longvis_bench.ops.windows import window_partition, window_reverse
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import resolution_of, sides
from longvis_bench.sizes.atlas import atlas_scales, require_atlas

SMALL: dict[str, Any] = {"dim": 16, "heads": 2, "stem_dim": 4, "window": 4, "stride": 2}


def small(resolution: int | tuple[int, int], depths: list[int], **more: Any) -> Atlas:
    torch.manual_seed(0)
    return Atlas(resolution=resolution, num_classes=5, depths=depths, **{**SMALL, **more})


def slow_attention(weights: ScaleAttention, x: Tensor, context: list[Tensor]) -> Tensor:
    """x (n, dim) reads the keys and values (m, 2 dim) of `context`, one head at a time."""
    query = weights.q(weights.query_norm(x))
    keys, values = torch.cat(context).chunk(2, dim=-1)
    read = []
    for q, k, v in zip(*(t.chunk(weights.heads, dim=-1) for t in (query, keys, values)), strict=True):
        read.append(torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1) @ v)
    x = x + weights.proj(torch.cat(read, dim=-1))
    out: Tensor = x + weights.mlp(weights.mlp_norm(x))
    return out


def slow_block(block: MultiScaleBlock, grids: list[Tensor]) -> list[Tensor]:
    """Equation 2 on grids (height, width, dim) of one image, one window at a time, by pixel coordinates."""
    layout, grids = block.layout, list(grids)
    weights = [cast(ScaleAttention, scale) for scale in block.scales]
    for s, scale in enumerate(layout):
        position = block.positions[s]().view(*scale.window, -1)
        grids[s] = grids[s] + position.repeat(*scale.windows, 1)
    for s in range(len(grids) - 1):
        pooled = F.max_pool2d(grids[s].permute(2, 0, 1)[None], block.stride)[0].permute(1, 2, 0)
        grids[s + 1] = grids[s + 1] + pooled

    def boxes(s: int) -> Iterator[tuple[slice, slice]]:
        height, width = layout[s].window
        for r in range(layout[s].windows[0]):
            for c in range(layout[s].windows[1]):
                yield slice(r * height, (r + 1) * height), slice(c * width, (c + 1) * width)

    def context(s: int, box: tuple[slice, ...]) -> Tensor:
        return weights[s].context(grids[s][box]).flatten(0, 1)

    for s in reversed(range(len(grids))):
        updated = grids[s].clone()
        for box in boxes(s):
            seen = [context(s, box)]
            for t in range(s + 1, len(grids)):
                corner = [side.start // block.stride ** (t - s) for side in box]
                over = [start // side * side for start, side in zip(corner, layout[t].window, strict=True)]
                seen.append(
                    context(t, tuple(slice(o, o + n) for o, n in zip(over, layout[t].window, strict=True)))
                )
            tokens = slow_attention(weights[s], grids[s][box].flatten(0, 1), seen)
            updated[box] = tokens.view_as(grids[s][box])
        grids[s] = updated
    for s in range(1, len(grids)):
        updated = grids[s].clone()
        for box in boxes(s - 1):
            above = tuple(slice(side.start // block.stride, side.stop // block.stride) for side in box)
            tokens = slow_attention(weights[s], grids[s][above].flatten(0, 1), [context(s - 1, box)])
            updated[above] = tokens.view_as(grids[s][above])
        grids[s] = updated
    return grids


GRIDS = [(4, 4), (8, 8), (16, 16), (8, 16), (4, 16), (2, 8)]


@pytest.mark.parametrize("grid", [*GRIDS, pytest.param((16, 32), marks=pytest.mark.slow)], ids=str)
def test_block_equals_the_paper_one_window_at_a_time(grid: tuple[int, int]) -> None:
    scales = atlas_scales(*grid, window=4, stride=2)
    torch.manual_seed(1)
    block = MultiScaleBlock(scales, 16, 2, 2, 0.0, "position").double()
    grids = [torch.randn(2, *scale.grid, 16, dtype=torch.float64) for scale in scales]
    fast = block([window_partition(g, scale.windows) for g, scale in zip(grids, scales, strict=True)])
    fast_grids = [
        window_reverse(t, scale.windows, scale.window) for t, scale in zip(fast, scales, strict=True)
    ]
    slow_grids = [slow_block(block, [g[b] for g in grids]) for b in range(2)]
    for b, slow in enumerate(slow_grids):
        for ours, theirs in zip(fast_grids, slow, strict=True):
            torch.testing.assert_close(ours[b], theirs)
    weights = list(block.parameters())
    zero = torch.zeros(())
    loss = sum((g.square().sum() for g in fast_grids), zero)
    slow_loss = sum((g.square().sum() for slow in slow_grids for g in slow), zero)
    for ours, theirs in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(slow_loss, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_official_order_pairs_in_raster_order() -> None:
    """Fine window i reads coarse window i // n, which may not contain it."""
    scales = atlas_scales(16, 16, window=4, stride=2)
    context = torch.arange(4.0).view(4, 1, 1).expand(4, 1, 2)
    orders: tuple[WindowOrder, ...] = ("position", "official")
    paired = {
        order: MultiScaleBlock(scales, 8, 1, 2, 0.0, order).broadcast(context, 1, 0)[0, :, 0, 0].tolist()
        for order in orders
    }
    assert paired["official"] == [i // 4 for i in range(16)]
    assert paired["position"] == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (128, 256)], ids=str)
def test_shapes_gradients_and_batch_invariance(size: tuple[int, int]) -> None:
    scales = atlas_scales(size[0] // 16, size[1] // 16, window=4, stride=2)
    model = small(size, [1] * len(scales))
    images = torch.randn(2, 3, *size)
    model(images).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    model.eval()
    with torch.inference_mode():
        together = model(images)
        apart = torch.cat([model(image[None]) for image in images])
    assert together.shape == (2, 5)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_channels_last_gives_the_same() -> None:
    model = small(128, [1, 1]).eval()
    image = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        expected = model(image)
        model = model.to(memory_format=torch.channels_last)
        actual = model(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_drop_path_acts_in_training_only() -> None:
    model = small(128, [2, 2], drop_path=0.5)
    image = torch.randn(1, 3, 128, 128)
    model.eval()
    torch.testing.assert_close(model(image), model(image), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(image), model(image))


def test_published_sizes_build_on_meta() -> None:
    with torch.device("meta"):
        for resolution, scales in [(256, 1), (1024, 2), (2048, 3), (4096, 3)]:
            model = cast(Atlas, Registry().find("atlas-s").build(resolution=resolution, num_classes=100))
            assert len(model.stages) == scales
            assert sum(len(cast(Stage, stage).blocks) for stage in model.stages) == 12
            assert model(torch.empty(1, 3, resolution, resolution)).shape == (1, 100)


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_position_tables_are_made_once_a_resolution() -> None:
    """Building lays out the coordinates; a call lays out nothing."""
    makes = {"arange", "linspace", "meshgrid", "stack"}
    with Operators() as building:
        model = small((128, 256), [1, 1, 1])
    with torch.no_grad(), Operators() as calling:
        model(torch.randn(1, 3, 128, 256))
    assert building.seen & makes
    assert not calling.seen & makes
    tables = [name for name, _ in model.named_buffers() if name.endswith("coordinates")]
    assert len(tables) == 3 + 2 + 1


@pytest.mark.parametrize("order", ["position", "official"])
@pytest.mark.parametrize("size", [(128, 256), (256, 128), (64, 256)], ids=str)
def test_a_rectangular_image_is_one_of_its_own_blocks(size: tuple[int, int], order: WindowOrder) -> None:
    """The pyramid pools the stem's map, and every token of the image moves some logit."""
    scales = atlas_scales(size[0] // 16, size[1] // 16, window=4, stride=2)
    model = small(size, [1] * len(scales), window_order=order).eval()
    image = torch.randn(1, 3, *size, requires_grad=True)
    grid = model.stem(image)
    for scale, tokens in zip(model.scales, pyramid(grid, model.scales, model.stride), strict=True):
        pooled = F.adaptive_max_pool2d(grid, scale.grid)[0].permute(1, 2, 0)
        torch.testing.assert_close(window_reverse(tokens, scale.windows, scale.window)[0], pooled)
    model(image).square().sum().backward()
    assert image.grad is not None
    assert bool(F.max_pool2d(image.grad.abs().sum(1), 16).all())


def test_positions_are_not_saved() -> None:
    assert not [name for name in small(64, [1]).state_dict() if "coordinates" in name]


@pytest.mark.parametrize(
    ("size", "legal"),
    [((128, 100), "128, 64x128"), ((128, 160), "128"), ((8, 128), "128x32")],
    ids=str,
)
def test_illegal_rectangle_names_legal_ones(size: tuple[int, int], legal: str) -> None:
    with pytest.raises(
        IllegalSize, match=f"{size[1]}x{size[0]} px .*legal sizes near it: .*{legal}"
    ) as caught:
        Atlas(resolution=size, num_classes=5, depths=[1, 1], **SMALL)
    assert len(caught.value.legal) == 2
    for near in caught.value.legal:
        assert require_atlas(*sides(resolution_of(near)), window=4, stride=2)


def test_illegal_size_names_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="1024"):
        Atlas(resolution=1000, num_classes=5, dim=16, heads=2, stem_dim=4, depths=[2, 10])


def test_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64 px, not 128 x 128"):
        small(64, [1])(torch.zeros(1, 3, 128, 128))


def test_unused_official_tensors_keep_their_names() -> None:
    zero = torch.zeros(1)
    official = (
        "atlas_models.0.patch_embed.ds2.weight",
        "atlas_models.1.patch_embed.ds1.norm.bias",
        "fc.bias",
    )
    renamed = atlas.checkpoint_filter_fn(dict.fromkeys(official, zero))
    assert list(renamed) == ["stem.13.weight", "atlas_models.1.patch_embed.ds1.norm.bias", "head.bias"]
    assert atlas.checkpoint_filter_fn(renamed) == renamed


def test_compiles_without_graph_breaks() -> None:
    model = small(128, [1, 1]).eval()
    image = torch.randn(1, 3, 128, 128)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))
