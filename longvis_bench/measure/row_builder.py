"""A row while its cell is measured: values as they come, seconds by phase, and at the end its warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

from longvis_bench import row_warnings
from longvis_bench.phases import START, Phases
from longvis_bench.records import Request, Row, Status
from longvis_bench.report.peak_flops import mfu
from longvis_bench.stats import median

if TYPE_CHECKING:
    from longvis_bench.measure.memory.tensor_peak import TensorPeak


class Draft:
    """A row being filled in; `row()` is valid at every moment."""

    def __init__(self, request: Request) -> None:
        self.values: dict[str, Any] = {
            "key": request.key,
            "attempt": request.attempt,
            "machine": request.machine,
            "code": request.code,
            "cell": request.cell,
            "settings": request.settings,
            "status": "error",
            "reason": "not finished",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "null_reasons": {},
            "backends": {},
            "overhead_s": {},
        }
        self.largest_output: int | None = None
        self.tensors: TensorPeak | None = None
        seconds = self.values["overhead_s"]
        if request.sent is not None:
            seconds[START] = max(0.0, monotonic() - request.sent)
        self.phases = Phases(seconds)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Book the seconds spent inside under the name of a phase."""
        self.phases.enter(phase)
        try:
            yield
        finally:
            self.phases.leave()

    def row(self) -> Row:
        """The row as it stands."""
        self.phases.book()
        return Row.model_validate(self.values)

    def end(self, status: Status, reason: str | None = None) -> Row:
        """The row with its final status and its warnings."""
        self.values.update(status=status, reason=reason)
        row = self.row()
        return row.model_copy(update={"notes": (*row_warnings.of(row), *row_warnings.of_mfu(mfu(row)))})

    @property
    def latency_s(self) -> float:
        """Median seconds of an iteration; 0 where time was not measured."""
        timing = self.values.get("timing")
        return (median(timing.samples_s) or 0.0) if timing is not None else 0.0

    @property
    def scans(self) -> bool:
        """Whether the model does selective scans: counted, or seen while its shapes were executed."""
        count = self.values.get("count")
        counted = count is not None and count.scan_flops > 0
        return counted or (self.tensors is not None and self.tensors.scans)
