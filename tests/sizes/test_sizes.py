"""Which sizes are legal, what is near an illegal one, and that a planned size is a size that builds."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvis_bench.backbones import timm as timm_backbones
from longvis_bench.errors import IllegalSize
from longvis_bench.registry.registry import Registry
from longvis_bench.sizes import atlas, fastervit, longvit, mambavision
from longvis_bench.sizes import timm as sizes
from longvis_bench.sizes.fastervit import whole_windows
from longvis_bench.sizes.plan import SizePlan, near_multiples, require_multiple

REGISTRY = Registry()
LEGAL_ATLAS = [*range(16, 257, 16), 512, 768, 1024, 2048, 3072, 4096, 8192]


def is_legal(plan: Callable[[int], SizePlan], resolution: int) -> bool:
    try:
        plan(resolution)
    except IllegalSize:
        return False
    return True


def test_legal_sizes_of_atlas() -> None:
    asked = [*range(1, 34), *range(48, 8193, 16)]
    assert [size for size in asked if is_legal(atlas.plan, size)] == LEGAL_ATLAS


def test_the_atlas_card_names_them() -> None:
    note = REGISTRY.find("atlas-s").card.resolution.note  # type: ignore[union-attr]
    assert all(str(size) in note for size in LEGAL_ATLAS[LEGAL_ATLAS.index(256) :])


@pytest.mark.parametrize(("size", "scales"), [(256, 1), (512, 2), (1024, 2), (2048, 3), (4096, 3), (8192, 4)])
def test_scales_of_atlas(size: int, scales: int) -> None:
    assert len(atlas.atlas_scales(size // 16, size // 16)) == scales
    assert sum(atlas.atlas_depths(scales)) == 12
    assert f"{scales} scale" in atlas.plan(size).reach


@pytest.mark.parametrize(
    ("plan", "size", "legal"),
    [
        (atlas.plan, 1000, (768, 1024, 2048)),
        (atlas.plan, 5000, (3072, 4096, 8192)),
        (sizes.convnext, 1000, (992, 1024)),
        (sizes.convnext, 0, (32,)),
        (sizes.convnext, -64, (32,)),
        (sizes.vit, 1000, (992, 1008)),
        (sizes.swin, 1000, (992, 1024)),
        (fastervit.plan, 1000, (992, 1024)),
        (fastervit.plan, 32, (64,)),
        (longvit.plan, 1000, (992, 1024)),
        (mambavision.plan, 31, (32,)),
    ],
)
def test_an_illegal_size_names_legal_ones(
    plan: Callable[[int], SizePlan], size: int, legal: tuple[int, ...]
) -> None:
    with pytest.raises(IllegalSize, match=re.escape(f"{size} px is not a legal size")) as caught:
        plan(size)
    assert set(legal) <= set(caught.value.legal)
    assert all(is_legal(plan, near) for near in caught.value.legal)


def test_multiples() -> None:
    assert near_multiples(1000, 32) == [992, 1024]
    assert near_multiples(10, 32) == [32]
    assert near_multiples(70, 32, 96) == [96]
    require_multiple(96, 32, "any", 96)
    with pytest.raises(IllegalSize, match="needs at least 96 px"):
        require_multiple(64, 32, "any", 90)


@pytest.mark.parametrize(
    ("size", "third", "fourth"), [(224, 7, 7), (256, 8, 8), (1024, 8, 8), (2048, 16, 8), (4096, 32, 16)]
)
def test_windows_of_fastervit(size: int, third: int, fourth: int) -> None:
    plan = fastervit.plan(size)
    assert plan.arguments["window_size"][2:] == [third, fourth]
    assert plan.padding_ratio is None
    note = " ".join(REGISTRY.find("fastervit-0").card.notes)  # type: ignore[union-attr]
    assert size == 256 or f"{third} and {fourth} at {size} px" in note


@given(st.integers(1, 512))
def test_whole_windows_divide_and_stay_few(grid: int) -> None:
    window = whole_windows(grid)
    assert grid % window == 0
    assert grid // window <= 8
    assert window >= min(7, grid)


def test_padding_of_fastervit_with_the_published_window() -> None:
    plan = fastervit.plan(1024, window_size=[7, 7, 7, 7])
    assert plan.padding_ratio == pytest.approx(35**2 / 32**2 - 1)


@pytest.mark.parametrize(
    ("size", "window", "padding"),
    [
        (224, 7, None),
        (384, 12, None),
        (1024, 8, None),
        (4096, 8, None),
        (64, 8, None),
        (320, 7, 14**2 / 10**2 - 1),
    ],
)
def test_windows_of_swin(size: int, window: int, padding: float | None) -> None:
    plan = sizes.swin(size)
    assert plan.arguments == {"window_size": window}
    assert plan.padding_ratio == (None if padding is None else pytest.approx(padding))


@pytest.mark.parametrize("size", [64, 96, 160, 224, 256, 320])
def test_swins_padding_is_what_timm_pads(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch the padding of the model itself."""
    ratios = [0.0]
    pad = torch.nn.functional.pad

    def watch(x: torch.Tensor, by: tuple[int, ...]) -> torch.Tensor:
        padded = pad(x, by)
        ratios.append(padded.shape[1] * padded.shape[2] / (x.shape[1] * x.shape[2]) - 1)
        return padded

    with torch.device("meta"):
        model = timm_backbones.swin(
            resolution=size,
            num_classes=2,
            dim=12,
            depths=[2, 2, 2, 2],
            num_heads=[1, 1, 2, 4],
            **sizes.swin(size).arguments,
        )
    monkeypatch.setattr(torch.nn.functional, "pad", watch)
    model(torch.empty(1, 3, size, size, device="meta"))
    assert max(ratios) == pytest.approx(sizes.swin(size).padding_ratio or 0)


@pytest.mark.parametrize(
    ("size", "padding"), [(224, None), (512, 42**2 / 32**2 - 1), (1024, 70**2 / 64**2 - 1)]
)
def test_padding_of_mambavision(size: int, padding: float | None) -> None:
    assert mambavision.plan(size).padding_ratio == (None if padding is None else pytest.approx(padding))


@given(st.integers(32, 4096))
def test_mambavisions_padding_is_that_of_its_strides(size: int) -> None:
    grid = ceil(ceil(size / 4) / 4)
    padded = ceil(grid / 14) * 14
    assert (mambavision.plan(size).padding_ratio or 0) >= (padded / grid) ** 2 - 1 - 1e-9


@pytest.mark.parametrize(
    ("size", "patch", "longest", "spans"),
    [(1024, 32, 1024, True), (2048, 32, 1024, False), (4096, 32, 16384, True), (4096, 16, 16384, False)],
)
def test_segments_of_longvit(size: int, patch: int, longest: int, spans: bool) -> None:
    plan = longvit.plan(size, patch_size=patch)
    assert plan.arguments["segment_length"][-1] == longest
    assert ("does not span" in plan.reach) is not spans


def test_segments_of_longvit_as_asked() -> None:
    plan = longvit.plan(2048, segment_length=[1000, 4096], dilated_ratio=[1, 2])
    assert plan.arguments == {"segment_length": [1000, 4096]}
    assert plan.padding_ratio == pytest.approx(5000 / 4096 - 1)


@pytest.mark.parametrize(("segments", "ratios", "padded"), [([49], [16], 64), ([7, 49], [4, 1], 56)])
def test_longvit_counts_padding_to_the_ratio(segments: list[int], ratios: list[int], padded: int) -> None:
    plan = longvit.plan(224, segment_length=segments, dilated_ratio=ratios)
    assert plan.padding_ratio == pytest.approx(padded / 49 - 1)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_planned_size_builds(data: st.DataObject) -> None:
    """Atlas over windows and strides too: whatever the plan calls legal, the model takes."""
    window = data.draw(st.sampled_from([4, 8, 16]))
    stride = data.draw(st.sampled_from([2, 4]))
    size = 16 * data.draw(st.integers(1, 128))
    if not is_legal(lambda r: atlas.plan(r, window=window, stride=stride), size):
        return
    scales = atlas.atlas_scales(size // 16, size // 16, window=window, stride=stride)
    if len(scales) > 6:  # the paper's 12 blocks do not go further
        return
    variant = REGISTRY.find(f"atlas-n[window={window},stride={stride}]")
    with torch.device("meta"), torch.no_grad():
        model = variant.build(resolution=size, num_classes=3)
        assert model(torch.empty(1, 3, size, size)).shape == (1, 3)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["convnext-n", "fastervit-n", "longvit-n", "mambavision-n", "swin-n", "vit-n"]), st.data()
)
def test_planned_sizes_of_the_others_build(name: str, data: st.DataObject) -> None:
    variant = REGISTRY.find(name)
    multiple = {"vit": 16, "mambavision": 1}.get(variant.family, 32)
    size = multiple * data.draw(st.integers(ceil(64 / multiple), 1024 // multiple))
    variant.plan(size)
    with torch.device("meta"), torch.no_grad():
        model = variant.build(resolution=size, num_classes=3).eval()
        assert model(torch.empty(1, 3, size, size)).shape == (1, 3)
