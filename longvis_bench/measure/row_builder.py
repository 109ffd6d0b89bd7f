"""A row while its cell is measured: values as they come, seconds by phase, and at the end its warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

from longvis_bench.phases import START, Phases
from longvis_bench.records import NoiseRecord, Note, Request, Row, Status
from longvis_bench.row_warnings import notes_for
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
        return row.model_copy(update={"notes": _notes(row)})

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


def _notes(row: Row) -> tuple[Note, ...]:
    """Every warning that applies to a row."""
    size, count, timing, accuracy = row.size, row.count, row.timing, row.accuracy
    noise = timing.noise if timing else NoiseRecord()
    return notes_for(
        samples_s=timing.samples_s if timing else None,
        precision=row.settings.precision,
        load=noise.load_cores,
        steal=noise.steal,
        clock_change=noise.clock_change,
        temperature_c=noise.temperature_c,
        temperature_limit_c=noise.temperature_limit_c,
        throttle=noise.slowdowns,
        coverage=count.coverage if count else None,
        unknown=count.unknown if count else None,
        padding_ratio=size.padding_ratio if size else None,
        correct_top1=accuracy.correct_top1 if accuracy else None,
        images=accuracy.images if accuracy else None,
        resolution=row.cell.resolution,
        trained_resolution=accuracy.trained_resolution if accuracy else None,
        random_tensors=size.random_tensors if size else (),
        classes=accuracy.classes if accuracy else None,
        num_classes=row.cell.num_classes,
        reshaped=size.reshaped if size else None,
        peak_bytes=row.memory.peak_bytes if row.memory else None,
        tensor_peak_bytes=row.tensors.peak_bytes if row.tensors else None,
    )
