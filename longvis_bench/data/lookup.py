"""`lookup`: a plain disc names one of two textured discs elsewhere on the canvas; name its texture.

On a grainy grey canvas of R x R pixels lie a plain disc, the key, in one of two colours, and two textured
discs, one of each colour, with different textures out of three: columns, rows and checks.  The label is the
texture of the disc that has the key's colour.  A texture alternates every `period` / 2 pixels, 1 by default,
so it must be read at the native resolution; the key's colour must be carried across the canvas.

Sizes and distances of discs are shares of the side, so a scene is the same at every R, but textures keep
their period in pixels.  Both textured discs lie at distances from the key that are drawn independently and by
one law, and a coin decides which of the two the key names: distance says nothing about the label.

An image is a function of seed, split, index and R alone.  Every epoch of a training has new scenes
(`LoadableData.fresh`); the held-out ones are fixed.  Of each block of twelve consecutive indices every
combination of key and two textures has one, so labels, keys and textures are balanced exactly.
docs/lookup.md describes chance, the limit of a sum of local scores, and the shortcuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import pi
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longvis_bench.data.protocol import Split
from longvis_bench.data.without_files import Drawn
from longvis_bench.errors import DataError, IllegalSize, UnknownName
from longvis_bench.resolution import Rectangle, Resolution

if TYPE_CHECKING:
    from torch import Tensor

NAME = "lookup"
TEXTURES = ("columns", "rows", "checks")
"""The classes, in the order of the labels."""
COMBINATIONS = [(pair, key) for pair in permutations(range(len(TEXTURES)), 2) for key in range(2)]
"""Textures of the first and the second colour, and the key's colour: twelve, equally frequent."""
CHANCE = 1 / 3
READING = 1 / 2
"""Accuracy of a guess between the two textures that a scene shows."""
LOCAL_LIMIT = 3 / 4
"""Highest accuracy of a sum of local scores; docs/lookup.md has the proof."""
TRAIN_IMAGES, VAL_IMAGES = 1600, 1000
"""New scenes per epoch of a training, and held-out scenes."""
SMALLEST, LARGEST = 64, 4096
"""Pixels per side."""
SMALLEST_DISC = 16
"""Pixels across."""
GREY, GRAIN, CONTRAST = 128, 12, 40
"""Brightness of the canvas, largest deviation of its grain, and of a texture; of 255."""
COLOURS = np.array([[190, 80, 80], [80, 110, 190], [GREY] * 3])
"""The two colours and that of clutter, RGB.  With grain and contrast they stay within 28 and 242, so nothing
is clipped and a texture does not change a disc's mean."""
SPACING = 1.2
"""Least distance between the centres of two discs, in diameters."""
FARTHEST = 0.9
"""Largest `far`, as a share of the square in which centres lie; beyond, few scenes would be possible."""
FULLEST = 0.35
"""Largest share of that square that discs may cover, so that random positions are found quickly."""
CANDIDATES = 128
"""Positions that are drawn at once."""
Point = tuple[float, float]


class Dials(BaseModel):
    """What `lookup[...]` can set; the defaults are those of `lookup`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    disc: float = Field(0.25, ge=1 / 64, le=0.25)
    """Diameter of a disc, as a share of the side."""
    near: float = Field(0.3, gt=0, lt=1)
    """Least distance from the key's centre to that of a textured disc, as a share of the side."""
    far: float = Field(0.65, gt=0, lt=1)
    """Largest such distance; distances are uniform between the two."""
    period: int = Field(2, ge=2, le=64, multiple_of=2)
    """Period of the textures, in pixels."""
    clutter: int = Field(0, ge=0, le=64)
    """Further textured discs, which are grey."""
    phase: Literal["grid", "random"] = "grid"
    """Whether textures start at pixel 0 of the canvas, or anywhere.  With `grid`, a model that cuts the image
    into patches of a multiple of the period sees each texture in a single position."""
    seed: int = Field(2026, ge=0)
    """Of all scenes."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Dials:
        least, most = SPACING * self.disc, FARTHEST * (1 - self.disc)
        if self.near < least - 1e-9:
            raise ValueError(f"near must be {SPACING:g} x disc ({least:g}) or more, or discs would touch")
        if not self.near <= self.far <= most + 1e-9:
            raise ValueError(f"far must be from near ({self.near:g}) to {FARTHEST:g} x (1 - disc) ({most:g})")
        discs = int(FULLEST * (1 - self.disc + least) ** 2 / (pi / 4 * least**2))
        if 3 + self.clutter > discs:
            raise ValueError(f"clutter must be {max(0, discs - 3)} or less at disc={self.disc:g}")
        return self

    @property
    def name(self) -> str:
        """`lookup`, with the dials that differ from the defaults."""
        usual = Dials()
        changed = [
            f"{dial}={value:g}" if isinstance(value, float) else f"{dial}={value}"
            for dial, value in self
            if value != getattr(usual, dial)
        ]
        return f"{NAME}[{','.join(changed)}]" if changed else NAME


def read_dials(name: str) -> Dials:
    """The dials of a name such as `lookup[disc=0.125,clutter=2]`.

    Raises:
        UnknownName: there is no such dial.
        DataError: the form of the name or a value is wrong.
    """
    inside = name.removeprefix(NAME)
    if not inside:
        return Dials()
    parts = [part.strip().partition("=") for part in inside[1:-1].split(",")]
    if not inside.endswith("]") or not all(equals and value for _, equals, value in parts):
        raise DataError(f"cannot read {name}: write dials as in {NAME}[disc=0.125,clutter=2].")
    given = {dial.strip(): value.strip() for dial, _, value in parts}
    for dial in given:
        if dial not in Dials.model_fields:
            raise UnknownName(f"dial of {NAME}", dial, Dials.model_fields)
    if len(given) < len(parts):
        raise DataError(f"{name} sets a dial twice.")
    try:
        return Dials.model_validate(given)
    except ValidationError as error:
        raise DataError(f"cannot draw {name}: {_in_words(error)}.") from error


def _in_words(error: ValidationError) -> str:
    """The first fault, with the dial's name where it is about one."""
    fault = error.errors()[0]
    said = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return " ".join([*map(str, fault["loc"]), said])


@dataclass(frozen=True)
class Disc:
    """A disc on the canvas."""

    x: float
    """Centre, as a share of the side; likewise `y`."""
    y: float
    colour: int
    """Row of `COLOURS`."""
    texture: int | None = None
    """Index in `TEXTURES`; None for a plain disc."""
    phase: tuple[int, int] = (0, 0)
    """Pixels down and right by which the texture is shifted against the pixel grid."""


@dataclass(frozen=True)
class Scene:
    """The content of an image, the same at every resolution."""

    key: Disc
    discs: tuple[Disc, Disc]
    """The textured discs of the first and the second colour."""
    clutter: tuple[Disc, ...]

    @property
    def target(self) -> Disc:
        """The disc that has the key's colour."""
        return self.discs[self.key.colour]

    @property
    def label(self) -> int:
        """The target's texture."""
        assert self.target.texture is not None
        return self.target.texture

    @property
    def distance(self) -> float:
        """From the key's centre to the target's, as a share of the side."""
        return float(np.hypot(self.key.x - self.target.x, self.key.y - self.target.y))


class Lookup(Drawn):
    """Texture of the disc that has the key's colour; see the module's docstring.

    Arguments:
        dials: of the scenes.
        train_images: new scenes per epoch of a training.
        val_images: held-out scenes; a scene does not depend on their number.
    """

    num_classes = len(TEXTURES)
    classes = TEXTURES
    mean_and_deviation = (GREY / 255, CONTRAST / 255)
    """0 for the canvas, and 1 for a texture's contrast."""
    fresh = True

    def __init__(
        self, dials: Dials | None = None, train_images: int = TRAIN_IMAGES, val_images: int = VAL_IMAGES
    ) -> None:
        self._dials = dials or Dials()
        self._sizes = {"train": train_images, "val": val_images}

    @property
    def name(self) -> str:
        """`lookup`, with the dials that differ from the defaults."""
        return self._dials.name

    def size(self, split: Split) -> int:
        """Number of scenes in a split; of training ones, per epoch."""
        return self._sizes[split]

    def scene(self, split: Split, index: int) -> Scene:
        """The scene of an image.

        Raises:
            IndexError: the index is negative, or the held-out split has fewer images.
        """
        if index < 0 or (split == "val" and index >= self._sizes[split]):
            raise IndexError(f"{split} has {self._sizes[split]} images; there is no {index}.")
        dials, random = self._dials, self._random(split, index, 0)
        textures, key = self._combination(split, index)
        positions = _positions(dials, random)
        extra = random.integers(len(TEXTURES), size=dials.clutter).tolist()
        looks = [*enumerate(textures), *((2, texture) for texture in extra)]
        phases = random.integers(dials.period, size=(len(looks), 2)) * (dials.phase == "random")
        discs = [
            Disc(*position, colour, texture, (down, right))
            for position, (colour, texture), (down, right) in zip(
                positions[1:], looks, phases.tolist(), strict=True
            )
        ]
        return Scene(Disc(*positions[0], key), (discs[0], discs[1]), tuple(discs[2:]))

    def distances(self, split: Split, indices: Sequence[int], resolution: Resolution) -> list[float]:
        """Pixels between the centres of the key and of the disc that it names, per image; none is drawn.

        Raises:
            IndexError: the split has fewer images.
        """
        side = self._side(resolution)
        return [self.scene(split, index).distance * side for index in indices]

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        """One image (3, resolution, resolution), uint8, and its label; see `LoadableData.load`.

        Raises:
            IllegalSize: a disc would be too small for its texture, the canvas is above 4096 px, or no square.
        """
        import torch

        side = self._side(resolution)
        scene, dials = self.scene(split, index), self._dials
        canvas = _canvas(self._random(split, index, 1), side)
        for disc in (scene.key, *scene.discs, *scene.clutter):
            _draw(canvas, disc, round(dials.disc * side), dials.period)
        return torch.from_numpy(canvas), scene.label

    def _side(self, resolution: Resolution) -> int:
        """Pixels per side, if scenes can be drawn with them."""
        if isinstance(resolution, Rectangle):
            raise IllegalSize(resolution, f"{self.name} is drawn at squares only", [min(resolution)])
        dials = self._dials
        pixels = max(SMALLEST_DISC, 4 * dials.period)
        smallest = max(SMALLEST, int(np.ceil(pixels / dials.disc)))
        if not smallest <= resolution <= LARGEST:
            why = f"{self.name} is drawn at {smallest} to {LARGEST} px"
            raise IllegalSize(resolution, why, [min(max(resolution, smallest), LARGEST)])
        return resolution

    def _random(self, split: Split, index: int, part: int) -> np.random.Generator:
        parts = (self._dials.seed, ("train", "val").index(split), index, part)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(parts)))

    def _combination(self, split: Split, index: int) -> tuple[tuple[int, ...], int]:
        """Textures of the two colours and the key's colour: each combination once in twelve images."""
        block, position = divmod(index, len(COMBINATIONS))
        order = self._random(split, block, 2).permutation(len(COMBINATIONS))
        return COMBINATIONS[int(order[position])]


def _positions(dials: Dials, random: np.random.Generator) -> list[Point]:
    """Centres of the key, the two textured discs and the clutter, as shares of the side.

    The two distances are drawn first, independently; positions are then drawn until they suit them, so that
    neither the canvas nor the other disc changes the law of a distance.
    """
    distances = random.uniform(dials.near, dials.far, 2)
    low, high, apart = dials.disc / 2, 1 - dials.disc / 2, SPACING * dials.disc
    while True:
        keys = random.uniform(low, high, (CANDIDATES, 1, 2))
        angles = random.uniform(0, 2 * pi, (CANDIDATES, 2))
        steps = distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        others = keys + steps
        inside = ((others >= low) & (others <= high)).all((1, 2))
        separate = np.hypot(*(others[:, 0] - others[:, 1]).T) >= apart
        for found in np.flatnonzero(inside & separate)[:1]:
            centres = _with_clutter(dials, random, np.concatenate([keys[found], others[found]]))
            if len(centres) == 3 + dials.clutter:
                return [(float(x), float(y)) for x, y in centres]


def _with_clutter(
    dials: Dials, random: np.random.Generator, centres: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centres (discs, 2) and those of clutter, apart from all others; fewer where no candidate is free."""
    low, high = dials.disc / 2, 1 - dials.disc / 2
    for _ in range(dials.clutter):
        candidates = random.uniform(low, high, (CANDIDATES, 2))
        gaps = np.linalg.norm(candidates[:, None] - centres, axis=-1).min(1)
        free = np.flatnonzero(gaps >= SPACING * dials.disc)
        centres = np.concatenate([centres, candidates[free[:1]]])
    return centres


def _canvas(random: np.random.Generator, resolution: int) -> NDArray[np.uint8]:
    """Grey grain, (3, resolution, resolution); the grain stays visible on discs."""
    size = (resolution, resolution)
    grain = random.integers(GREY - GRAIN, GREY + GRAIN, size, dtype=np.uint8, endpoint=True)
    return np.broadcast_to(grain, (3, *size)).copy()


def _draw(canvas: NDArray[np.uint8], disc: Disc, pixels: int, period: int) -> None:
    """Add a disc of this many pixels to a canvas (3, side, side)."""
    side = canvas.shape[-1]
    top, left = (min(max(round(c * side - pixels / 2), 0), side - pixels) for c in (disc.y, disc.x))
    part = canvas[:, top : top + pixels, left : left + pixels]
    added = (COLOURS[disc.colour] - GREY).astype(np.int16)[:, None, None]
    if disc.texture is not None:
        down, right = disc.phase
        added = added + CONTRAST * _signs(disc.texture, pixels, period, top + down, left + right)
    np.copyto(part, part + added, where=_inside(pixels), casting="unsafe")


def _signs(texture: int, pixels: int, period: int, top: int, left: int) -> NDArray[np.int16]:
    """1 and -1 in the texture's pattern, (pixels, pixels), for a part that starts at (top, left)."""
    rows, columns = (
        ((np.arange(pixels) + start) // (period // 2) % 2).astype(np.int16) for start in (top, left)
    )
    down = rows if TEXTURES[texture] != "columns" else 0 * rows
    across = columns if TEXTURES[texture] != "rows" else 0 * columns
    return 2 * (down[:, None] ^ across[None, :]) - 1


@lru_cache(8)
def _inside(pixels: int) -> NDArray[np.bool_]:
    """Which pixels of a square belong to the disc in it, (pixels, pixels)."""
    centred = np.arange(pixels) - (pixels - 1) / 2
    inside: NDArray[np.bool_] = np.hypot(centred[:, None], centred[None, :]) <= pixels / 2
    return inside
