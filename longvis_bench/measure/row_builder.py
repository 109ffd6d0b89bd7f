"""The row of a cell that is being measured: its fields, seconds per phase and, at the end, warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

from longvis_bench import row_warnings
from longvis_bench.measure.latency.turns import Turns
from longvis_bench.phases import START, WAIT, Phases
from longvis_bench.records import (
    SCHEMA,
    AccuracyRecord,
    CountRecord,
    EnergyRecord,
    FeaturesRecord,
    MemoryRecord,
    ReachRecord,
    Request,
    Row,
    SizeRecord,
    Status,
    TimingRecord,
    ValidityRecord,
    WorldRecord,
)
from longvis_bench.report.peak_flops import mfu
from longvis_bench.stats import median

if TYPE_CHECKING:
    from longvis_bench.measure.memory.tensor_peak import TensorPeak


@dataclass
class RowBuilder:
    """Collects the fields of a row; `row()` gives a valid row at any time.

    Arguments:
        request: the cell, its settings and the row's key.
    """

    request: Request
    size: SizeRecord | None = None
    count: CountRecord | None = None
    params: int | None = None
    features: FeaturesRecord | None = None
    timing: TimingRecord | None = None
    energy: EnergyRecord | None = None
    world: WorldRecord | None = None
    memory: MemoryRecord | None = None
    accuracy: AccuracyRecord | None = None
    validity: ValidityRecord | None = None
    reach: ReachRecord | None = None
    attention: str | None = None
    numerics: dict[str, str] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    null_reasons: dict[str, str] = field(default_factory=dict)
    changed_settings: tuple[str, ...] = ()
    cached: list[str] = field(default_factory=list)
    overhead_s: dict[str, float] = field(default_factory=dict)
    gpu_index: int | None = None
    gpu_uuid: str | None = None
    gpu_used_bytes: dict[str, int] = field(default_factory=dict)
    """UUID -> bytes that all processes held on a GPU before this one started CUDA."""
    tensor_peak: TensorPeak | None = None
    """Source of the row's `tensors`, and of the largest tensor of an iteration."""
    largest_output: int | None = None
    """Elements of the largest tensor that an operator returned for one image; None where not counted."""
    status: Status = "error"
    reason: str | None = "not finished"
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.request.sent is not None:
            self.overhead_s[START] = max(0.0, monotonic() - self.request.sent)
        self.phases = Phases(self.overhead_s)
        self.turns = Turns(self.request.turns, self.request.turn_note, lambda: self.timed(WAIT))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds spent inside to a phase."""
        self.phases.enter(phase)
        try:
            yield
        finally:
            self.phases.leave()

    def row(self) -> Row:
        """The row with what is known so far."""
        self.phases.book()
        request = self.request
        return Row(
            version=SCHEMA,
            key=request.key,
            attempt=request.attempt,
            machine=request.machine,
            code=request.code,
            cell=request.cell,
            settings=request.settings,
            status=self.status,
            reason=self.reason,
            started=self.started,
            gpu_index=self.gpu_index,
            gpu_uuid=self.gpu_uuid,
            size=self.size,
            count=self.count,
            params=self.params,
            features=self.features,
            timing=self.timing,
            energy=self.energy,
            world=self.world,
            tensors=None if self.tensor_peak is None else self.tensor_peak.to_record(),
            memory=self.memory,
            accuracy=self.accuracy,
            validity=self.validity,
            reach=self.reach,
            attention=self.attention,
            numerics=self.numerics,
            backends=self.backends,
            null_reasons=self.null_reasons,
            changed_settings=self.changed_settings,
            cached=tuple(self.cached),
            overhead_s=self.overhead_s,
        )

    def end(self, status: Status, reason: str | None = None) -> Row:
        """The row with its final status and its warnings."""
        self.status, self.reason = status, reason
        row = self.row()
        return row.model_copy(update={"notes": (*row_warnings.of(row), *row_warnings.of_mfu(mfu(row)))})

    @property
    def latency_s(self) -> float:
        """Median seconds of an iteration; 0 where time was not measured."""
        return 0.0 if self.timing is None else median(self.timing.samples_s) or 0.0

    @property
    def scans(self) -> bool:
        """Whether the model has selective scans: they were counted, or ran while its shapes were executed."""
        counted = self.count is not None and self.count.scan_flops > 0
        return counted or (self.tensor_peak is not None and self.tensor_peak.scans)
