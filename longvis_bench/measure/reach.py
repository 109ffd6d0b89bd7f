"""Reach: which pixels a token of the last map before pooling can see, and from how far it takes its evidence.

The pooling after the last map mixes all tokens in every model, so it says nothing about a backbone.  Before
it, for 3 x 3 tokens spread over the map, and for v random in each (one standard normal number per channel),

    s(q) = sum over the input's channels of (d <v, token> / d pixel q)^2

is taken by one backward pass each.  A random v, because the sum of the channels that leave a layer norm is
constant and has no gradient.

Share: the share of pixels with a gradient, in the union over several seeds of weights and images (a ReLU or a
maximum passes no gradient of one image where another passes), mean over the tokens.  It is a fact of the
architecture at that size.  "A gradient" is one of more than 1e-30 of the token's largest: implementations
mask attention by adding -100, which leaves e^-100 = 4e-44.  Gradients are scaled up, so that float32 holds
that range.  Tensors that an architecture initialises to zero to switch a branch off (the last norm of a
residual branch) are random for this number, else the branch would seem not to exist.

Radius: the smallest distance from the token's centre within which half, or 90 %, of the sum of s lies (the
effective receptive field, arXiv:1701.04128), mean over the tokens; one number per seed of fresh weights, and
one per held-out image for trained weights.

A model without such a map shows its logits alone.  A plain mean of tokens adds what its tokens say, so what
it contributes is the same whatever any other pixel shows, and vanishes from a mixed difference.  Instead of
a token there is a pixel p, which is changed by d, and

    s(q) = sum over channels of (d <v, logits(x + d)> / d pixel q - d <v, logits(x)> / d pixel q)^2

is not zero only where p and q enter one nonlinear function together.  So it is the reach of a pair of pixels,
about twice that of a token.  A nonlinear function after the mean couples all pixels, and counts.

Everything runs on the CPU in eval mode and float32 (float64 for differences), whatever the cell's device,
dtype and batch, because reach depends on none of them.  It needs the memory of a training step of one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longvis_bench import units
from longvis_bench.data.protocol import ImageData
from longvis_bench.errors import Unsupported
from longvis_bench.measure.last_map import TokenMap, find_map
from longvis_bench.ops.model_tensors import to_dtype
from longvis_bench.records import ReachRecord
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Rectangle, Resolution
from longvis_bench.weights.matching import load_weights

SEEDS = 3
"""Seeds of fresh weights, and images for trained ones."""
FAINTEST = 1e-30
"""Least gradient that counts as one, as a share of the token's largest."""
SHARES = (0.5, 0.9)
THUMBNAIL = 96
"""Most pixels per side of a map that is kept for a figure."""
_SCALE = 1e10
"""Factor of the gradients, so that FAINTEST of the largest is no denormal number of float32."""
_PER_SIDE = 3
_PIXEL_CHANGE = 1.0


@dataclass(frozen=True)
class Influence:
    """Which pixels influence each token: for a figure."""

    maps: NDArray[np.float64]
    """(tokens, rows, columns): share of s in each block of pixels, mean over seeds."""
    seen: NDArray[np.bool_]
    """The same shape: whether any pixel of the block has a gradient."""
    centres: tuple[tuple[float, float], ...]
    """Row and column of each token's centre, in pixels."""


@dataclass(frozen=True)
class Reach:
    """The reach of a model at one size."""

    basis: Literal["map", "logits"]
    share: float
    """Mean share of the pixels that a token can see, 0-1."""
    tokens: int
    """Number of tokens, or of pixels, that were looked at."""
    fresh: tuple[tuple[float, float], ...]
    """Per seed the radii that hold 50 and 90 % with fresh weights, in pixels."""
    trained: tuple[tuple[float, float], ...]
    """Per image the same with trained weights; empty without."""
    influence: Influence
    """Of the trained weights where there are some, else of the fresh ones."""

    def to_record(self) -> ReachRecord:
        """The stored form."""
        return ReachRecord(
            basis=self.basis,
            share=self.share,
            tokens=self.tokens,
            radius_50_px=tuple(half for half, _ in self.fresh),
            radius_90_px=tuple(most for _, most in self.fresh),
            trained_radius_50_px=tuple(half for half, _ in self.trained),
            trained_radius_90_px=tuple(most for _, most in self.trained),
        )


def measure_reach(
    variant: Variant,
    resolution: Resolution,
    *,
    num_classes: int = 1000,
    seeds: int = SEEDS,
    first_seed: int = 0,
    weights: Path | None = None,
    data: ImageData | None = None,
    limit_s: float | None = None,
) -> Reach:
    """Measure how far a model sees at one size.

    Arguments:
        variant: the model.
        resolution: pixels per side of a square.
        num_classes: width of the logits; with weights, theirs.
        seeds: how many fresh models, and how many images with trained weights.
        first_seed: of the fresh models.
        weights: a weight file; None for fresh weights only.
        data: where the images for trained weights come from; fresh weights see standard normal noise.
        limit_s: longest time it may take, in seconds; it is foretold by the first token.

    Raises:
        Unsupported: the input is a rectangle, the model passes no gradients to its input, or it would take
            longer than `limit_s`.
        LongvisError: the model cannot be built, or the weights cannot be loaded.
    """
    if isinstance(resolution, Rectangle):
        raise Unsupported(f"reach is measured at squares only, not at {resolution} px.")
    budget = _Budget(limit_s, passes=seeds * _PER_SIDE**2 * (1 if weights is None else 2))
    passed = _Sight(resolution)
    for seed in range(first_seed, first_seed + seeds):
        model = _build(variant, resolution, num_classes, seed)
        passed.look(model, _noise(resolution, seed), seed, budget)
    found, share = passed, passed.share
    if share < 1 and _has_switched_off(model):
        awake = _Sight(resolution)
        for seed in range(first_seed, first_seed + seeds):
            model = _switch_on(_build(variant, resolution, num_classes, seed))
            awake.look(model, _noise(resolution, seed), seed, budget)
        share = max(share, awake.share)
    if weights is not None and data is not None:
        model = _build(variant, resolution, num_classes, first_seed)
        load_weights(model, weights, strict=False)
        found = _Sight(resolution)
        for number, image in enumerate(_images(data, resolution, seeds)):
            found.look(model, image, number, budget)
    return Reach(
        basis=passed.basis,
        share=share,
        tokens=len(passed.centres),
        fresh=tuple(passed.radii),
        trained=() if found is passed else tuple(found.radii),
        influence=found.influence(),
    )


class _Budget:
    """Stops a measurement that would take too long, once the first pass is timed."""

    def __init__(self, limit_s: float | None, passes: int) -> None:
        self.limit_s, self.passes, self.started, self.checked = limit_s, passes, monotonic(), False

    def look(self) -> None:
        """Called after each pass.

        Raises:
            Unsupported: after the first, where all would take longer than the limit.
        """
        if self.checked or self.limit_s is None:
            return
        self.checked = True
        foretold = (monotonic() - self.started) * self.passes
        if foretold > self.limit_s:
            raise Unsupported(
                f"not measured: it would take up to {units.seconds(foretold)}; raise --timeout to more than "
                f"twice that."
            )


class _Sight:
    """What the tokens of one model see, over seeds or images."""

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self.basis: Literal["map", "logits"] = "map"
        self.centres: list[tuple[float, float]] = []
        self.radii: list[tuple[float, float]] = []
        self._seen: list[Tensor] = []
        self._shares: list[Tensor] = []

    def look(self, model: nn.Module, image: Tensor, seed: int, budget: _Budget) -> None:
        """Add one model or image."""
        generator = torch.Generator().manual_seed(seed)
        tokens = _backward(model, image, generator, self.resolution)
        radii = []
        for at, (basis, centre, gradient) in enumerate(tokens):
            self.basis = basis
            squares, seen = _squares(gradient)
            self._add(at, centre, squares, seen)
            radii.append(_radii(squares, centre))
            budget.look()
        half, most = (sum(each) / len(radii) for each in zip(*radii, strict=True))
        self.radii.append((half, most))

    def _add(self, at: int, centre: tuple[float, float], squares: Tensor, seen: Tensor) -> None:
        total = squares.sum()
        share = _blocks(squares / total if total > 0 else squares)
        if at == len(self.centres):
            self.centres.append(centre)
            self._seen.append(seen)
            self._shares.append(share)
        else:
            self._seen[at] |= seen
            self._shares[at] += share

    @property
    def share(self) -> float:
        """Mean over the tokens of the share of pixels with a gradient."""
        return float(np.mean([seen.double().mean().item() for seen in self._seen]))

    def influence(self) -> Influence:
        """Maps of the tokens, of at most THUMBNAIL pixels per side."""
        shares = torch.stack(self._shares) / len(self.radii)
        seen = torch.stack([_blocks(seen.double()) > 0 for seen in self._seen])
        return Influence(shares.numpy(), seen.numpy(), tuple(self.centres))


def _build(variant: Variant, resolution: int, num_classes: int, seed: int) -> nn.Module:
    """A model with the seed's weights, on the CPU, in eval mode, with gradients to its input alone."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        model = variant.build(resolution=resolution, num_classes=num_classes)
    return to_dtype(model, torch.float32).eval().requires_grad_(False)


def _has_switched_off(model: nn.Module) -> bool:
    return any(True for _ in _switched_off(model))


def _switched_off(model: nn.Module) -> Iterator[Tensor]:
    """Parameters of zeros that may multiply; biases add."""
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and not parameter.count_nonzero():
            yield parameter


def _switch_on(model: nn.Module) -> nn.Module:
    for parameter in _switched_off(model):
        parameter.data.normal_(std=0.02)
    return model


def _noise(resolution: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, resolution, resolution, generator=generator)


def _images(data: ImageData, resolution: int, count: int) -> Iterator[Tensor]:
    """Held-out images, evenly spaced; broken files are left out."""
    size = data.size("val")
    for number in range(min(count, size)):
        images, _ = data.batch("val", [number * size // min(count, size)], resolution)
        if len(images):
            yield images.float()


def _backward(
    model: nn.Module, image: Tensor, generator: torch.Generator, resolution: int
) -> Iterator[tuple[Literal["map", "logits"], tuple[float, float], Tensor]]:
    """Each token's centre in pixels, and the gradient (channels, height, width) of its random product.

    Raises:
        Unsupported: no gradient arrives at the image.
    """
    image = image.requires_grad_()
    found = find_map(model, image)
    if found is None:
        for centre, gradient in _differences(model, image.detach(), generator, resolution):
            yield "logits", centre, gradient
        return
    pixels = resolution / found.side
    for row, column in _spread(found.side):
        centre = ((row + 0.5) * pixels, (column + 0.5) * pixels)
        yield "map", centre, _gradient(found, row, column, image, generator)


def _spread(side: int) -> list[tuple[int, int]]:
    """Rows and columns in the middle of each third; fewer on a map of less than three tokens per side."""
    thirds = sorted({(2 * third + 1) * side // (2 * _PER_SIDE) for third in range(_PER_SIDE)})
    return list(product(thirds, thirds))


def _gradient(found: TokenMap, row: int, column: int, image: Tensor, generator: torch.Generator) -> Tensor:
    index = found.token(row, column)
    direction = torch.zeros_like(found.values)
    shape = direction[index].shape
    direction[index] = _SCALE * torch.randn(shape, generator=generator).to(direction.dtype)
    return _pull(found.values, image, direction)


def _pull(values: Tensor, image: Tensor, direction: Tensor) -> Tensor:
    """The gradient of <values, direction> with respect to the image: (channels, height, width)."""
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values, image, direction, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise Unsupported("the model passes no gradient to its input, so its reach cannot be measured.")
    if not gradient.isfinite().all():
        raise Unsupported("the gradient of the model's input is not finite, so its reach is not known.")
    return gradient[0]


def _differences(
    model: nn.Module, image: Tensor, generator: torch.Generator, resolution: int
) -> Iterator[tuple[tuple[float, float], Tensor]]:
    """For each changed pixel, by how much it changes the gradient of the logits."""
    to_dtype(model, torch.float64)
    image = image.double()

    def gradient(image: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        image = image.clone().requires_grad_()
        logits = model(image)
        if direction is None:
            direction = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
        return _pull(logits, image, direction), direction

    before, direction = gradient(image, None)
    for row, column in _spread(resolution):
        changed = image.clone()
        changed[:, :, row, column] += _PIXEL_CHANGE * torch.randn(image.shape[1], generator=generator)
        yield (row + 0.5, column + 0.5), gradient(changed, direction)[0] - before


def _squares(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the channels of the squared gradient, and which pixels have one: (height, width) each."""
    largest = gradient.abs().amax()
    if largest == 0:
        return gradient.double().square().sum(0), torch.zeros(gradient.shape[1:], dtype=torch.bool)
    scaled = gradient.double() / largest.double()
    return scaled.square().sum(0), scaled.abs().amax(0) > FAINTEST


def _radii(squares: Tensor, centre: tuple[float, float]) -> tuple[float, float]:
    """Distances from the centre within which 50 and 90 % of the sum lie; 0 where there is nothing."""
    rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 for side in squares.shape)
    distance = torch.hypot(rows[:, None] - centre[0], columns[None] - centre[1]).flatten()
    order = distance.argsort()
    held = squares.flatten()[order].cumsum(0)
    if held[-1] == 0:
        return 0.0, 0.0
    half, most = (int(torch.searchsorted(held, share * held[-1])) for share in SHARES)
    return float(distance[order[half]]), float(distance[order[most]])


def _blocks(values: Tensor) -> Tensor:
    """(height, width) -> the sums over at most THUMBNAIL blocks per side."""
    side = len(values)
    edges = torch.arange(side) * min(side, THUMBNAIL) // side
    count = int(edges[-1]) + 1
    rows = torch.zeros(count, side, dtype=values.dtype).index_add_(0, edges, values)
    return torch.zeros(count, count, dtype=values.dtype).index_add_(1, edges, rows)
