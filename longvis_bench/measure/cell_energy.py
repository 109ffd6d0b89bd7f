"""The energy of a cell: which meter it has, and why it has none."""

from __future__ import annotations

import torch

from longvis_bench.errors import Unsupported
from longvis_bench.measure.latency.clock import Clock, Iteration
from longvis_bench.measure.latency.energy import Meter, idle_power, measure_energy, meter_for
from longvis_bench.measure.latency.processes import ENERGY_COLUMNS
from longvis_bench.measure.row_builder import RowBuilder


class CellEnergy:
    """The meter of a cell's device, and its power before the model was built.

    Arguments:
        meter: of the device.
        idle_w: in watts.
        builder: receives the record, or the reason why there is none.
    """

    def __init__(self, meter: Meter, idle_w: float, builder: RowBuilder) -> None:
        self._meter, self._idle_w, self._builder = meter, idle_w, builder

    def measure(self, iteration: Iteration, clock: Clock) -> None:
        """Repeat a warm iteration and record its energy; a counter that fails meanwhile is a reason."""
        batch = self._builder.request.cell.batch_size
        try:
            self._builder.energy = measure_energy(
                iteration, clock, self._meter, batch=batch, idle_w=self._idle_w
            )
        except (Unsupported, OSError, ValueError) as error:
            give_reason(self._builder, str(error))


def start_energy(builder: RowBuilder) -> CellEnergy | None:
    """The meter of a cell, after a second that measures the idle power; None where there is no meter."""
    try:
        meter = meter_for(torch.device(builder.request.cell.device))
        with builder.turns.alone():
            return CellEnergy(meter, idle_power(meter), builder)
    except (Unsupported, OSError, ValueError) as error:
        give_reason(builder, str(error))
        return None


def give_reason(builder: RowBuilder, reason: str) -> None:
    """Record why the columns of energy have no value."""
    builder.null_reasons |= dict.fromkeys(ENERGY_COLUMNS, reason)
