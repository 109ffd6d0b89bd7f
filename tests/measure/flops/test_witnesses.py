"""MACs of every family from its paper's arithmetic, layer by layer, against the count.

Nothing here asks the models or the planner for anything: widths, depths and rules are written down again.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import pytest

from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.registry.registry import Registry

CLASSES = 1000
SIZES = (224, 1024, 2048, 4096)


def conv(side: int, into: int, out: int, kernel: int = 3) -> int:
    """A square convolution by its output's side."""
    return side * side * into * out * kernel * kernel


def transformer(tokens: int, width: int, seen: int) -> int:
    """One block: query, key, value and output, an MLP of ratio 4, attention to `seen` tokens each."""
    return tokens * (4 * width**2 + 8 * width**2 + 2 * seen * width)


def vit(resolution: int, width: int, depth: int = 12) -> int:
    patches = (resolution // 16) ** 2
    tokens = patches + 1
    embed = patches * 3 * 16 * 16 * width
    return embed + depth * transformer(tokens, width, tokens) + width * CLASSES


def swin(resolution: int, width: int) -> int:
    window = {224: 7}.get(resolution, 8)
    total = conv(resolution // 4, 3, width, 4)
    for stage, depth in enumerate((2, 2, 18, 2)):
        side, channels = resolution // 2 ** (2 + stage), width * 2**stage
        if stage:
            total += side**2 * (2 * channels) * channels  # four neighbours of half the width, merged
        total += depth * transformer(side**2, channels, window**2)
    return total + 8 * width * CLASSES


def convnext(resolution: int, width: int) -> int:
    total, into = 0, 3
    for stage, depth in enumerate((3, 3, 27, 3)):
        side, channels = resolution // 2 ** (2 + stage), width * 2**stage
        total += conv(side, into, channels, 2 if stage else 4)
        total += depth * (conv(side, 1, channels, 7) + 8 * side**2 * channels**2)
        into = channels
    return total + 8 * width * CLASSES


def longvit(resolution: int, width: int, heads: int, patch: int) -> int:
    tokens = (resolution // patch) ** 2
    lengths = (1024, 2048, 4096, 8192, 16384) if resolution == 4096 else (64, 128, 256, 512, 1024)
    attention = 0
    for length, ratio in zip(lengths, (1, 2, 4, 8, 16), strict=True):
        segment = min(length, tokens)
        seen = ceil(segment / ratio)
        attention += ceil(tokens / segment) * heads * seen**2 * 2 * (width // heads)
    block = 12 * tokens * width**2 + attention
    return tokens * 3 * patch**2 * width + 12 * block + width * CLASSES


def atlas(resolution: int, width: int) -> int:
    quarter = width // 4
    total = conv(resolution // 2, 3, 64) + conv(resolution // 4, 64, quarter)
    total += 6 * conv(resolution // 4, quarter, quarter) + conv(resolution // 8, quarter, 2 * quarter)
    total += 6 * conv(resolution // 8, 2 * quarter, 2 * quarter)
    total += conv(resolution // 16, 2 * quarter, width)
    sides = [resolution // 16]
    while sides[-1] > 16:
        sides.append(sides[-1] // 4)
    scales = len(sides)
    for stage in range(scales):
        blocks = 2 if stage < scales - 1 else 12 - 2 * (scales - 1)
        total += blocks * atlas_block(sides[stage:], width)
    return total + width * CLASSES


def atlas_block(sides: list[int], width: int) -> int:
    """Multi-scale attention on the scales that are left, finest first (equations 1-4 of the paper)."""
    tokens = [side**2 for side in sides]
    window = [min(side, 16) ** 2 for side in sides]
    square = width**2
    total = sum(w * (2 * 512 + 512 * width) for w in window)  # position embeddings
    last = len(sides) - 1
    for s, n in enumerate(tokens):
        # to itself and all coarser: own keys and values, query, output, MLP
        total += n * (2 * square + 2 * square + 8 * square + 2 * width * sum(window[s:]))
        if last:
            total += n * 2 * square  # keys and values again, after the update
        if s > 0:  # from the finer scale below
            total += n * (2 * square + 8 * square + 2 * width * window[s - 1])
            if s < last:
                total += n * 2 * square
    return total


def residual_stages(resolution: int, first: int, width: int, depths: tuple[int, ...]) -> int:
    """The convolutional half that MambaVision and FasterViT share: stem, two stages, three downsamplings."""
    total = conv(resolution // 2, 3, first) + conv(resolution // 4, first, width)
    for stage in range(2):
        side, channels = resolution // 2 ** (2 + stage), width * 2**stage
        total += depths[stage] * 2 * conv(side, channels, channels)
    for stage in range(3):
        total += conv(resolution // 2 ** (3 + stage), width * 2**stage, width * 2 ** (stage + 1))
    return total


def mambavision(resolution: int, first: int, width: int, depths: tuple[int, ...]) -> int:
    total = residual_stages(resolution, first, width, depths)
    for stage, window in ((2, 14), (3, 7)):
        channels, depth = width * 2**stage, depths[stage]
        side = ceil(resolution / 2 ** (2 + stage) / window) * window  # padded to whole windows
        scans = ceil(depth / 2)
        half, rank = channels // 2, ceil(channels / 16)
        mixer = 2 * channels**2 + 3 * channels + half * (rank + 16) + rank * half
        total += scans * side**2 * (mixer + 8 * channels**2)
        total += (depth - scans) * transformer(side**2, channels, window**2)
    return total + 8 * width * CLASSES


def fastervit(resolution: int, first: int, width: int, depths: tuple[int, ...]) -> int:
    total = residual_stages(resolution, first, width, depths)
    for stage, heads in ((2, 8), (3, 16)):
        channels, side = width * 2**stage, resolution // 2 ** (2 + stage)
        window = {224: 7}.get(resolution, max(8, side // 8))
        windows = (side // window) ** 2
        carriers = 4 * windows if stage == 2 else 0
        seen = window**2 + carriers // windows
        block = transformer(windows * seen, channels, seen) + positions(window, channels, heads)
        if carriers:
            block += transformer(carriers, channels, carriers) + positions(
                2 * side // window, channels, heads
            )
            total += conv(side, 1, channels)  # what makes the carrier tokens
        total += depths[stage] * block
    return total + 8 * width * CLASSES


def positions(side: int, channels: int, heads: int) -> int:
    """MLPs of width 512: of each token's place, and of each relative place for each head."""
    return side**2 * 512 * (2 + channels) + (2 * side - 1) ** 2 * 512 * (2 + heads)


WITNESSES: dict[str, Callable[[int], int]] = {
    "vit-s": lambda r: vit(r, 384),
    "vit-b": lambda r: vit(r, 768),
    "vit-l": lambda r: vit(r, 1024, 24),
    "swin-s": lambda r: swin(r, 96),
    "swin-b": lambda r: swin(r, 128),
    "convnext-s": lambda r: convnext(r, 96),
    "convnext-b": lambda r: convnext(r, 128),
    "longvit-s": lambda r: longvit(r, 384, 16, 32),
    "longvit-b": lambda r: longvit(r, 768, 12, 16),
    "atlas-s": lambda r: atlas(r, 384),
    "atlas-b": lambda r: atlas(r, 768),
    "mambavision-s": lambda r: mambavision(r, 64, 96, (3, 3, 7, 5)),
    "mambavision-b": lambda r: mambavision(r, 64, 128, (3, 3, 10, 5)),
    "fastervit-0": lambda r: fastervit(r, 64, 64, (2, 3, 6, 5)),
    "fastervit-2": lambda r: fastervit(r, 64, 96, (3, 3, 8, 5)),
}


@pytest.mark.parametrize(
    "resolution", [size if size == 1024 else pytest.param(size, marks=pytest.mark.slow) for size in SIZES]
)
@pytest.mark.parametrize("name", WITNESSES)
def test_count_equals_the_paper_s_arithmetic(name: str, resolution: int) -> None:
    counted = count_variant(Registry().find(name), resolution, CLASSES).macs
    assert counted == WITNESSES[name](resolution)
