"""The size of input images: a whole number for squares, `Rectangle` for everything else.

In Python a rectangle is `(height, width)`, as tensors are laid out; people write WIDTHxHEIGHT, as images are
described, in options, tables and stored text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from math import sqrt
from numbers import Integral
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, computed_field, model_validator

MOST = 2**31
"""Sides stay below it."""


class Rectangle(NamedTuple):
    """Pixels of an input that is not square.

    It is shown as "2560x1920", width first.  Rectangles and whole numbers sort together by their pixels, and
    `float()` is the side of the square with as many pixels, which the axes of figures show.
    """

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    def __float__(self) -> float:
        return sqrt(self.height * self.width)

    def __lt__(self, other: object) -> bool:
        return _place(self) < _place(other)

    def __le__(self, other: object) -> bool:
        return _place(self) <= _place(other)

    def __gt__(self, other: object) -> bool:
        return _place(self) > _place(other)

    def __ge__(self, other: object) -> bool:
        return _place(self) >= _place(other)


Resolution = int | Rectangle
Fit = Literal["crop", "pad", "stretch"]
"""How an image is brought to a resolution; see `data/resize.py`."""
AnyResolution = int | tuple[int, int]
"""As callers in Python give it: pixels per side, or (height, width)."""


def resolution_of(value: object) -> Resolution:
    """A resolution in any of its forms: `1024`, `(height, width)`, or text as `str` gives it, "2560x1920".

    Returns:
        A whole number for squares, however they are given.

    Raises:
        ValueError: it is none; the message says what is valid.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", value, re.ASCII)
        value = (int(found[2]), int(found[1])) if found else int(value) if value.isdecimal() else value
    pair = value if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(_is_side(side) for side in pair):
        raise ValueError("pixels per side, or (height, width)")
    height, width = map(int, pair)
    return height if height == width else Rectangle(height, width)


def canonical(resolution: AnyResolution) -> Resolution:
    """A whole number for squares; nothing is checked."""
    height, width = sides(resolution)
    return height if height == width else Rectangle(height, width)


def sides(resolution: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels; `1024` -> (1024, 1024)."""
    if isinstance(resolution, int):
        return resolution, resolution
    height, width = resolution
    return height, width


def scaled(resolution: Resolution, factor: int) -> Resolution:
    """Both sides times a factor."""
    height, width = sides(resolution)
    return resolution_of((factor * height, factor * width))


def side(resolution: Resolution) -> float:
    """Pixels per side of a square, square root of the pixels of a rectangle: its place on an axis."""
    return resolution if isinstance(resolution, int) else float(resolution)


def axis_in_words(sizes: Iterable[Resolution]) -> str:
    """What an axis of these sizes shows."""
    square = all(isinstance(size, int) for size in sizes)
    return "pixels per side" if square else "square root of width x height in pixels"


def columns(resolution: Resolution) -> dict[str, int | None]:
    """`resolution`, `height` and `width` as tables of rows have them."""
    height, width = sides(resolution)
    square = None if isinstance(resolution, Rectangle) else resolution
    return {"resolution": square, "height": height, "width": width}


def to_json(resolution: Resolution) -> int | str:
    """A whole number for squares, "2560x1920" for rectangles; `resolution_of` reads both."""
    return resolution if isinstance(resolution, int) else str(resolution)


StoredResolution = Annotated[Resolution, BeforeValidator(resolution_of), PlainSerializer(to_json)]
"""A field that is a whole number for squares, and text like "2560x1920" for rectangles in JSON."""


class Sized(BaseModel):
    """A stored record with a resolution: in JSON `height` and `width`, and `resolution` if it is square."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: Annotated[
        Resolution,
        BeforeValidator(resolution_of),
        PlainSerializer(lambda resolution: resolution if isinstance(resolution, int) else None),
    ]
    """Pixels per side of a square input, or a `Rectangle`; null in JSON for rectangles."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def height(self) -> int:
        """Pixels from top to bottom of the input."""
        return sides(self.resolution)[0]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def width(self) -> int:
        """Pixels from left to right of the input."""
        return sides(self.resolution)[1]

    @model_validator(mode="before")
    @classmethod
    def _of_sides(cls, values: Any) -> Any:
        """Read `height` and `width`; records of row schemas 1 and 2 have `resolution` alone."""
        if not isinstance(values, dict) or not {"height", "width"} <= values.keys():
            return values
        rest = {name: value for name, value in values.items() if name not in ("height", "width")}
        pair = (values["height"], values["width"])
        if rest.get("resolution") is not None and resolution_of(rest["resolution"]) != resolution_of(pair):
            raise ValueError(f"resolution {rest['resolution']} is not height x width, {pair[0]} x {pair[1]}")
        return {**rest, "resolution": pair}

    LATER: ClassVar[tuple[str, ...]] = ()
    """Fields that hashes leave out at their defaults, because older versions did not have them."""

    def conditions(self, without: Collection[str] = ()) -> dict[str, Any]:
        """All fields as JSON values, for hashes: those of a square are what they were before schema 3."""
        is_square = "resolution" in without or not isinstance(self.resolution, Rectangle)
        alike = {"height", "width"} if is_square else set()
        alike |= {name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude={*without, *alike})


def _is_side(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and 1 <= int(value) < MOST


def _place(resolution: object) -> tuple[int, int]:
    """Sort key: pixels, and height among those with as many."""
    if not isinstance(resolution, int | tuple):
        raise TypeError(f"{resolution!r} is no resolution.")
    height, width = sides(resolution)
    return height * width, height
