"""Reach: witnesses with a reach that arithmetic gives, in every layout, and what has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longvis_bench.data.protocol import open_data
from longvis_bench.errors import IllegalSize, Unsupported
from longvis_bench.measure.last_map import find_map
from longvis_bench.measure.reach import Reach, measure_reach
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import AnyResolution

pytestmark = pytest.mark.usefixtures("two_threads")
Span = tuple[int, int]
"""First and last index, both within."""


def variant_of(build: Callable[[int], nn.Module]) -> Variant:
    """A variant whose model is what a function of the resolution builds."""

    class _Built(Variant):
        def build(self, *, resolution: AnyResolution, num_classes: int, in_chans: int = 3) -> nn.Module:
            assert isinstance(resolution, int)
            return build(resolution)

    known = Registry().find("vit-n")
    return _Built(**{name: getattr(known, name) for name in Variant.__dataclass_fields__})


def find(name: str, **arguments: object) -> Variant:
    variant = Registry().find(name)
    return replace(variant, arguments={**variant.arguments, **arguments})


def chain(count: int, *, stride: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolutions of 3 x 3 with an activation after each, then mean and head."""
    layers: list[nn.Module] = []
    for number in range(count):
        layers += [nn.Conv2d(3 if number == 0 else 8, 8, 3, stride=stride, padding=1), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def back(span: Span, kernel: int, stride: int, padding: int, size: int) -> Span:
    """The inputs of a convolution's outputs."""
    low, high = span[0] * stride - padding, span[1] * stride - padding + kernel - 1
    return max(low, 0), min(high, size - 1)


def whole(span: Span, window: int, size: int, shift: int = 0) -> Span:
    """The windows that tokens lie in; a shift cuts the first and the last window."""
    low = (span[0] - shift) // window * window + shift
    high = (span[1] - shift) // window * window + shift + window - 1
    return max(low, 0), min(high, size - 1)


def share_of(spans: list[Span], pixels: int) -> float:
    """Mean share of the image of all pairs of a span of rows and one of columns."""
    sides = [(high - low + 1) / pixels for low, high in spans]
    return float(np.mean([a * b for a in sides for b in sides]))


def thirds(side: int) -> list[Span]:
    middles = sorted({(2 * third + 1) * side // 6 for third in range(3)})
    return [(middle, middle) for middle in middles]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_chain_of_convolutions_has_the_field_of_arithmetic(count: int) -> None:
    reach = measure_reach(variant_of(lambda _: chain(count)), 48)
    spans = [(low - count, high + count) for low, high in thirds(48)]
    assert reach.basis == "map"
    assert reach.share == pytest.approx(share_of(spans, 48))
    assert all(half <= most <= 2**0.5 * (count + 0.5) for half, most in reach.fresh)


def test_strides_multiply_the_field() -> None:
    reach = measure_reach(variant_of(lambda _: chain(3, stride=2, act=nn.GELU)), 128)
    spans = []
    for span in thirds(16):
        for size in (32, 64, 128):
            span = back(span, 3, 2, 1, size)
        spans.append(span)
    assert reach.share == pytest.approx(share_of(spans, 128))
    assert reach.influence.centres[0] == ((2 + 0.5) * 8, (2 + 0.5) * 8)


def test_radii_of_a_mean_over_a_square_are_those_of_the_square() -> None:
    """Equal weights over 9 x 9 pixels: half of them lie within 3.9 px of the middle, 90 % within 5."""

    def build(_: int) -> nn.Module:
        box = nn.Conv2d(3, 8, 9, padding=4, bias=False)
        nn.init.constant_(box.weight, 0.1)
        return nn.Sequential(box, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    reach = measure_reach(variant_of(build), 48, seeds=1)
    steps = np.arange(-4, 5)
    distance = np.sort(np.hypot(steps[:, None], steps[None]).ravel())
    expected = distance[int(np.ceil(0.5 * 81)) - 1], distance[int(np.ceil(0.9 * 81)) - 1]
    assert reach.fresh[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["vit-n", "longvit-n", "atlas-n", "vim-n"])
def test_global_models_see_everything(name: str) -> None:
    """Attention over all tokens; Atlas by the scales that end in a single window; Vim by two scans."""
    assert measure_reach(Registry().find(name), 256 if name == "atlas-n" else 128).share == 1.0


def test_atlas_reaches_the_whole_image_through_its_scales_alone() -> None:
    """A single scale of windows, without coarser ones, would not reach across a window's edge."""
    from longvis_bench.backbones.atlas import Atlas

    variant = Registry().find("atlas-n")
    model = variant.build(resolution=512, num_classes=10)
    assert isinstance(model, Atlas)
    assert len(model.scales) > 1
    assert measure_reach(variant, 512).share == 1.0


def test_the_islands_of_swin_are_those_of_its_windows() -> None:
    depths, window, resolution = (2, 2, 2), 4, 256
    variant = find("swin-n", depths=depths, num_heads=(2, 2, 2), dim=16, window_size=window)
    reach = measure_reach(variant, resolution)
    last = resolution // 4 // 2 ** (len(depths) - 1)
    spans = []
    for span in thirds(last):
        for stage in reversed(range(len(depths))):
            size = resolution // 4 // 2**stage
            span = whole(span, window, size, shift=window // 2)
            span = whole(span, window, size)
            if stage:
                span = back(span, 2, 2, 0, 2 * size)
        spans.append(back(span, 4, 4, 0, resolution))
    expected = share_of(spans, resolution)
    assert expected < 0.6
    assert reach.share == pytest.approx(expected)


def test_the_islands_of_mambavision_are_windows_joined_by_convolutions() -> None:
    variant = find("mambavision-n", window_size=[8, 8, 4, 2])
    model = variant.build(resolution=256, num_classes=5)
    found = find_map(model.eval(), torch.randn(1, 3, 256, 256, requires_grad=True))
    assert found is not None
    reach = measure_reach(variant, 256)
    assert reach.share < 1.0
    spans = mambavision_spans(variant, 256, found.side)
    assert reach.share == pytest.approx(share_of(spans, 256))


def mambavision_spans(variant: Variant, resolution: int, side: int) -> list[Span]:
    """From the last stage back: windows, a convolution of stride 2, windows, then convolutions alone."""
    arguments = {**variant.arguments, **variant.plan(resolution).arguments}
    windows, depths = arguments["window_size"], arguments["depths"]
    spans = []
    for span in thirds(side):
        size = side
        for stage in (3, 2):
            span = whole(span, windows[stage], size)
            span = back(span, 3, 2, 1, 2 * size)
            size *= 2
        for stage in (1, 0):
            for _ in range(2 * depths[stage]):
                span = back(span, 3, 1, 1, size)
            if stage == 1:
                span = back(span, 3, 2, 1, 2 * size)
                size *= 2
        for _ in range(2):
            span = back(span, 3, 2, 1, 2 * size)
            size *= 2
        spans.append(span)
    return spans


def test_squeeze_and_excitation_reaches_everything_and_is_not_the_last_pooling() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
            self.head = nn.Linear(8, 5)

        def forward(self, image: Tensor) -> Tensor:
            x = self.conv(image)
            x = x * self.gate(x.mean((2, 3))).sigmoid()[..., None, None]
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    reach = measure_reach(variant_of(lambda _: Squeezed()), 48, seeds=1)
    assert reach.share == 1.0
    assert all(most < 3 for _, most in reach.fresh)


def test_a_branch_that_begins_at_zero_counts_for_the_share() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
            self.wide, self.scale = nn.Conv2d(8, 8, 5, padding=2), nn.Parameter(torch.zeros(8, 1, 1))

        def forward(self, image: Tensor) -> Tensor:
            x = self.stem(image)
            return self.head((x + self.scale * self.wide(x)).mean((2, 3)))  # type: ignore[no-any-return]

    reach = measure_reach(variant_of(lambda _: Branch()), 48)
    assert reach.share == pytest.approx((5 / 48) ** 2)
    assert all(most < 1 for _, most in reach.fresh), "radii are those of the weights as they are"


class Tokens(nn.Module):
    """Patches of 8 px in one of the layouts that models have, with a pooling or without."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.num_features = layout, 24
        self.embed, self.norm, self.head = nn.Conv2d(3, 24, 8, 8), nn.LayerNorm(24), nn.Linear(24, 5)
        self.num_prefix_tokens = 2

    def forward_features(self, image: Tensor) -> Tensor:
        x: Tensor = self.norm(self.embed(image).permute(0, 2, 3, 1))
        if self.layout in ("mean of maps", "mean of maps, channels last", "map without pooling"):
            return x if "last" in self.layout else x.permute(0, 3, 1, 2)
        tokens = x.flatten(1, 2)
        if self.layout == "class token":
            return torch.cat([tokens.mean(1, keepdim=True), tokens[:, :1] * 0, tokens], 1)
        return tokens

    def forward(self, image: Tensor) -> Tensor:
        x = self.forward_features(image)
        if self.layout == "mean of maps":
            x = x.mean((-2, -1))
        elif self.layout == "mean of maps, channels last":
            x = x.mean(dim=(1, 2))
        elif self.layout == "mean of tokens":
            x = x.mean(1)
        elif self.layout == "pool of tokens":
            x = nn.functional.adaptive_avg_pool1d(x.mT, 1).flatten(1)
        elif self.layout == "map without pooling":
            x = x[..., 0, 0]
        else:
            x = x[:, 0]
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "layout",
    [
        "mean of maps",
        "mean of maps, channels last",
        "mean of tokens",
        "pool of tokens",
        "class token",
        "map without pooling",
    ],
)
def test_the_map_is_found_in_every_layout(layout: str) -> None:
    """Each token of 6 x 6 sees its own patch, around its own centre."""
    reach = measure_reach(variant_of(lambda _: Tokens(layout)), 48, seeds=1)
    assert reach.basis == "map"
    assert reach.share == pytest.approx(1 / 36)
    assert reach.influence.centres[1] == (12.0, 28.0)
    assert all(most <= 4 * 2**0.5 for _, most in reach.fresh)


def test_without_a_map_the_logits_show_pairs_of_pixels_without_what_a_mean_contributes() -> None:
    """Two convolutions couple pixels at most 2 x 2 apart; a plain mean of pixels couples none."""

    class Hidden(nn.Module):
        def __init__(self, count: int, mixed: bool = False) -> None:
            super().__init__()
            parts = chain(count, act=nn.GELU)
            self.convs, self.head, self.mixed = parts[:-3], parts[-1], mixed

        def forward(self, image: Tensor) -> Tensor:
            x = self.convs(image).flatten(2)
            if self.mixed:
                x = x * x.sum(-1, keepdim=True).div(100).cos()
            mean = x @ x.new_full((x.shape[-1],), 1 / x.shape[-1])
            return self.head(mean if self.convs else mean.repeat(1, 8)[:, :8])  # type: ignore[no-any-return]

    local = measure_reach(variant_of(lambda _: Hidden(2)), 48, seeds=2)
    assert local.basis == "logits"
    assert local.share == pytest.approx(share_of([(a - 4, b + 4) for a, b in thirds(48)], 48))
    assert measure_reach(variant_of(lambda _: Hidden(2, mixed=True)), 48, seeds=1).share == 1.0
    plain = measure_reach(variant_of(lambda _: Hidden(0)), 48, seeds=1)
    assert (plain.share, plain.fresh) == (0.0, ((0.0, 0.0),))


def test_a_model_without_gradients_is_refused() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = chain(1)

        def forward(self, image: Tensor) -> Tensor:
            with torch.no_grad():
                return self.net(image)  # type: ignore[no-any-return]

    with pytest.raises(Unsupported, match="no gradient"):
        measure_reach(variant_of(lambda _: Blind()), 48)


def test_what_would_take_too_long_stops_after_one_pass() -> None:
    with pytest.raises(Unsupported, match="raise --timeout"):
        measure_reach(Registry().find("vit-n"), 64, limit_s=1e-6)


def test_trained_weights_have_radii_of_their_own() -> None:
    variant = Registry().find("convnext-n")
    entry = variant.shipped_weights("digits", 256)
    assert entry is not None
    assert entry.file is not None
    weights: Path = variant.folder / entry.file
    reach = measure_reach(variant, 256, num_classes=10, seeds=2, weights=weights, data=open_data("digits"))
    fresh = measure_reach(variant, 256, num_classes=10, seeds=2)
    assert (len(reach.fresh), len(reach.trained)) == (2, 2)
    assert reach.fresh == fresh.fresh
    assert reach.share == fresh.share
    assert reach.trained != reach.fresh


def test_the_same_seeds_give_the_same_numbers() -> None:
    first, again = (measure_reach(Registry().find("swin-n"), 128, seeds=2) for _ in range(2))
    assert first.to_record() == again.to_record()
    assert all(half < most for half, most in first.fresh)


def test_every_token_of_every_family_lies_in_the_middle_of_its_influence() -> None:
    """Else tokens are in another order than that of the image, and every radius is wrong."""
    for name in (found.card.nano for found in Registry().cards):
        assert name is not None
        variant = Registry().find(name)
        if variant.family == "xcit":
            continue  # its attention is between channels, and its fresh influence the same everywhere
        reach = measure_reach(variant, _size(variant), num_classes=10, seeds=1)
        assert _offset(reach) < 0.17, name


def _size(variant: Variant) -> int:
    """The first size that the model takes and that gives a few tokens per side."""
    for size in (192, 224, 256, 320, 384):
        try:
            variant.plan(size)
        except IllegalSize:
            continue
        return size
    raise AssertionError(variant.name)


def _offset(reach: Reach) -> float:
    """Mean distance from a token's centre to that of the brightest block, as a share of the side."""
    maps = reach.influence.maps
    side = maps.shape[-1]
    pixels = max(max(centre) for centre in reach.influence.centres) * 1.2
    brightest = [np.unravel_index(int(each.argmax()), each.shape) for each in maps]
    distances = [
        np.hypot((row + 0.5) / side - y / pixels, (column + 0.5) / side - x / pixels)
        for (row, column), (y, x) in zip(brightest, reach.influence.centres, strict=True)
    ]
    return float(np.mean(distances))


def test_spans() -> None:
    assert [whole((5, 6), 4, 16), whole((5, 6), 4, 16, shift=2), back((1, 2), 3, 2, 1, 8)] == [
        (4, 7),
        (2, 9),
        (1, 5),
    ]
    assert all(a[1] < b[0] for a, b in pairwise(thirds(6)))
