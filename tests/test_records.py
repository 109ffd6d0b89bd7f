"""Cells are compared, and rows made, in one way."""

from __future__ import annotations

import pytest

from longvis_bench.records import Cell, Request, Row, Settings

CELL = Cell(model="m", family="f", variant="v", implementation="user", resolution=64)


@pytest.mark.parametrize(
    ("name", "value"), [("resolution", 128), ("round", 1), ("weights", "w"), ("seed", 3)]
)
def test_a_cell_s_identity_is_of_every_field_but_those_left_out(name: str, value: object) -> None:
    other = CELL.model_copy(update={name: value})
    assert other.identity() != CELL.identity()
    assert other.identity(without=(name,)) == CELL.identity(without=(name,))
    assert other.identity(without=("batch_size",)) != CELL.identity(without=("batch_size",))


def test_a_row_of_a_request_has_measured_nothing() -> None:
    request = Request(
        cell=CELL,
        settings=Settings(budget_s=3),
        key="k",
        attempt=2,
        machine="here",
        code="abc",
        model="other",
    )
    row = Row.of(request, "skipped", "interrupted")
    assert (row.key, row.attempt, row.machine, row.code) == ("k", 2, "here", "abc")
    assert (row.cell, row.settings) == (CELL, Settings(budget_s=3))
    assert (row.status, row.reason) == ("skipped", "interrupted")
    assert row == Row.model_validate_json(row.to_json())
    assert Row.of(request).status == "error"
