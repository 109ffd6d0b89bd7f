"""`pairs`: whether two small digits, far apart on a large canvas, are the same digit.

Two of the real handwritten digits of `digits` are drawn 28-40 px tall at random positions on an R x R canvas,
on a faint texture and with one glyph that is not a digit. The label is 1 if both are the same digit (in
different drawings), else 0; each label has half of the images. The glyphs keep their size in pixels at every
R, and their positions scale with R: the task needs both fine detail and long-range dependencies, and both
become harder from 512 px to 2048 px.

A rectangle takes the same scenes: each coordinate scales with its side.
An image is a function of seed, split, index and R alone.  The scene (digits, positions, distractors) does not
depend on R.  The distance between the two digits, as a share of the side, is uniform over `DISTANCE`;
`distances` returns it, so that accuracy can be plotted against it.

Split: training scenes use the training digits of `digits`, held-out scenes its held-out digits, by other
writers.  README.md beside this file describes the shortcuts that were tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, hypot, pi, sin
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvis_bench.data.protocol import Split
from longvis_bench.data.without_files import Drawn
from longvis_bench.errors import IllegalSize
from longvis_bench.resolution import Resolution, resolution_of, sides

if TYPE_CHECKING:
    from torch import Tensor

TRAIN_IMAGES, VAL_IMAGES = 1600, 1000
SEED = 2026
KINDS = (0, 1)
"""The digits used.  None of the small models that were tried learnt all ten (README.md, Difficulty)."""
DISTRACTOR_COUNT = 1
"""Glyphs per image besides the two digits."""
SMALLEST, LARGEST = 256, 4096
"""Pixels per side; in smaller images glyphs would touch."""
GLYPH = (28, 40)
"""Pixels per side of a glyph, lowest and highest."""
FAVOURED = 0.9
"""Share of the training scenes with equal digits that show a digit of the first half of the kinds.

With all digits equally often in equal pairs, a single digit would be independent of the label, and no small
model that was trained from random weights got below the loss of guessing.  In training a single digit
therefore correlates weakly with the label, enough to learn to read digits; held-out scenes are balanced."""
MARGIN = 24
"""Least number of pixels between a glyph's centre and the border."""
DISTANCE = (0.2, 1.0)
"""Between the centres of the two digits, as a share of the canvas inside the margins."""
APART = 0.2
"""Least distance between a distractor and any other glyph, as the same share."""
BLOB = 32
"""Pixels from one node of the texture's smooth part to the next."""
BACKGROUND, BLOBS, GRAIN = 0.25, 0.08, 0.05
"""Brightness of the canvas in 0-1, and amplitudes of its smooth and its grainy part."""
MEAN, DEVIATION = 0.25, 0.15
"""Normalisation of the images: the brightness of the canvas, and a fifth of the contrast of a glyph."""
DISTRACTORS = (
    "........ ...##... ...##... .######. .######. ...##... ...##... ........",
    "........ .##..##. .######. ..####.. ..####.. .######. .##..##. ........",
    "........ .######. .######. ........ ........ .######. .######. ........",
    "........ ...##... ..####.. .##..##. .#....#. ........ ........ ........",
    "........ .##..##. .##..##. ........ ........ .##..##. .##..##. ........",
)
"""8 x 8 drawings that are not digits: plus, cross, two bars, roof, four dots."""


CHANCE = 0.5


def local_limit(classes: int) -> float:
    """Highest accuracy of a model that adds local scores, with perfect detectors and no mixing, 0-1.

    Such a model answers "same" if s(a) + s(b) exceeds a threshold.  If k of the K digits score more than half
    the threshold, it is right for equal pairs of these, and for different pairs unless both are among the k:
    (k/K + 1 - k (k-1) / K (K-1)) / 2.

    Arguments:
        classes: number of digits used, K.
    """
    shares = (k / classes - k * (k - 1) / (classes * (classes - 1)) for k in range(classes + 1))
    return (1 + max(shares)) / 2


@dataclass(frozen=True)
class Glyph:
    """A digit or distractor drawn on the canvas."""

    drawing: int
    """Index among the split's digits; for a distractor, its index in `DISTRACTORS`."""
    x: float
    """Centre, as a share of the canvas inside the margins; likewise `y`."""
    y: float
    pixels: int
    """Per side."""
    brightness: float


@dataclass(frozen=True)
class Scene:
    """The content of an image, the same at every resolution."""

    same: bool
    digits: tuple[Glyph, Glyph]
    distractors: tuple[Glyph, ...]

    @property
    def distance(self) -> float:
        """Between the centres of the two digits, as a share of the canvas inside the margins."""
        first, second = self.digits
        return hypot(first.x - second.x, first.y - second.y)


class Pairs(Drawn):
    """Same or different digits; see the module's docstring.

    Arguments:
        train_images: number of training scenes.
        val_images: number of held-out scenes; a scene does not depend on it.
        seed: of all scenes; the difficulty was set on a different seed than the reported one.
        classes: the digits used, at least two.
        distractors: glyphs per image besides the two digits.
        favoured: share of the training scenes with equal digits that show one of the first half of `classes`.
    """

    num_classes = 2
    classes = ("different", "same")
    mean_and_deviation = (MEAN, DEVIATION)

    def __init__(
        self,
        train_images: int = TRAIN_IMAGES,
        val_images: int = VAL_IMAGES,
        *,
        seed: int = SEED,
        classes: Sequence[int] = KINDS,
        distractors: int = DISTRACTOR_COUNT,
        favoured: float = FAVOURED,
    ) -> None:
        self._sizes = {"train": train_images, "val": val_images}
        self._seed, self._classes, self._distractors = seed, tuple(classes), distractors
        self._favoured = favoured

    @property
    def name(self) -> str:
        """`pairs`, with a hash of the arguments that differ from the defaults."""
        usual = Pairs()
        changed = {key: value for key, value in vars(self).items() if value != vars(usual)[key]}
        if not changed:
            return "pairs"
        from longvis_bench.hashing import digest

        return f"pairs-{digest(changed)[:8]}"

    def size(self, split: Split) -> int:
        """Number of scenes in a split."""
        return self._sizes[split]

    def scene(self, split: Split, index: int) -> Scene:
        """The scene of an image.

        Raises:
            IndexError: the split has fewer images.
        """
        positions = self._positions(split, index)
        random = self._random(split, index)
        same = self._same(split, index)
        kinds = self._kinds(split, same, random)
        chosen = [self._drawing(split, kinds[0], random)]
        while len(chosen) < 2:
            drawing = self._drawing(split, kinds[1], random)
            chosen += [drawing] if drawing not in chosen else []
        drawn = random.integers(len(DISTRACTORS), size=self._distractors).tolist()
        glyphs = [
            Glyph(
                drawing,
                *position,
                int(random.integers(GLYPH[0], GLYPH[1] + 1)),
                float(random.uniform(0.8, 1)),
            )
            for drawing, position in zip([*chosen, *drawn], positions, strict=True)
        ]
        return Scene(same, (glyphs[0], glyphs[1]), tuple(glyphs[2:]))

    def distances(self, split: Split, indices: Sequence[int], resolution: Resolution) -> list[float]:
        """Pixels between the centres of the two digits, per image; no image is drawn.

        Raises:
            IndexError: the split has fewer images.
        """
        height, width = (side - 2 * MARGIN for side in sides(resolution))
        scenes = (self._positions(split, index) for index in indices)
        return [hypot((x - u) * width, (y - v) * height) for (x, y), (u, v), *_ in scenes]

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        """One image (1, height, width), uint8, and its label; see `LoadableData.load`.

        Raises:
            IllegalSize: the canvas is too small for the glyphs, or above 4096 px.
        """
        import torch

        within = [min(max(side, SMALLEST), LARGEST) for side in sides(resolution)]
        if within != list(sides(resolution)):
            near = [resolution_of(within)]
            raise IllegalSize(resolution, f"pairs is drawn at {SMALLEST} to {LARGEST} px per side", near)
        scene = self.scene(split, index)
        canvas = _texture(self._random(split, index, 1), resolution)
        for glyph in scene.digits:
            _draw(canvas, _digits(split)[0][glyph.drawing], glyph)
        for glyph in scene.distractors:
            _draw(canvas, _distractors()[glyph.drawing], glyph)
        pixels = canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        return pixels[None], int(scene.same)

    def _random(self, split: Split, index: int, part: int = 0) -> np.random.Generator:
        parts = (self._seed, ("train", "val").index(split), index, part)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(parts)))

    def _positions(self, split: Split, index: int) -> list[tuple[float, float]]:
        """Centres of the two digits, then of the distractors."""
        if not 0 <= index < self._sizes[split]:
            raise IndexError(f"{split} has {self._sizes[split]} images; there is no {index}.")
        return _positions(self._random(split, index, 3), self._distractors)

    def _same(self, split: Split, index: int) -> bool:
        """Whether the digits are equal: in a random one of images 2k and 2k + 1, for balanced labels."""
        first = bool(self._random(split, index // 2, 2).integers(2))
        return first == (index % 2 == 0)

    def _kinds(self, split: Split, same: bool, random: np.random.Generator) -> tuple[int, int]:
        """The two digits; in training some are equal more often than others (see `FAVOURED`)."""
        half = len(self._classes) // 2
        if not same:
            first, second = random.choice(self._classes, size=2, replace=False).tolist()
            return first, second
        among = self._classes
        if split == "train":
            among = among[:half] if random.random() < self._favoured else among[half:]
        kind = int(random.choice(among))
        return kind, kind

    def _drawing(self, split: Split, kind: int, random: np.random.Generator) -> int:
        """A random drawing of a digit, as its index in the split."""
        drawings = _digits(split)[1][kind]
        return int(drawings[random.integers(len(drawings))])


def _positions(random: np.random.Generator, distractors: int) -> list[tuple[float, float]]:
    """Centres in 0-1: the two digits at a uniform distance, then distractors at a distance from all."""
    distance = random.uniform(*DISTANCE)
    while True:
        (x, y), angle = random.random(2), random.uniform(0, 2 * pi)
        other = (x + distance * cos(angle), y + distance * sin(angle))
        if min(other) >= 0 and max(other) <= 1:
            break
    positions = [(float(x), float(y)), other]
    while len(positions) < 2 + distractors:
        x, y = random.random(2).tolist()
        if all(hypot(x - a, y - b) >= APART for a, b in positions):
            positions.append((x, y))
    return positions


def _texture(random: np.random.Generator, resolution: Resolution) -> Tensor:
    """A canvas (height, width), float32: smooth blobs and grain around `BACKGROUND`."""
    import torch
    from torch.nn import functional as F

    height, width = sides(resolution)
    rows, columns = height // BLOB + 2, width // BLOB + 2
    coarse = torch.from_numpy(random.random((1, 1, rows, columns), dtype=np.float32) * 2 - 1)
    size = (rows * BLOB, columns * BLOB)
    smooth = F.interpolate(coarse, size, mode="bilinear", align_corners=False)[0, 0]
    grain = torch.from_numpy(random.integers(0, 256, (height, width), dtype=np.uint8))
    canvas = grain.float().mul_(2 * GRAIN / 255).add_(BACKGROUND - GRAIN)
    return canvas.add_(smooth[:height, :width], alpha=BLOBS)


def _draw(canvas: Tensor, drawing: Tensor, glyph: Glyph) -> None:
    """Draw a glyph from a drawing (8, 8), 0-1, on the canvas."""
    from torch.nn import functional as F

    size = (glyph.pixels, glyph.pixels)
    ink = F.interpolate(drawing[None, None], size, mode="bicubic", align_corners=False)[0, 0].clamp_(0, 1)
    top, left = (
        round(MARGIN + centre * (side - 2 * MARGIN) - glyph.pixels / 2)
        for centre, side in zip((glyph.y, glyph.x), canvas.shape, strict=True)
    )
    part = canvas[top : top + glyph.pixels, left : left + glyph.pixels]
    part.lerp_(part.new_tensor(glyph.brightness), ink)


@cache
def _digits(split: Split) -> tuple[Tensor, tuple[NDArray[Any], ...]]:
    """The split's drawings (images, 8, 8), 0-1, and the indices of each digit's drawings."""
    from longvis_bench.data.digits import Digits

    digits = Digits()
    loaded = [digits.load(split, index, 8) for index in range(digits.size(split))]
    import torch

    labels = np.array([label for _, label in loaded])
    indices = tuple(np.flatnonzero(labels == kind) for kind in range(10))
    return torch.stack([image[0] for image, _ in loaded]), indices


@cache
def _distractors() -> Tensor:
    """All distractors (5, 8, 8), 0-1."""
    import torch

    return torch.tensor(
        [[[float(dot == "#") for dot in line] for line in each.split()] for each in DISTRACTORS]
    )
