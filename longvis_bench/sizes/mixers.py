"""Token mixers: the grids that each can take, and what of it follows from the grid.

A mixer is measured in a network of blocks over the patches of a square image, so that a grid of n x n tokens
is an image of `patch` n pixels per side.  Plan functions have the signature that `plan.py` describes.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from longvis_bench.errors import IllegalArgument, IllegalSize, Unsupported
from longvis_bench.sizes.atlas import atlas_scales
from longvis_bench.sizes.longvit import LONGVIT_RATIOS, longvit_segments
from longvis_bench.sizes.plan import (
    SizePlan,
    is_number,
    require_divisor,
    require_multiple,
    require_whole,
)

NETWORK: dict[str, Any] = {"dim": 768, "heads": 12, "blocks": 4, "mlp_ratio": 4.0, "patch": 4}
"""Arguments of the network around a mixer, and their default: those of arXiv:2503.12355, Table 3."""
COLOURS = 3
STRIDES = (4, 8, 2)
"""Poolings that are tried for Atlas's scales, the published one first."""
LONGVIT_PATCH = 32
"""Pixels per token of the images that LongViT's segment lengths are published for."""
MOST_SIDES = 2048
"""Tokens per side up to which legal grids are looked for."""


def side_of(resolution: int, patch: int) -> int:
    """Tokens per side of the grid.

    Raises:
        IllegalSize: patches do not fill the image.
    """
    require_multiple(resolution, patch, f"a grid of patches of {patch} px")
    return resolution // patch


def frame_macs(
    resolution: int,
    classes: int,
    *,
    dim: int,
    blocks: int,
    mlp_ratio: float,
    patch: int,
    whole: bool = False,
    **_: Any,
) -> int:
    """MACs per image of the network without its mixers: patch embedding, MLPs and head.

    Arguments:
        resolution: pixels per side.
        classes: logits.
        dim: channels of a token.
        blocks: how many there are.
        mlp_ratio: hidden width of their MLPs over `dim`.
        patch: pixels per side of a token.
        whole: whether the mixers are whole blocks, so that there are no MLPs beside them.
    """
    tokens = (resolution // patch) ** 2
    mlps = 0 if whole else blocks * 2 * dim * int(dim * mlp_ratio)
    return tokens * (COLOURS * patch * patch * dim + mlps) + dim * classes


def any_grid(resolution: int, *, patch: int, **network: Any) -> SizePlan:
    """Mixers that take every grid."""
    check_network(patch=patch, **network)
    return SizePlan(reach=_tokens(side_of(resolution, patch)))


def windows(resolution: int, *, patch: int, window: int, **network: Any) -> SizePlan:
    """Mixers in windows, regions or groups of `window` tokens per side, which must fill the grid."""
    check_network(patch=patch, **network)
    require_whole(window=window)
    require_multiple(resolution, patch * window, f"a grid in windows of {window} tokens of {patch} px")
    return SizePlan(reach=f"{_tokens(resolution // patch)}; windows of {window} x {window}")


def regions(resolution: int, *, patch: int, regions: int, topk: int, **network: Any) -> SizePlan:
    """Bi-level routing: a fixed number of regions, which grow with the grid."""
    check_network(patch=patch, **network)
    require_whole(regions=regions, topk=topk)
    if topk > regions * regions:
        raise IllegalArgument(f"topk must be at most the number of regions, {regions**2}, not {topk}.")
    require_multiple(resolution, patch * regions, f"a grid in {regions} x {regions} regions")
    side = resolution // patch
    reach = f"{_tokens(side)}; each region of {side // regions} x {side // regions} reads {topk} regions"
    return SizePlan(reach=reach)


def neighbourhoods(
    resolution: int, *, patch: int, kernel: int, dilated: bool = False, **network: Any
) -> SizePlan:
    """Neighbourhoods of `kernel` tokens per side, dilated to span the grid if asked."""
    check_network(patch=patch, **network)
    require_whole(kernel=kernel)
    side = side_of(resolution, patch)
    if side < kernel:
        raise IllegalSize(resolution, f"neighbourhoods need {kernel} tokens per side", [kernel * patch])
    dilation = side // kernel if dilated else 1
    how = f", {dilation} tokens apart in every other block" if dilated else ""
    return SizePlan(
        reach=f"{_tokens(side)}; neighbourhoods of {kernel} x {kernel}{how}", arguments={"dilation": dilation}
    )


def distances(resolution: int, *, patch: int, group: int, **network: Any) -> SizePlan:
    """Short and long distance attention: groups of neighbours, and of tokens spread over the whole grid."""
    check_network(patch=patch, **network)
    require_whole(group=group)
    require_multiple(resolution, patch * group, f"a grid in groups of {group} tokens of {patch} px")
    side = resolution // patch
    reach = f"{_tokens(side)}; groups of {group} x {group}, {side // group} apart in every other block"
    return SizePlan(reach=reach, arguments={"interval": side // group})


def agents(resolution: int, *, patch: int, agents: int, **network: Any) -> SizePlan:
    """Agent attention over the whole grid; at most as many agents as tokens."""
    check_network(patch=patch, **network)
    require_whole(agents=agents)
    if isqrt(agents) ** 2 != agents:
        raise IllegalArgument(f"agents must be a square number, like 49, not {agents}.")
    side = side_of(resolution, patch)
    if side < isqrt(agents):
        raise IllegalSize(resolution, f"{agents} agents need as many tokens", [isqrt(agents) * patch])
    return SizePlan(reach=f"{_tokens(side)}; one window, {agents} agents")


def segments(resolution: int, *, patch: int, **network: Any) -> SizePlan:
    """Dilated attention: LongViT's segment lengths for an image of as many tokens of 32 px."""
    check_network(patch=patch, **network)
    side = side_of(resolution, patch)
    lengths = network.get("segments") or list(longvit_segments(LONGVIT_PATCH * side))
    ratios = network.get("ratios") or list(LONGVIT_RATIOS)
    if len(lengths) != len(ratios):
        raise IllegalArgument(
            f"segments and ratios must be as many, not {len(lengths)} and {len(ratios)}: one pair per branch."
        )
    span = "spans" if max(lengths) >= side * side else "does not span"
    reach = f"{_tokens(side)}; the longest segment of {max(lengths)} tokens {span} the grid"
    return SizePlan(reach=reach, arguments={"segments": lengths, "ratios": ratios})


def carriers(resolution: int, *, patch: int, window: int, mlp_ratio: float, **network: Any) -> SizePlan:
    """FasterViT's blocks: windows, and an MLP of their own."""
    _require_mlp(mlp_ratio)
    return windows(resolution, patch=patch, window=window, mlp_ratio=mlp_ratio, **network)


def scales(
    resolution: int,
    *,
    patch: int,
    window: int,
    stride: int | None = None,
    mlp_ratio: float,
    **network: Any,
) -> SizePlan:
    """Atlas's blocks: the first pooling of `STRIDES` whose scales divide into windows, or the given one."""
    _require_mlp(mlp_ratio)
    if mlp_ratio != 4:
        raise Unsupported(f"Atlas's blocks have an MLP of ratio 4, not {mlp_ratio:g}.")
    check_network(patch=patch, mlp_ratio=mlp_ratio, **network)
    require_whole(window=window)
    side = side_of(resolution, patch)
    tried = STRIDES if stride is None else (stride,)
    chosen = _stride(side, window, tried)
    if chosen is None:
        sides = sorted(range(1, min(2 * side + window, MOST_SIDES)), key=lambda n: abs(n - side))
        legal = [n * patch for n in sides if _stride(n, window, tried) is not None][:2]
        why = f"every scale must divide into windows of {window} tokens of {patch} px"
        raise IllegalSize(resolution, why, sorted(legal))
    grids = [scale.grid[0] for scale in atlas_scales(side, side, window=window, stride=chosen)]
    said = ", ".join(f"{grid} x {grid}" for grid in grids)
    pooled = "" if chosen == STRIDES[0] else f" (paper: {STRIDES[0]})"
    reach = f"scales of {said} tokens, pooled by {chosen}{pooled}; windows of {window} x {window}"
    return SizePlan(reach=reach, arguments={"stride": chosen})


def _stride(side: int, window: int, tried: tuple[int, ...]) -> int | None:
    """The first pooling that is legal."""
    for stride in tried:
        if stride < 2 or window % stride:
            continue
        try:
            atlas_scales(side, side, window=window, stride=stride)
        except ValueError:
            continue
        return stride
    return None


def check_network(*, dim: int, heads: int, blocks: int, mlp_ratio: float, patch: int, **_: object) -> None:
    """Raise IllegalArgument if the arguments of the network do not fit together."""
    require_whole(dim=dim, heads=heads, blocks=blocks, patch=patch)
    require_divisor("heads", heads, f"the width of {dim}", dim)
    if not is_number(mlp_ratio) or mlp_ratio < 0:
        raise IllegalArgument(f"mlp_ratio must be a number from 0 up, not {mlp_ratio!r}.")


def _require_mlp(mlp_ratio: float) -> None:
    """Raise Unsupported for a whole block that is to have no MLP."""
    if is_number(mlp_ratio) and not mlp_ratio:
        raise Unsupported("this mixer is a whole block with MLPs inside; it cannot be measured without them.")


def _tokens(side: int) -> str:
    return f"{side} x {side} tokens"
