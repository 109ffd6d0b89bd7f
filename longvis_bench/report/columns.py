"""Every column of every table: name, unit, meaning, and how a row gives its value.

The frame, the CSV, the Markdown and terminal tables, the plots and results/README.md all read this one list.
Statistics are derived here from the raw samples of a row.  A value that is not known is None, and
`null_reason` says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, Literal, TypeVar

from longvis_bench import stats, units
from longvis_bench.devices import kind_of
from longvis_bench.phases import BUILD, HARNESS, IMPORT, OTHER, START, TEARDOWN, measuring, spent
from longvis_bench.records import AccuracyRecord, Metric, ReachRecord, Row, TimingRecord
from longvis_bench.report.peak_flops import mfu
from longvis_bench.resolution import Rectangle

T = TypeVar("T")
Value = str | int | float | None
Kind = Literal["text", "int", "float"]
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    name: str
    """With its unit at the end where it has one that the name does not say already."""
    meaning: str
    value: Callable[[Row], Value]
    kind: Kind = "text"
    unit: str = ""
    format: Callable[[Any], str] = units.plain
    scales: tuple[units.Scale, ...] = ()
    """Units that a whole column may share; none for columns without a unit."""
    metric: Metric | None = None
    """What has to be measured for it; None for what every row knows."""
    why: str | Callable[[Row], str] = NOT_RECORDED
    """Reason of its own for having no value."""


def null_reason(column: Column, row: Row) -> str | None:
    """Why a row has no value in a column; None where it has one."""
    if column.value(row) is not None:
        return None
    metric = column.metric
    stored = row.null_reasons.get(column.name) or (row.null_reasons.get(metric) if metric else None)
    if stored:
        return stored
    if metric and _record(metric, row) is None:
        return _no_record(metric, row)
    return column.why if isinstance(column.why, str) else column.why(row)


def _record(metric: Metric, row: Row) -> object:
    records: dict[Metric, object] = {
        "count": row.count,
        "time": row.timing,
        "memory": row.memory,
        "accuracy": row.accuracy,
        "validity": row.validity,
        "reach": row.reach,
    }
    return records[metric]


def _no_record(metric: Metric, row: Row) -> str:
    if metric not in row.cell.metrics:
        return "not asked for (--metrics)"
    if row.status != "ok":
        return f"{row.status}: {row.reason}" if row.reason else row.status
    return "measured in inference cells only" if row.cell.mode == "train" else "not measured"


def note_codes(row: Row) -> str | None:
    """The row's warnings, as codes of `row_warnings.py`."""
    return " ".join(note.code for note in row.notes) or None


def null_reasons(row: Row, lacking: Collection[str] | None = None) -> dict[str, str]:
    """Metric, or column of a metric that was measured -> why it has no value.

    Arguments:
        row: of any status.
        lacking: names of the columns without a value, where they are known already.
    """
    reasons: dict[str, str] = {}
    for column in COLUMNS:
        metric = column.metric
        if metric is None or metric in reasons:  # said of the whole metric
            continue
        if lacking is not None and column.name not in lacking:
            continue
        reason = null_reason(column, row)
        if reason is not None:
            reasons[column.name if _record(metric, row) is not None else metric] = reason
    return reasons


def reasons_text(row: Row, lacking: Collection[str] | None = None) -> str | None:
    """The same as JSON; None where nothing lacks."""
    return _json(null_reasons(row, lacking))


# How a value is had from a record -----------------------------------------------------------------------


def _at(path: str) -> Callable[[Row], Value]:
    """The value at `record.field` of a row, None where the row has no such record."""
    *records, field = path.split(".")
    get, steps = attrgetter(field), [attrgetter(name) for name in records]

    def value(row: Row) -> Value:
        found: Any = row
        for step in steps:
            found = step(found)
            if found is None:
                return None
        result: Value = get(found)
        return result

    return value


def _trained_at(row: Row) -> int | None:
    trained = row.accuracy.trained_resolution if row.accuracy else None
    return None if isinstance(trained, Rectangle) else trained


def _trained_otherwise(row: Row) -> str:
    trained = row.accuracy.trained_resolution if row.accuracy else None
    return f"the weights were trained at {trained}" if trained else "the weights do not say"


def _params(row: Row) -> int | None:
    """From the count, or counted apart where the operations could not be."""
    return row.params if row.count is None else row.count.params


def _of(record: str, get: Callable[[Any], Value]) -> Callable[[Row], Value]:
    """What is derived from a record of the row, None where the row has no such record."""
    find = attrgetter(record)

    def value(row: Row) -> Value:
        found = find(row)
        return None if found is None else get(found)

    return value


def _middle(name: str, record: ReachRecord) -> float | None:
    """The median of a field with several numbers; None where there are none."""
    return stats.median(getattr(record, name))


def _latency_end(end: Literal[0, 1]) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        interval = _latency_interval(row)
        return None if interval is None else interval[end]

    return value


KEPT_TIMINGS = 1 << 14
"""Rows whose latencies are kept at a time."""


def _of_timing(get: Callable[[TimingRecord], T]) -> Callable[[Row], T | None]:
    """What is derived from a row's timing; kept, as tables and figures ask for it many times.

    Copies of a row share its timing, which nothing changes, so the key is its identity.
    """
    known: dict[int, tuple[TimingRecord, T]] = {}

    def value(row: Row) -> T | None:
        timing = row.timing
        if timing is None:
            return None
        kept = known.get(id(timing))
        if kept is None or kept[0] is not timing:
            if len(known) >= KEPT_TIMINGS:
                known.clear()
            kept = known[id(timing)] = timing, get(timing)
        return kept[1]

    return value


_latency = _of_timing(lambda timing: stats.across_processes(timing.by_process(clean=True)))
_latency_interval = _of_timing(
    lambda timing: stats.latency_interval(timing.by_process(clean=True), timing.others_spread)
)
_half_width = _of_timing(
    lambda timing: stats.latency_half_width(timing.by_process(clean=True), timing.others_spread)
)


@lru_cache(maxsize=1 << 14)
def _drift(samples: tuple[float, ...]) -> float | None:
    """The ranks of all samples cost more than the rest of a row, and tables and figures ask several times."""
    return stats.drift(samples)


def _verdict(row: Row) -> str | None:
    """As stored, over all processes; by the samples in rows of longvis 0.1."""
    if row.timing is None or row.timing.processes:
        return row.timing.verdict if row.timing else None
    return stats.verdict(row.timing.samples_s, row.settings.precision)


def _no_interval(row: Row) -> str:
    taken = len(row.timing.by_process(clean=True)) if row.timing else 0
    return _few(6, "an interval")(row) if taken < 2 else f"an interval needs 3 processes; there are {taken}"


_ratios = _of_timing(
    lambda timing: stats.vs_yardstick(timing.by_process(clean=True), timing.yardsticks(clean=True))
)
"""Latencies in units of the yardstick, process by process."""


def _vs_yardstick(row: Row) -> float | None:
    return stats.across_processes(_ratios(row) or [])


def _vs_yardstick_end(end: Literal[0, 1]) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        interval = stats.latency_interval(_ratios(row) or [])
        return None if interval is None else interval[end]

    return value


def _yardstick(row: Row) -> float | None:
    sticks = [stick for stick in row.timing.yardsticks(clean=True) if stick] if row.timing else []
    return stats.across_processes(sticks)


def _at_reference(row: Row) -> float | None:
    ratio = _vs_yardstick(row)
    return None if ratio is None or row.reference_yardstick_s is None else ratio * row.reference_yardstick_s


def _vs_baseline(part: Literal["value", "low", "high"]) -> Callable[[Row], float | None]:
    """Of the ratio of times; the baseline's own has no interval."""

    def value(row: Row) -> float | None:
        model, found = row.baseline or ("", None)
        exact = part != "value" and row.cell.model == model
        return None if found is None or exact else float(getattr(found, part))

    return value


def _why_no_baseline(row: Row) -> str:
    if row.baseline is None:
        return "not asked for (--baseline)"
    if row.cell.model == row.baseline[0] and row.baseline[1] is not None:
        return "the baseline itself"
    return "it or the baseline was not timed under these conditions"


def _counted(name: str) -> Callable[[Row], Value]:
    """Events per iteration and process, the median over processes."""

    def value(timing: TimingRecord) -> float | None:
        counts = [
            getattr(process.counters, name) / process.samples
            for process in timing.processes
            if process.samples and getattr(process.counters, name) is not None
        ]
        return stats.median(counts)

    return _of("timing", value)


def _rate_of(latency: Callable[[Row], float | None]) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        seconds = latency(row)
        return row.cell.world * row.cell.batch_size / seconds if seconds else None

    return value


def _efficiency(row: Row) -> float | None:
    alone = None if row.world is None else stats.median(row.world.one_device_s)
    together = _latency(row)
    return alone / together if alone and together else None


def _train_hours(row: Row) -> float | None:
    length, rate = row.settings.hours_for, _rate_of(_latency)(row)
    if row.cell.mode != "train" or length is None or not rate:
        return None
    return length.images * length.epochs / rate / 3600


def _why_no_hours(row: Row) -> str:
    if row.cell.mode != "train":
        return "from training cells only"
    return "not asked for (--hours-for)" if row.settings.hours_for is None else _no_samples(row)


def _why_no_mfu(row: Row) -> str:
    if row.count is None:
        return "needs FLOPs: " + (null_reason(BY_NAME["flops"], row) or "none counted")
    if row.cell.device == "cpu":
        return "no peak FLOP/s is known for processors"
    if row.cell.dtype == "fp32" and not row.numerics:
        return "the row does not tell whether its fp32 used TF32; measure it again"
    return f"no peak FLOP/s is known for {row.backends.get('device') or 'this device'} in {row.cell.dtype}"


def _memory_part(name: str) -> Callable[[Row], Value]:
    return _of("memory", lambda m: m.parts_bytes.get(name))


def _step_part(name: str) -> Callable[[Row], Value]:
    return _of("timing", lambda t: stats.median(t.parts_s.get(name, ())))


def _share(right: Callable[[AccuracyRecord], int | None]) -> Callable[[Row], Value]:
    def share(accuracy: AccuracyRecord) -> float | None:
        found = right(accuracy)
        return None if found is None or not accuracy.images else found / accuracy.images

    return _of("accuracy", share)


def _end(right: Callable[[AccuracyRecord], int | None], end: Literal[0, 1]) -> Callable[[Row], Value]:
    """An end of the share's 95 % interval."""

    def value(accuracy: AccuracyRecord) -> float | None:
        found = right(accuracy)
        interval = None if found is None else stats.wilson(found, accuracy.images)
        return None if interval is None else interval[end]

    return _of("accuracy", value)


def _few(needed: int, what: str) -> Callable[[Row], str]:
    def why(row: Row) -> str:
        taken = len(row.timing.samples_s) if row.timing else 0
        return f"{what} needs {needed} samples; there are {taken}"

    return why


def _no_sensor(row: Row) -> str:
    if row.cell.device.startswith("cuda"):
        return "NVML did not tell; python -m pip install nvidia-ml-py"
    return "the system does not tell" if row.cell.device == "cpu" else "this device does not tell"


def _no_slowdowns(row: Row) -> str:
    watched = row.cell.device.startswith("cuda") and row.timing and row.timing.noise.clock_hz
    return "it gave none" if watched else _no_sensor(row)


def _cuda_alone(row: Row) -> str:
    return NOT_RECORDED if kind_of(row.cell.device) == "cuda" else "CUDA devices alone have it"


def _no_features(row: Row) -> str:
    return "the output is logits" if row.cell.output == "logits" else "no iteration ran"


def _no_samples(row: Row) -> str:
    return "no samples were taken, or they are of length 0"


def _json(value: object) -> str | None:
    """Canonical JSON; None for what is empty."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str) if value else None


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# The columns --------------------------------------------------------------------------------------------


def _column(name: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(name=name, meaning=meaning, value=value, **more)


_text = _column
_int = partial(_column, kind="int")
_float = partial(_column, kind="float")
_number = partial(_int, format=units.count, scales=units.COUNTS)
_seconds = partial(_float, unit="s", format=units.seconds, scales=units.SECONDS)
_rate = partial(_float, unit="img/s", format=units.rate, scales=units.RATES)
_bytes = partial(_int, unit="bytes", format=units.size, scales=units.SIZES, metric="memory")
_ratio = partial(_float, unit="0-1", format=units.percent, scales=units.SHARES)


_WHAT = (
    _text(
        "model",
        "Name as the user gives it: variant, `@implementation`, arguments in brackets.",
        _at("cell.model"),
    ),
    _text("family", "Published architecture.", _at("cell.family")),
    _text("variant", "Named size of the family.", _at("cell.variant")),
    _text(
        "implementation",
        "Code that ran: `native` (longvis's own), `timm`, or `upstream` (the authors').",
        _at("cell.implementation"),
    ),
    _int(
        "resolution",
        "Pixels per side of a square input; tables show rectangles as width x height, like 2560x1920.",
        lambda row: None if isinstance(row.cell.resolution, Rectangle) else row.cell.resolution,
        unit="px",
        why="the input is a rectangle of `width` x `height`",
    ),
    _int("batch_size", "Images in one iteration of one device.", _at("cell.batch_size"), unit="images"),
    _text("mode", "`infer`: one forward; `train`: forward, backward and optimizer step.", _at("cell.mode")),
    _text("dtype", "Number format of the computation.", _at("cell.dtype")),
    _text(
        "device",
        "Kind of device it ran on, in torch's words: `cuda` whatever the index.",
        lambda row: kind_of(row.cell.device),
    ),
    _text(
        "status",
        "How the cell ended; `ok`, or what went wrong. Only `ok` rows are ranked.",
        _at("status"),
    ),
    _text("reason", "Why the status is not ok.", _at("reason"), why="the status says all"),
)

_COST = (
    _number("params", "Unique parameters.", _params, metric="count"),
    _number(
        "macs",
        "Multiply-adds of one forward of one image in eval mode.",
        _at("count.macs"),
        metric="count",
    ),
    _number("flops", "Floating-point operations: 2 x `macs`.", _at("count.flops"), metric="count"),
    _number(
        "scan_flops",
        "Operations of selective scans, 9 x batch x length x width x states; not part of `flops`.",
        _at("count.scan_flops"),
        metric="count",
    ),
    _ratio(
        "flops_coverage",
        "Output elements of operators with a cost formula / output elements of all operators.",
        _at("count.coverage"),
        metric="count",
        why="no operator with a formula, and none unknown",
    ),
    _seconds(
        "latency_median_s",
        "Median duration of one iteration per process, and the median of these over processes; the batch is "
        "already on the device.",
        _latency,
        metric="time",
        why=_no_samples,
    ),
    _seconds(
        "latency_low_s",
        "Low end of its 95 % interval: over processes (Student's t on the logarithms of their medians); of a "
        "single process by order statistics.",
        _latency_end(0),
        metric="time",
        why=_no_interval,
    ),
    _seconds("latency_high_s", "High end of the same.", _latency_end(1), metric="time", why=_no_interval),
    _seconds(
        "latency_p90_s",
        "90th percentile of the duration; from 29 samples on.",
        _of("timing", lambda t: stats.quantile(t.samples_s, 0.9)),
        metric="time",
        why=_few(29, "a 90th percentile"),
    ),
    _seconds(
        "latency_p99_s",
        "99th percentile of the duration; from 299 samples on.",
        _of("timing", lambda t: stats.quantile(t.samples_s, 0.99)),
        metric="time",
        why=_few(299, "a 99th percentile"),
    ),
    _rate(
        "throughput_img_s",
        "`batch_size` / `latency_median_s`, times `world`.",
        _rate_of(_latency),
        metric="time",
        why=_no_samples,
    ),
    _int(
        "samples",
        "Iterations timed after the warm-up.",
        _of("timing", lambda t: len(t.samples_s)),
        metric="time",
    ),
    _text(
        "verdict",
        "`stable`: the 95 % interval over processes meets the target precision; `noisy`: it is wider; "
        "`disturbed`: other load disturbed all processes; `single`: one process; `budget`: under 6 samples.",
        _verdict,
        metric="time",
    ),
    _ratio(
        "mfu",
        "FLOP/s achieved / the device's peak in this dtype; a train step counts as three forwards.",
        mfu,
        metric="time",
        why=_why_no_mfu,
    ),
    _bytes(
        "peak_memory_bytes",
        "Highest memory while one iteration runs in the steady state, above what the process held before the "
        "model was built.",
        _at("memory.peak_bytes"),
    ),
)

_QUALITY = (
    _ratio(
        "top1",
        "Share of held-out images whose most probable class is correct.",
        _share(lambda a: a.correct_top1),
        metric="accuracy",
        why="no images",
    ),
    _ratio(
        "top1_low",
        "Low end of its Wilson 95 % interval.",
        _end(lambda a: a.correct_top1, 0),
        metric="accuracy",
        why="no images",
    ),
    _ratio(
        "top1_high",
        "High end of the same.",
        _end(lambda a: a.correct_top1, 1),
        metric="accuracy",
        why="no images",
    ),
    _ratio(
        "top5",
        "Share of held-out images with the correct class among the five most probable.",
        _share(lambda a: a.correct_top5),
        metric="accuracy",
        why="too few classes",
    ),
    _int(
        "num_classes",
        "Classes the model tells apart.",
        lambda r: r.cell.num_classes if r.cell.output == "logits" else None,
        why="maps have no classes",
    ),
    _int(
        "images",
        "Number of held-out images for the accuracy.",
        _at("accuracy.images"),
        metric="accuracy",
        unit="images",
    ),
    _text(
        "dataset", "Where the images came from.", lambda r: r.accuracy.dataset if r.accuracy else r.cell.data
    ),
    _text("weights", "File name of the weights.", _at("cell.weights"), why="fresh weights"),
)

_MORE_TIME = (
    _rate(
        "throughput_low_img_s",
        "`batch_size` / `latency_high_s`.",
        _rate_of(_latency_end(1)),
        metric="time",
        why=_no_interval,
    ),
    _rate(
        "throughput_high_img_s",
        "`batch_size` / `latency_low_s`.",
        _rate_of(_latency_end(0)),
        metric="time",
        why=_no_interval,
    ),
    _ratio(
        "latency_half_width",
        "Half the width of the 95 % interval / median.",
        _half_width,
        metric="time",
        why=_no_interval,
    ),
    _ratio(
        "latency_drift",
        "Change during the measurement, if one of two rank tests at 1 % finds one of at least 2 %.",
        _of("timing", lambda t: _drift(t.samples_s)),
        metric="time",
        why="no drift was found",
    ),
    _int(
        "processes",
        "Fresh processes that timed the cell, disturbed ones included.",
        _of("timing", lambda t: len(t.processes) or 1),
        metric="time",
    ),
    _int(
        "disturbed_processes",
        "Processes that were disturbed by other load or failed, so that their samples do not count.",
        _of("timing", lambda t: sum(process.disturbed is not None for process in t.processes)),
        metric="time",
    ),
    _ratio(
        "process_spread",
        "Standard deviation of the logarithms of the processes' median latencies.",
        _of("timing", lambda t: stats.process_spread(t.by_process(clean=True))),
        metric="time",
        why="needs two processes",
    ),
    _seconds(
        "yardstick_s",
        "Median duration of the yardstick, a fixed piece of work timed between the samples.",
        _yardstick,
        metric="time",
        why="rows of longvis 0.1 have no yardstick",
    ),
    _float(
        "latency_vs_yardstick",
        "Latency / yardstick of the same process, the median over processes: the best number to compare if "
        "the machine's speed changes.",
        _vs_yardstick,
        metric="time",
        why="rows of longvis 0.1 have no yardstick",
    ),
    _float(
        "latency_vs_yardstick_low",
        "Low end of its 95 % interval over processes.",
        _vs_yardstick_end(0),
        metric="time",
        why=_no_interval,
    ),
    _float(
        "latency_vs_yardstick_high",
        "High end of the same.",
        _vs_yardstick_end(1),
        metric="time",
        why=_no_interval,
    ),
    _seconds(
        "latency_reference_s",
        "`latency_vs_yardstick` x the fastest yardstick of the machine among the rows shown: the latency at "
        "the machine's best speed.",
        _at_reference,
        metric="time",
        why="known among the rows of a table, and from longvis 0.2 on",
    ),
    _text(
        "baseline",
        "The model that `time_vs_baseline` refers to.",
        lambda row: row.baseline[0] if row.baseline else None,
        why="not asked for (--baseline)",
    ),
    _float(
        "time_vs_baseline",
        "Time per image / that of the baseline under the same conditions, on the same machine.",
        _vs_baseline("value"),
        format=units.rate,
        why=_why_no_baseline,
    ),
    _float(
        "time_vs_baseline_low",
        "Low end of its 95 % interval over processes, as in `longvis compare`.",
        _vs_baseline("low"),
        format=units.rate,
        why=_why_no_baseline,
    ),
    _float(
        "time_vs_baseline_high",
        "High end of the same.",
        _vs_baseline("high"),
        format=units.rate,
        why=_why_no_baseline,
    ),
    _float(
        "page_faults",
        "Minor page faults per iteration while the cell was timed, including the yardstick's.",
        _counted("page_faults"),
        metric="time",
        why="the system does not tell",
    ),
    _float(
        "context_switches",
        "Involuntary context switches of the process's threads per iteration while the cell was timed.",
        _counted("context_switches"),
        metric="time",
        why="the system does not tell",
    ),
    _float(
        "migrations",
        "Migrations of the process's threads to another processor per iteration while the cell was timed.",
        _counted("migrations"),
        metric="time",
        why="the system does not tell",
    ),
    _int(
        "rounds",
        "Repeats of this cell that were timed (`--repeats`); each is a row.",
        lambda r: len(r.repeats_s) or 1 if r.timing and r.timing.samples_s else None,
        metric="time",
        why=_no_samples,
    ),
    _ratio(
        "round_spread",
        "Range of the repeats' median latencies / their median; the same in all their rows.",
        lambda r: stats.spread(r.repeats_s),
        metric="time",
        why="needs two repeats that were timed (--repeats)",
    ),
    _int(
        "warmup_samples",
        "Iterations before the counted ones.",
        _of("timing", lambda t: len(t.warmup_s)),
        metric="time",
    ),
    _seconds(
        "host_latency_s",
        "On CUDA: median time until the host had handed an iteration's work over to the GPU. Where it is "
        "near `latency_median_s`, the GPU waits for the host.",
        _of("timing", lambda t: stats.median(t.host_s)),
        metric="time",
        why=_cuda_alone,
    ),
    _seconds(
        "graph_latency_s",
        "On CUDA: median duration of the same forward replayed as a CUDA graph, in which the GPU does not "
        "wait for the host; of one process. No table ranks by it.",
        _of("timing", lambda t: stats.median(t.graph_s)),
        metric="time",
        why=_cuda_alone,
    ),
    _seconds(
        "first_iteration_s",
        "First iteration, never counted: allocation, cuDNN's autotune or oneDNN's choice of kernels, caches; "
        "attention's kernels are watched in it.",
        _of("timing", lambda t: t.warmup_s[0] if t.warmup_s else None),
        metric="time",
        why="not recorded",
    ),
    _seconds(
        "compile_s",
        "Compiling (`torch.compile`, the kernels of selective scans), before the first iteration.",
        lambda r: r.overhead_s.get("compile"),
        why="not compiled",
    ),
    _float(
        "load_cores",
        "Mean number of cores that other processes kept busy while the cell was timed.",
        _at("timing.noise.load_cores"),
        metric="time",
        why="the system does not tell",
    ),
    _float(
        "own_cores",
        "Mean number of cores that the cell's own process kept busy while it was timed.",
        _at("timing.noise.own_cores"),
        metric="time",
        why="the system does not tell",
    ),
    _ratio(
        "steal",
        "Share of processor time that the hypervisor gave to other guests while the cell was timed.",
        _at("timing.noise.steal"),
        metric="time",
        why="the system does not tell",
    ),
    _float(
        "clock_hz",
        "Median clock of the device while the cell was timed: of its fastest core, or the GPU's SM clock.",
        _at("timing.noise.clock_hz"),
        metric="time",
        why=_no_sensor,
        unit="Hz",
    ),
    _ratio(
        "clock_change",
        "Median clock of the later half of the readings / of the earlier half - 1.",
        _at("timing.noise.clock_change"),
        metric="time",
        why=_no_sensor,
    ),
    _float(
        "temperature_c",
        "Highest temperature of the GPU while the cell was timed.",
        _at("timing.noise.temperature_c"),
        metric="time",
        why=_no_sensor,
        unit="°C",
    ),
    _text(
        "slowdowns",
        "Throttling reasons that the GPU reported while the cell was timed.",
        _of("timing", lambda t: ", ".join(t.noise.slowdowns) or None),
        metric="time",
        why=_no_slowdowns,
    ),
    _float(
        "energy_j_img",
        "Energy per image of iterations repeated back to back for two seconds after the timing, in joules: "
        "of the whole GPU (NVML), or of all processor packages of the machine (RAPL), idle power "
        "included; not that of memory, fans and the rest of the machine.",
        _of("energy", lambda e: e.joules / e.images),
        metric="time",
        why="not recorded by this version",
        unit="J/img",
    ),
    _float(
        "power_w",
        "Mean power of the same device meanwhile, in watts.",
        _of("energy", lambda e: e.joules / e.seconds),
        metric="time",
        why="not recorded by this version",
        unit="W",
    ),
    _float(
        "idle_power_w",
        "Its power over one second before the model was built, in watts; not subtracted from the others.",
        _at("energy.idle_w"),
        metric="time",
        why="not recorded by this version",
        unit="W",
    ),
    _ratio(
        "scaling_efficiency",
        "Images per second of `world` devices / `world` x those of one device, which ran the same step "
        "without exchanging gradients.",
        _efficiency,
        metric="time",
        why="one device",
    ),
    _text(
        "rank_peak_memory_bytes",
        "Peak memory of each device's process, as JSON; `peak_memory_bytes` is the highest.",
        lambda r: None if r.world is None else _json(list(r.world.rank_peak_bytes)),
        why="one device",
    ),
    _text("energy_source", "The counter that was read.", _at("energy.source"), why="no energy was measured"),
    Column(
        name="train_hours",
        unit="h",
        meaning="Hours that training takes on this one device, or on `world` together: images x epochs of "
        "`train_length` / `throughput_img_s`; loading data and evaluating are not in it.",
        value=_train_hours,
        kind="float",
        format=units.hours,
        scales=units.HOURS,
        metric="time",
        why=_why_no_hours,
    ),
    _text(
        "train_length",
        "Images x epochs that `train_hours` is for (`--hours-for`).",
        lambda r: str(r.settings.hours_for) if r.settings.hours_for else None,
        why="not asked for (--hours-for)",
    ),
    _text(
        "tried_batches",
        "What `--batch auto` tried, as JSON: batch, status, images per second, peak bytes, and why not.",
        lambda r: _json([tried.model_dump(exclude_none=True) for tried in r.batches]),
        why="the batch was given",
    ),
    _seconds(
        "forward_s",
        "Train mode: median duration of the forward pass.",
        _step_part("forward"),
        metric="time",
        why="timed in train mode only",
    ),
    _seconds(
        "backward_s",
        "Train mode: median duration of the backward pass.",
        _step_part("backward"),
        metric="time",
        why="timed in train mode only",
    ),
    _seconds(
        "optimizer_s",
        "Train mode: median duration of the optimizer step.",
        _step_part("optimizer"),
        metric="time",
        why="timed in train mode only",
    ),
)

_PARTS = {
    "weights": "parameters",
    "buffers": "what modules keep beside their parameters, such as position tables",
    "gradients": "gradients alive when the tensors peak",
    "optimizer": "state of the optimizer",
    "input": "the batch of images",
    "activations": "all other tensors alive when the tensors peak",
    "workspace": "by how much the workspace of convolutions, watched in an iteration of its own, "
    "raises the peak above that of the tensors",
    "library": "buffers that MKL, which multiplies matrices on x86, keeps from its first call on",
    "rest": "what remains: compiled kernels, other kernels' workspace, small blocks, threads' stacks",
}
MEMORY_PARTS = tuple(f"{part}_memory_bytes" for part in _PARTS)
"""Columns that sum to the peak."""

_MORE_MEMORY = (
    _bytes(
        "tensor_peak_bytes",
        "Highest memory of the tensors alone, by executing one iteration's shapes without running it; known "
        "where the cell does not fit, too. The measured peak also holds what is no tensor: workspace of "
        "convolutions and other kernels, the allocator's rounding and fragments, threads' caches. It can be "
        "lower on a CPU, where memory that was never written to is not held.",
        _at("tensors.peak_bytes"),
    ),
    *(
        _bytes(
            f"{part}_memory_bytes",
            f"Part of the peak: {meaning}.",
            _memory_part(part),
            why="not known apart",
        )
        for part, meaning in _PARTS.items()
    ),
    _bytes(
        "reserved_memory_bytes",
        "What the process (on a GPU: the allocator) held at most above the baseline, building and freed "
        "memory that it keeps included.",
        _at("memory.reserved_bytes"),
        why="not recorded by this version",
    ),
    _bytes(
        "outside_memory_bytes",
        "On CUDA: what the process held on the GPU beyond torch's allocator (context, kernels, libraries). A "
        "cell fits where `reserved_memory_bytes`, `baseline_memory_bytes` and this do together.",
        _at("memory.outside_bytes"),
        why=_cuda_alone,
    ),
    _bytes(
        "baseline_memory_bytes",
        "What the process held before the model was built; not part of the peak.",
        _at("memory.baseline_bytes"),
    ),
    _text("memory_source", "How the peak was read.", _at("memory.source"), metric="memory"),
)

_MORE_MODEL = (
    _text(
        "reach",
        "Adaptation of the model to this size, in words; how far its tokens see is in `reach_share`.",
        _at("size.reach"),
        why="the cell ended before it was known",
    ),
    _ratio(
        "padding_ratio",
        "Padding tokens per image token, in the stage that pads most.",
        _at("size.padding_ratio"),
        why="nothing pads, or it is not known",
    ),
    _text(
        "size_arguments",
        "Factory arguments that depend on the resolution, as JSON.",
        _of("size", lambda s: _json(s.arguments)),
        why="none",
    ),
    _int(
        "random_tensors",
        "Tensors with random values, because the weights have none for this size.",
        _of("size", lambda s: len(s.random_tensors)),
        why="the cell ended before it was known",
    ),
    _text(
        "feature_strides",
        "Stride of each map that the backbone returned, in pixels, finest first (`--output features`).",
        _of("features", lambda f: " ".join(map(str, f.strides))),
        why=_no_features,
    ),
    _text(
        "feature_channels",
        "Channels of each of these maps.",
        _of("features", lambda f: " ".join(map(str, f.channels))),
        why=_no_features,
    ),
    _bytes(
        "feature_bytes",
        "Bytes of these maps of one batch, which the caller holds; `peak_memory_bytes` includes them.",
        _at("features.held_bytes"),
        metric=None,
        why=_no_features,
    ),
    _text(
        "unknown_operators",
        "Operators without a formula and their output elements, as JSON.",
        _of("count", lambda c: _json(c.unknown) or "{}"),
        metric="count",
    ),
    _ratio(
        "top5_low",
        "Low end of top-5's Wilson 95 % interval.",
        _end(lambda a: a.correct_top5, 0),
        metric="accuracy",
        why="too few classes",
    ),
    _ratio(
        "top5_high",
        "High end of the same.",
        _end(lambda a: a.correct_top5, 1),
        metric="accuracy",
        why="too few classes",
    ),
    _int(
        "answer_classes",
        "Classes of the data, among which the answers were chosen.",
        _at("accuracy.classes"),
        metric="accuracy",
        why="all that the model tells apart",
    ),
    _text(
        "normalisation",
        "Mean and deviation, by channel, that the weights want of a folder's images, as JSON.",
        lambda r: _json(r.cell.normalisation),
        why="the data's own",
    ),
    _text(
        "reshaped",
        "Tensors of the weights that were resized to this size -> how, as JSON.",
        _of("size", lambda s: _json(s.reshaped)),
        why="none",
    ),
    _int(
        "trained_resolution",
        "Resolution the weights were trained at.",
        _trained_at,
        metric="accuracy",
        why=_trained_otherwise,
        unit="px",
    ),
    _text(
        "weights_sha256",
        "Hash of the weight file.",
        _at("cell.weights_sha256"),
        why="fresh weights",
    ),
    _text(
        "validity",
        "Result of the comparison of the logits with a reference: `ok`, `invalid`, or `not checked`.",
        _at("validity.verdict"),
        metric="validity",
    ),
    _text(
        "validity_reference",
        "What the logits were compared with.",
        _at("validity.reference"),
        metric="validity",
    ),
    _ratio(
        "validity_error",
        "Largest difference from the reference, of the logits or of sampled operators / its largest value.",
        _at("validity.reference_error"),
        metric="validity",
        why="not compared",
    ),
    _ratio(
        "validity_batch_error",
        "The same between an image alone and in a batch.",
        _at("validity.batch_error"),
        metric="validity",
        why="not compared",
    ),
)

_REACH = (
    _ratio(
        "reach_share",
        "Share of the image's pixels with a gradient to a token of the last map before pooling, mean over 9 "
        "tokens, with fresh weights: what the architecture can see at this size.",
        _at("reach.share"),
        metric="reach",
    ),
    *(
        _float(
            f"reach_{kind}radius_{share}_px",
            f"Radius around a token with {share} % of its squared gradient, {meaning}.",
            _of("reach", partial(_middle, f"{kind}radius_{share}_px")),
            metric="reach",
            why=why,
            unit="px",
        )
        for kind, meaning, why in (
            ("", "fresh weights, median over seeds", NOT_RECORDED),
            ("trained_", "the cell's weights, median over held-out images", "the cell has no weights"),
        )
        for share in (50, 90)
    ),
    _text(
        "reach_basis",
        "What reach was measured of: `map`, or `logits` (pairs of pixels) where the model shows no last map.",
        _at("reach.basis"),
        metric="reach",
    ),
)

_CONDITIONS = (
    _int("height", "Pixels from top to bottom of the input.", _at("cell.height"), unit="px"),
    _int("width", "Pixels from left to right of the input.", _at("cell.width"), unit="px"),
    _text(
        "arguments",
        "Arguments given in brackets, as JSON.",
        lambda r: _json(r.cell.arguments),
        why="none",
    ),
    _int(
        "threads",
        "Processor threads within an operator; eager models run one operator at a time.",
        _at("cell.threads"),
    ),
    _int(
        "world", "Devices that trained together, each on a batch of its own (`--world`).", _at("cell.world")
    ),
    _text("memory_format", "Layout of images and convolution weights.", _at("cell.memory_format")),
    _text("fused", "`yes` where batch norms were folded into convolutions.", lambda r: _yes(r.cell.fuse)),
    _text(
        "grad_checkpointing",
        "`yes` where training keeps blocks' inputs only and computes the rest again.",
        lambda r: _yes(r.cell.grad_checkpointing),
    ),
    _text("compiled", "`yes` where the model ran through torch.compile.", lambda r: _yes(r.cell.compile)),
    _text(
        "output",
        "What the model returned: `logits`, or `features`, the maps of the backbone without its head.",
        _at("cell.output"),
    ),
    _text("data", "Images that were fed.", _at("cell.data")),
    _int("seed", "Seed of fresh weights and labels.", _at("cell.seed")),
    _int("round", "Which round of a repeated sweep, from 0.", _at("cell.round")),
    _text(
        "backends",
        "Backend that ran, per operator with a choice of backends, as JSON.",
        lambda r: _json(r.backends),
        why="there was no choice, or none ran",
    ),
    _int(
        "neighbours",
        "Most cells of the same sweep that ran meanwhile on other devices of the machine (`--devices`).",
        _at("neighbours"),
    ),
    _int("gpu_index", "The N of `cuda:N`; no condition.", _at("gpu_index"), why="not on CUDA"),
    _text("gpu_uuid", "Which GPU, or slice of one, it ran on.", _at("gpu_uuid"), why="not on CUDA"),
    _text(
        "attention",
        "Kernels of softmax attention: flash, efficient, cudnn, math, or unfused (the model's own).",
        _at("attention"),
        why="not observed in this row",
    ),
)

_PHASES = (
    (
        "start_s",
        "From sending the request until its process measures; the first cell's includes importing torch.",
        (START,),
    ),
    ("import_s", "Reading the card and importing the module that builds the model.", (IMPORT,)),
    ("build_s", "Building the model and loading its weights.", (BUILD,)),
    ("other_s", "Loading data and starting kernel libraries in the cell's process.", (OTHER,)),
    ("teardown_s", "From the finished row until the cell's process is gone.", (TEARDOWN,)),
    (
        "overhead_s",
        "Seconds of neither building nor measuring: `start_s` + `import_s` + `other_s` + `teardown_s`.",
        HARNESS,
    ),
)


def _phase(name: str, meaning: str, phases: tuple[str, ...]) -> Column:
    return _seconds(name, meaning, lambda r: spent(r.overhead_s, *phases), why="it never ran")


_RECORD = (
    _seconds("budget_s", "Seconds given for warm-up and samples.", _at("settings.budget_s")),
    _ratio("precision", "Wanted half-width of the 95 % interval / median.", _at("settings.precision")),
    _seconds("timeout_s", "Seconds after which the cell would have been ended.", _at("settings.timeout_s")),
    *(_phase(name, meaning, phases) for name, meaning, phases in _PHASES),
    _seconds(
        "measure_s",
        "Counting, compiling, timing, validity, accuracy, and the last seconds of an unfinished cell.",
        lambda r: measuring(r.overhead_s),
        why="it never ran",
    ),
    _text(
        "cached",
        "What was not computed for this row but read from the cache of earlier runs: `count`, `shapes`, "
        "`accuracy`, `reach`.",
        lambda r: " ".join(r.cached) or None,
        why="everything was computed",
    ),
    _text("notes", "Codes of the row's warnings.", note_codes, why="no warnings"),
    _text(
        "null_reasons",
        "Reasons of missing values, as JSON: metric or column -> reason.",
        reasons_text,
        why="every measured column has a value",
    ),
    _int("attempt", "How often the cell was run; only the last is shown.", _at("attempt")),
    _text("key", "Identity of the measurement: cell, code, weights and environment.", _at("key")),
    _text("started", "When it began, UTC.", _at("started")),
    _text(
        "machine",
        "Processor or GPU model and core count.",
        lambda r: r.machine or None,
        why="the row was made apart from a sweep",
    ),
    _int("schema", "Version of the stored row.", _at("version")),
)

COLUMNS: tuple[Column, ...] = (
    *_WHAT,
    *_COST,
    *_QUALITY,
    *_MORE_TIME,
    *_MORE_MEMORY,
    *_MORE_MODEL,
    *_REACH,
    *_CONDITIONS,
    *_RECORD,
)
BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}


SHORT: tuple[str, ...] = (
    *("model", "resolution", "batch_size", "mode", "dtype", "device", "status", "reason"),
    *("top1", "top1_low", "top1_high", "throughput_img_s", "latency_median_s", "latency_low_s"),
    *("latency_high_s", "verdict", "peak_memory_bytes", "macs", "params", "notes"),
)
"""Columns of summary_short.csv: what the readable tables show."""


def columns_markdown() -> str:
    """results/README.md: what lies in a run's directory, and every column."""
    lines = [_README.strip(), "", "| column | unit | meaning | empty where |", "|---|---|---|---|"]
    for column in COLUMNS:
        cells = (f"`{column.name}`", column.unit, column.meaning, _empty_where(column))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _empty_where(column: Column) -> str:
    """Why a row can have no value besides a metric that was not asked for or a cell that failed."""
    reason = column.why if isinstance(column.why, str) else "depends on the row"
    if column.metric:
        return "see `null_reasons`"
    return "" if reason == NOT_RECORDED else reason


_README = """
# Results

Generated from `longvis_bench/report/columns.py`; a test keeps the two equal.

`reference/<machine>/<run>/` holds committed runs; `runs/` is where `longvis bench` writes, and git ignores
it. A run's directory holds

- `run.json`: the resolved configuration (`longvis bench --config run.json` measures the same again), the
  environment and its versions;
- `cells.jsonl`: one row per cell, with raw samples; everything below is derived from it by `longvis report`;
- `summary.csv`: all columns below; `summary_short.csv`: the SHORT_COUNT that the tables show; `summary.md`:
  tables with footnotes; `plots/`: figures;
- `predictions/<key>.npz`: the predicted class of each held-out image, where accuracy was measured;
  `classes.csv` and `confusion.csv`, made from them: accuracy per class, and which classes were mistaken for
  which.

A unit is part of the column's name or stands in the list below. Accuracies and other shares are 0-1.
Unknown is `null` in JSON, empty in CSV, `-` in tables and `<NA>` in a frame, never 0, -1 or NaN. Where a
metric or one of its columns has no value, the column `null_reasons` says why, "not asked for" included; for
the other columns the last column of the list says when they are empty. In the CSV a text that a spreadsheet
would take for a formula is preceded by an apostrophe.

A cell ends in one of these statuses: `ok`, `oom` (out of the device's memory), `host_oom` (out of the
machine's memory), `timeout`, `illegal_size`, `missing_dependency`, `unsupported`, `invalid` (wrong logits
or maps), `crashed`, `error`, `skipped`.

## Columns
""".replace("SHORT_COUNT", str(len(SHORT)))
