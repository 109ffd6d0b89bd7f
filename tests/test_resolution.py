"""Resolutions: squares and rectangles, how they are read, sorted and stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from longvis_bench.records import Cell, Row
from longvis_bench.resolution import (
    Rectangle,
    Resolution,
    axis_in_words,
    columns,
    resolution_of,
    scaled,
    side,
    sides,
    to_json,
)

WIDE = Rectangle(1920, 2560)
CELL = Cell(
    model="moody-fine",
    family="moody",
    variant="moody-fine",
    implementation="user",
    resolution=64,
    threads=1,
)
OBLONG = CELL.model_copy(update={"resolution": WIDE})


@pytest.mark.parametrize(
    ("value", "resolution"),
    [
        (1024, 1024),
        (np.int64(1024), 1024),
        ((1920, 2560), WIDE),
        ([1920, 2560], WIDE),
        ("2560x1920", WIDE),
        ("512", 512),
        ((512, 512), 512),
        ("512x512", 512),
    ],
)
def test_each_form_is_read_and_a_square_is_one_number(value: object, resolution: object) -> None:
    found = resolution_of(value)
    assert found == resolution
    assert type(found) is type(resolution)
    assert resolution_of(to_json(found)) == found


@pytest.mark.parametrize("value", [0, -1, True, None, 1.5, "x", "12x", (1, 0), (1, 2, 3), 2**31, ""])
def test_what_is_no_resolution_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"or \(height, width\)"):
        resolution_of(value)


def test_people_read_the_width_first_and_tensors_the_height() -> None:
    assert f"{WIDE} px" == "2560x1920 px"
    assert sides(WIDE) == (1920, 2560)
    assert sides(64) == (64, 64)


def test_squares_and_rectangles_sort_by_their_pixels() -> None:
    tall = Rectangle(2560, 1920)
    shuffled: list[Resolution] = [4096, tall, 1024, WIDE, 2217, 2218]
    assert sorted(shuffled) == [1024, 2217, WIDE, tall, 2218, 4096]
    assert WIDE < 2218
    assert WIDE >= 2217
    assert tall >= WIDE
    assert tall > WIDE
    assert side(WIDE) == pytest.approx(2217.0, abs=0.1)
    assert side(64) == 64


def test_axes_say_what_a_rectangle_s_place_is() -> None:
    assert axis_in_words([64, 128]) == "pixels per side"
    assert axis_in_words([64, WIDE]) == "square root of width x height in pixels"


def test_a_factor_scales_both_sides() -> None:
    assert scaled(WIDE, 2) == Rectangle(3840, 5120)
    assert scaled(32, 4) == 128


def test_tables_have_both_sides_and_the_side_of_squares() -> None:
    assert columns(WIDE) == {"resolution": None, "height": 1920, "width": 2560}
    assert columns(64) == {"resolution": 64, "height": 64, "width": 64}


def test_a_cell_stores_both_sides_and_reads_them_again() -> None:
    for cell in (CELL, OBLONG):
        stored = json.loads(cell.model_dump_json())
        assert {name: stored[name] for name in ("resolution", "height", "width")} == columns(cell.resolution)
        assert Cell.model_validate(stored) == cell
        row = Row(key="k", cell=cell, status="ok")
        assert Row.model_validate_json(row.to_json()) == row


def test_a_cell_of_schemas_1_and_2_is_a_square() -> None:
    stored = json.loads(CELL.model_dump_json())
    del stored["height"], stored["width"]
    read = Cell.model_validate(stored)
    assert (read.resolution, read.height, read.width) == (64, 64, 64)


def test_sides_that_contradict_the_resolution_are_refused() -> None:
    stored = json.loads(CELL.model_dump_json()) | {"height": 32}
    with pytest.raises(ValidationError, match="resolution 64 is not"):
        Cell.model_validate(stored)


def test_the_hash_of_a_square_is_that_of_schema_2() -> None:
    """Both hashes were computed by version 0.2.0."""
    assert CELL.identity().startswith("9b2587ad5b3e2849")
    assert CELL.identity(without=("resolution", "round")).startswith("2a2c46c088fdd309")


def test_the_hash_of_a_rectangle_is_its_own() -> None:
    turned = OBLONG.model_copy(update={"resolution": Rectangle(2560, 1920)})
    assert len({CELL.identity(), OBLONG.identity(), turned.identity()}) == 3
    assert len({cell.identity(without=("resolution",)) for cell in (CELL, OBLONG, turned)}) == 1
