"""`--hours-for`: hours of training from the throughput of a train step; a report can work them out anew."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from longvis_bench.errors import LongvisError
from longvis_bench.records import Cell, Row, Settings, TimingRecord, TrainLength
from longvis_bench.report.columns import BY_NAME, null_reason
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.summary import summary_markdown
from longvis_bench.report.write import restate
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.session import start

LENGTH = TrainLength(images=126689, epochs=320)


def step(cell: Cell, **settings: object) -> Row:
    """A row of steps of 2 s on 8 images."""
    timing = TimingRecord(samples_s=(2.0,) * 7, warmup_s=(), verdict="stable")
    condition = {"mode": "train", "batch_size": 8}
    return Row(
        key="k",
        cell=cell.model_copy(update=condition),
        status="ok",
        timing=timing,
        settings=Settings.model_validate(settings),
    )


def hours(row: Row) -> object:
    return BY_NAME["train_hours"].value(row)


def test_hours_follow_from_the_throughput(cell: Cell) -> None:
    row = step(cell, hours_for=LENGTH)
    assert hours(row) == pytest.approx(126689 * 320 / 4.0 / 3600)
    assert BY_NAME["train_length"].value(row) == "126689x320"


def test_without_hours_the_reason_is_told(cell: Cell) -> None:
    column = BY_NAME["train_hours"]
    row = step(cell, hours_for=LENGTH)
    inference = row.model_copy(update={"cell": cell})
    assert null_reason(column, inference) == "from training cells only"
    assert null_reason(column, step(cell)) == "not asked for (--hours-for)"
    assert hours(inference) is None


def test_rows_that_are_there_can_be_restated(cell: Cell) -> None:
    row = step(cell)
    (again,) = restate([row], LENGTH)
    assert hours(row) is None
    assert hours(again) == pytest.approx(126689 * 320 / 4.0 / 3600)
    assert again.timing == row.timing


def test_tables_say_for_one_device(cell: Cell) -> None:
    rows = [step(cell, hours_for=LENGTH)]
    assert "hours for 126689x320 (images x epochs) on one device" in Grouped(rows).shared_conditions
    text = summary_markdown(rows)
    assert "on one device" in text
    assert "| training (h) |" in text
    assert " 2815 |" in text


@pytest.mark.parametrize("text", ["", "126689", "x320", "0x3", "3x0", "1e5x3", "10x3x2", "ax3", "10,3"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="images x epochs, like 126689x320"):
        TrainLength.parse(text)
    with pytest.raises(ValidationError):
        SweepConfig.model_validate({"hours_for": text})


def test_both_forms_of_a_configuration_are_read() -> None:
    assert SweepConfig.model_validate({"hours_for": "126689x320"}).hours_for == LENGTH
    written = SweepConfig(hours_for=LENGTH).model_dump(mode="json")
    assert SweepConfig.model_validate(written).hours_for == LENGTH


def test_it_changes_no_key_and_needs_training() -> None:
    options = {"models": ("vit-n",), "resolutions": (64,), "device": "cpu", "modes": ("train",)}
    with_hours, without = start(options | {"hours_for": "10x3"}), start(options)
    assert with_hours.plan.cells[0].request.key == without.plan.cells[0].request.key
    assert with_hours.path == without.path
    with pytest.raises(LongvisError, match="add --mode train"):
        start(options | {"hours_for": "10x3", "modes": ("infer",)})


def test_checkpointing_is_part_of_the_key_and_needs_training() -> None:
    options = {"models": ("vit-n",), "resolutions": (64,), "device": "cpu", "modes": ("infer", "train")}
    keys = [
        {planned.cell.mode: planned.request.key for planned in start(options | more).plan.cells}
        for more in ({}, {"grad_checkpointing": True})
    ]
    assert keys[0]["train"] != keys[1]["train"]
    assert keys[0]["infer"] == keys[1]["infer"]
    with pytest.raises(LongvisError, match="add --mode train"):
        start(options | {"grad_checkpointing": True, "modes": ("infer",)})
