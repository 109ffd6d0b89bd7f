"""Which model to take: what was measured first, else what is predicted, counted or published.

Every figure carries its kind.  Rows of one device compete, and nothing else does: a latency that was not
measured there is not known.  Published accuracies of one table compete with each other, and never with
measured ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from longvis_bench import units
from longvis_bench.advice.fit import Question, fit
from longvis_bench.advice.need import CONTEXT_MIB, MIB, PROCESS_MIB, Device
from longvis_bench.errors import LongvisError
from longvis_bench.records import Mode, Row
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import is_disturbed, natural
from longvis_bench.resolution import Resolution

Kind = Literal["measured", "predicted", "counted", "published"]
DISTURBED = "latency disturbed by other load: measure it again with --fresh"


@dataclass(frozen=True)
class Known:
    """A figure, and where it comes from."""

    value: float
    kind: Kind
    low: float | None = None
    high: float | None = None
    """Ends of its interval, or of the range that is predicted."""
    source: str = ""
    """Which figures it may be compared with: data, table and epochs of an accuracy."""

    def overlaps(self, other: Known) -> bool:
        """Whether nothing tells the two apart: their intervals have a point in common."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Limits:
    """What the model must meet."""

    resolution: Resolution
    mode: Mode = "infer"
    batch_size: int = 1
    memory_bytes: int | None = None
    latency_s: float | None = None
    min_top1: float | None = None


@dataclass(frozen=True)
class Miss:
    """A limit that a model does not meet, or does not surely meet."""

    limit: str
    """The option."""
    why: str
    excess: float | None = None
    """By which factor it is missed; None where the figure is not known."""


@dataclass(frozen=True)
class Candidate:
    """One model with its figures."""

    model: str
    family: str
    latency: Known | None = None
    memory: Known | None = None
    top1: Known | None = None
    macs: Known | None = None
    params: Known | None = None
    failed: str | None = None
    """Why it cannot run at this size at all."""
    no_latency: str = "latency not measured"
    """Why the latency is not known, where it is not."""
    misses: tuple[Miss, ...] = field(default=())

    @property
    def meets(self) -> bool:
        """Whether it meets all limits."""
        return self.failed is None and not self.misses

    @property
    def why_not(self) -> str:
        """Why it fell out; empty where it did not."""
        return self.failed or "; ".join(miss.why for miss in self.misses)

    @property
    def columns(self) -> dict[str, object]:
        """Column -> value, as `--json` prints them."""
        found: dict[str, object] = {"model": self.model, "family": self.family, "meets": self.meets}
        for name in ("latency", "memory", "top1", "macs", "params"):
            known: Known | None = getattr(self, name)
            found[name] = None if known is None else asdict(known)
        return found | {"why_not": self.why_not or None}


def choose(
    rows: Sequence[Row], names: Sequence[str], limits: Limits, device: Device, registry: Registry
) -> list[Candidate]:
    """All candidates: those that meet the limits first, the best first.

    Arguments:
        rows: measured ones, of any size and device; those of this size, mode, batch and device count.
        names: models to choose among, besides those of the rows.
        limits: what the model must meet.
        device: where it is to run; its memory is that of the limits, or a GPU's.
        registry: finds the models.

    Raises:
        LongvisError: there is nothing to choose from, or the rows were measured under several conditions.
    """
    rows = [row for row in rows if row.cell.resolution == limits.resolution and row.cell.mode == limits.mode]
    features = [row for row in rows if row.cell.output == "features"]
    rows = [row for row in rows if row.cell.output == "logits"]
    if features and not rows:
        raise LongvisError(
            "these runs hold rows of --output features alone; choose compares classifiers, whose rows have "
            "the head and an accuracy: give a run of --output logits."
        )
    here = [row for row in rows if _kind(row) == device.kind and row.cell.batch_size == limits.batch_size]
    _require_one_condition(here)
    models = dict.fromkeys([*(row.cell.model for row in rows), *registry.expand(names)])
    if not models:
        raise LongvisError(
            f"there is nothing to choose from: these runs hold no row at {limits.resolution} px in mode "
            f"{limits.mode}; name models with --models."
        )
    dtype = here[0].cell.dtype if here else "bf16" if device.kind == "cuda" else "fp32"
    question = Question(
        device, (limits.resolution,), (limits.mode,), (limits.batch_size,), dtype, search=False
    )
    found = [
        _candidate(model, [row for row in rows if row.cell.model == model], limits, question, registry)
        for model in models
    ]
    return sorted(found, key=_order(found))


def _kind(row: Row) -> str:
    return row.cell.device.partition(":")[0]


def _require_one_condition(rows: Sequence[Row]) -> None:
    """Rows that compete must differ in their model only."""
    for name in ("machine", "dtype", "threads"):
        values = sorted({str(BY_NAME[name].value(row)) for row in rows})
        if len(values) > 1:
            raise LongvisError(
                f"rows of different {name} ({units.listing(values, 3)}) do not compete: give runs of one."
            )


def _candidate(
    model: str, rows: Sequence[Row], limits: Limits, question: Question, registry: Registry
) -> Candidate:
    variant = registry.find(model)
    kind, batch = question.device.kind, limits.batch_size
    here = [row for row in rows if _kind(row) == kind and row.cell.batch_size == batch]
    ok = [row for row in here if row.status == "ok"]
    if here and not ok:
        ended = f"measured: {here[0].status}, {here[0].reason or ''}".rstrip(", ")
        return Candidate(model, variant.family, failed=ended)
    memory, failed = _memory(model, ok, question, registry)
    if failed is not None:
        return Candidate(model, variant.family, failed=failed)
    candidate = Candidate(
        model,
        variant.family,
        latency=_latency(ok),
        no_latency=DISTURBED if any(map(is_disturbed, ok)) else Candidate.no_latency,
        memory=memory,
        top1=_top1(variant, rows, limits.resolution),
        macs=_count(variant, rows, "macs", limits.resolution),
        params=_count(variant, rows, "params", limits.resolution),
    )
    return Candidate(**{**vars(candidate), "misses": tuple(_misses(candidate, limits))})


def _latency(rows: Sequence[Row]) -> Known | None:
    """The first latency that other load did not disturb."""
    row = next((row for row in rows if row.timing is not None and not is_disturbed(row)), None)
    if row is None:
        return None
    value, low, high = (BY_NAME[f"latency_{end}_s"].value(row) for end in ("median", "low", "high"))
    return None if value is None else Known(float(value), "measured", _number(low), _number(high))


def _memory(
    model: str, rows: Sequence[Row], question: Question, registry: Registry
) -> tuple[Known | None, str | None]:
    """What the device needs, or why the model cannot run there."""
    row = next((row for row in rows if row.memory is not None), None)
    if row is not None and row.memory is not None:
        low, high = CONTEXT_MIB if question.device.kind == "cuda" else PROCESS_MIB
        peak = row.memory.peak_bytes
        most = max(peak, row.memory.reserved_bytes or 0) + high * MIB
        return Known(peak, "measured", peak + low * MIB, most), None
    found = next(iter(fit([model], question, registry)))
    if found.predicted_peak_bytes is None:
        return None, found.reason
    return (
        Known(found.predicted_peak_bytes, "predicted", found.needed_low_bytes, found.needed_bytes),
        None,
    )


def _top1(variant: Variant, rows: Sequence[Row], resolution: Resolution) -> Known | None:
    """Measured accuracy at this size, else a published one: of the longest training at this size."""
    for row in rows:
        if row.accuracy is not None and row.status == "ok":
            value, low, high = (BY_NAME[name].value(row) for name in ("top1", "top1_low", "top1_high"))
            return Known(float(value or 0), "measured", _number(low), _number(high), row.accuracy.dataset)
    if variant.card is None or variant.overrides:
        return None
    entries = [
        entry
        for entry in variant.card.published
        if (entry.variant, entry.resolution) == (variant.variant, resolution)
        and entry.top1_percent
        and not entry.arguments
    ]
    if not entries:
        return None
    entry = max(entries, key=lambda entry: entry.epochs or 0)
    source = f"{entry.dataset}, {entry.source}, {entry.table}"
    return Known((entry.top1_percent or 0) / 100, "published", source=source)


def _count(variant: Variant, rows: Sequence[Row], name: str, resolution: Resolution) -> Known | None:
    for row in rows:
        value = _number(BY_NAME[name].value(row))
        if value is not None:
            return Known(value, "counted")
    from longvis_bench.measure.flops.counter import count_variant

    try:
        return Known(getattr(count_variant(variant, resolution, 1000), name), "counted")
    except Exception:
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _misses(found: Candidate, limits: Limits) -> Iterator[Miss]:
    """The limits that a candidate does not surely meet."""
    if limits.memory_bytes is not None:
        yield from _memory_miss(found.memory, limits.memory_bytes)
    if limits.latency_s is not None:
        known = found.latency
        if known is None:
            yield Miss("--latency", found.no_latency)
        elif known.value > limits.latency_s:
            more = units.significant(known.value / limits.latency_s)
            yield Miss(
                "--latency",
                f"latency {units.seconds(known.value)}, {more} x {units.seconds(limits.latency_s)}",
                known.value / limits.latency_s,
            )
    if limits.min_top1 is not None:
        known = found.top1
        if known is None:
            yield Miss("--min-top1", "accuracy not known at this size")
        elif known.value < limits.min_top1:
            less = units.significant(100 * (limits.min_top1 - known.value), 2)
            yield Miss(
                "--min-top1",
                f"top-1 {units.percent(known.value)}, {less} points below {units.percent(limits.min_top1)}",
                limits.min_top1 / max(known.value, 1e-9),
            )


def _memory_miss(known: Known | None, limit: int) -> Iterator[Miss]:
    if known is None or known.low is None or known.high is None:
        yield Miss("--memory", "memory not known")
    elif known.low > limit:
        more = units.size(known.low - limit)
        yield Miss(
            "--memory",
            f"needs at least {units.size(known.low)}, {more} more than {units.size(limit)}",
            known.low / limit,
        )
    elif known.high > limit:
        yield Miss(
            "--memory",
            f"tight: needs {units.size(known.low)} to {units.size(known.high)} of {units.size(limit)}",
            known.high / limit,
        )


def yardstick(found: Sequence[Candidate]) -> tuple[str, str] | None:
    """Kind and source of the accuracy that most candidates have; None where none has one."""
    counts = Counter((one.top1.kind, one.top1.source) for one in found if one.meets and one.top1)
    return counts.most_common(1)[0][0] if counts else None


def _order(found: Sequence[Candidate]):  # type: ignore[no-untyped-def]
    """Those that meet the limits first; by accuracy, then latency, then memory, then name."""
    by = yardstick(found)

    def key(one: Candidate) -> tuple[object, ...]:
        comparable = one.top1 is not None and (one.top1.kind, one.top1.source) == by
        return (
            not one.meets,
            -(one.top1.value if comparable and one.top1 else -1.0),
            one.latency.value if one.latency else float("inf"),
            one.memory.high if one.memory and one.memory.high else float("inf"),
            natural(one.model),
        )

    return key


def sentence(found: Sequence[Candidate], limits: Limits) -> str:
    """The result in one sentence.

    Raises:
        LongvisError: nothing meets the limits; it says which one binds, and by how much.
    """
    chosen = [one for one in found if one.meets]
    if not chosen:
        raise LongvisError(f"no model meets the limits at {limits.resolution} px: {_binding(found)}.")
    first, others = chosen[0], chosen[1:]
    if not others:
        return f"Take {first.model}: the only one of {len(found)} that meets the limits."
    what, of = _ranked_by(first, chosen)
    known = getattr(first, of) if of else None
    close = [one.model for one in others if known and (v := getattr(one, of)) and known.overlaps(v)]
    end = f"; not separable from {units.listing(close, 3)} (intervals overlap)" if close else ""
    if known is not None and known.kind == "published":
        end = "; published figures have no interval, so whether the difference is real is not known"
    return f"Take {first.model}: {what} of {len(chosen)} that meet the limits{end}."


def _ranked_by(first: Candidate, chosen: Sequence[Candidate]) -> tuple[str, str]:
    """In what the first leads, in words and as a field."""
    by = yardstick(chosen)
    if by is not None and first.top1 is not None and (first.top1.kind, first.top1.source) == by:
        return f"the most accurate ({first.top1.kind}, {first.top1.source})", "top1"
    if first.latency is not None:
        return "the fastest (measured)", "latency"
    if first.memory is not None:
        return f"the smallest ({first.memory.kind} memory; accuracy and latency are not known)", "memory"
    return "the first", ""


def _binding(found: Sequence[Candidate]) -> str:
    """Which limit keeps most models out that meet all others, and by how much the nearest misses it."""
    alone: dict[str, list[tuple[float, Candidate, Miss]]] = {}
    for one in found:
        if one.failed is None and len(one.misses) == 1 and one.misses[0].excess is not None:
            miss = one.misses[0]
            alone.setdefault(miss.limit, []).append((miss.excess or 0.0, one, miss))
    if not alone:
        why = f"{found[0].model}: {found[0].why_not.rstrip('.')}"
        return f"not one limit alone keeps them out, or their figures are not known; {why}"
    limit = max(alone, key=lambda name: len(alone[name]))
    _, nearest, miss = min(alone[limit], key=lambda entry: entry[0])
    return (
        f"{limit} binds; the nearest, {nearest.model}, has {miss.why}"
        if "needs" not in miss.why
        else (f"{limit} binds; the nearest, {nearest.model}, {miss.why}")
    )
