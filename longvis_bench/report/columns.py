"""Every column of every table: name, unit, meaning, and how a row gives its value.

The frame, the CSV, the Markdown and terminal tables, the plots and results/README.md all read this one list.
Statistics are derived here from the raw samples of a row.  A value that is not known is None, and
`null_reason` says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from longvis_bench import stats, units
from longvis_bench.phases import BUILD, HARNESS, IMPORT, OTHER, START, TEARDOWN, measuring, spent
from longvis_bench.records import (
    AccuracyRecord,
    CountRecord,
    MemoryRecord,
    Metric,
    NoiseRecord,
    Row,
    SizeRecord,
    TensorRecord,
    TimingRecord,
    ValidityRecord,
)
from longvis_bench.report.peak_flops import peak_flops

Value = str | int | float | None
Kind = Literal["text", "int", "float"]
T = TypeVar("T")


def _unknown(row: Row) -> str | None:
    return None


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
    why: Callable[[Row], str | None] = _unknown
    """Reason of its own for having no value, where one applies."""


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
    return column.why(row) or "not recorded"


def _record(metric: Metric, row: Row) -> object:
    records: dict[Metric, object] = {
        "count": row.count,
        "time": row.timing,
        "memory": row.memory,
        "accuracy": row.accuracy,
        "validity": row.validity,
    }
    return records[metric]


def _no_record(metric: Metric, row: Row) -> str:
    if metric not in row.cell.metrics:
        return "not asked for (--metrics)"
    if row.status != "ok":
        return f"{row.status}: {row.reason}" if row.reason else row.status
    return "measured in inference cells only" if row.cell.mode == "train" else "not measured"


def note_codes(row: Row) -> str | None:
    """The row's warnings, as codes of `quality.py`."""
    return " ".join(note.code for note in row.notes) or None


def null_reasons(row: Row) -> dict[str, str]:
    """Metric, or column of a metric that was measured -> why it has no value."""
    reasons: dict[str, str] = {}
    for column in COLUMNS:
        reason = null_reason(column, row) if column.metric else None
        if reason is not None and column.metric:
            measured = _record(column.metric, row) is not None
            reasons.setdefault(column.name if measured else column.metric, reason)
    return reasons


# How a value is had from a record -----------------------------------------------------------------------


def _of(record: Callable[[Row], T | None], get: Callable[[T], Value]) -> Callable[[Row], Value]:
    """A value of a record, None where the row has no such record."""

    def value(row: Row) -> Value:
        found = record(row)
        return None if found is None else get(found)

    return value


def _size(row: Row) -> SizeRecord | None:
    return row.size


def _count(row: Row) -> CountRecord | None:
    return row.count


def _timing(row: Row) -> TimingRecord | None:
    return row.timing


def _tensors(row: Row) -> TensorRecord | None:
    return row.tensors


def _memory(row: Row) -> MemoryRecord | None:
    return row.memory


def _accuracy(row: Row) -> AccuracyRecord | None:
    return row.accuracy


def _validity(row: Row) -> ValidityRecord | None:
    return row.validity


def _latency_end(end: Literal[0, 1]) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        interval = stats.median_interval(row.timing.samples_s) if row.timing else None
        return None if interval is None else interval[end]

    return value


def _latency(row: Row) -> float | None:
    return stats.median(row.timing.samples_s) if row.timing else None


def _rate_of(latency: Callable[[Row], float | None]) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        seconds = latency(row)
        return row.cell.batch_size / seconds if seconds else None

    return value


def _mfu(row: Row) -> float | None:
    peak = peak_flops(row.backends.get("device", ""), row.cell.dtype)
    latency = _latency(row)
    if row.count is None or peak is None or not latency:
        return None
    passes = 3 if row.cell.mode == "train" else 1
    return passes * row.count.flops * row.cell.batch_size / latency / peak


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
    if row.cell.dtype == "fp32":
        return "the peak in fp32 depends on TF32 settings"
    return f"no peak FLOP/s is known for {row.backends.get('device') or 'this device'} in {row.cell.dtype}"


def _memory_part(name: str) -> Callable[[Row], Value]:
    return _of(_memory, lambda m: m.parts_bytes.get(name))


def _step_part(name: str) -> Callable[[Row], Value]:
    return _of(_timing, lambda t: stats.median(t.parts_s.get(name, ())))


def _share(right: Callable[[AccuracyRecord], int | None]) -> Callable[[Row], Value]:
    def share(accuracy: AccuracyRecord) -> float | None:
        found = right(accuracy)
        return None if found is None or not accuracy.images else found / accuracy.images

    return _of(_accuracy, share)


def _end(right: Callable[[AccuracyRecord], int | None], end: Literal[0, 1]) -> Callable[[Row], Value]:
    """An end of the share's 95 % interval."""

    def value(accuracy: AccuracyRecord) -> float | None:
        found = right(accuracy)
        interval = None if found is None else stats.wilson(found, accuracy.images)
        return None if interval is None else interval[end]

    return _of(_accuracy, value)


def _few(needed: int, what: str) -> Callable[[Row], str | None]:
    def why(row: Row) -> str:
        taken = len(row.timing.samples_s) if row.timing else 0
        return f"{what} needs {needed} samples; there are {taken}"

    return why


def _noise(get: Callable[[NoiseRecord], Value]) -> Callable[[Row], Value]:
    return _of(_timing, lambda timing: get(timing.noise))


def _no_sensor(row: Row) -> str:
    if row.cell.device.startswith("cuda"):
        return "NVML did not tell; python -m pip install nvidia-ml-py"
    return "the system does not tell" if row.cell.device == "cpu" else "this device does not tell"


def _no_slowdowns(row: Row) -> str:
    watched = row.cell.device.startswith("cuda") and row.timing and row.timing.noise.clock_hz
    return "it gave none" if watched else _no_sensor(row)


def _always(reason: str) -> Callable[[Row], str | None]:
    return lambda row: reason


def _no_samples(row: Row) -> str:
    return "no samples were taken, or they are of length 0"


def _json(value: object) -> str | None:
    """Canonical JSON; None for what is empty."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str) if value else None


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# The columns --------------------------------------------------------------------------------------------


def _text(name: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(name=name, meaning=meaning, value=value, **more)


def _int(name: str, unit: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(name=name, unit=unit, meaning=meaning, value=value, kind="int", **more)


def _number(name: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(
        name=name, meaning=meaning, value=value, kind="int", format=units.count, scales=units.COUNTS, **more
    )


def _seconds(name: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(
        name=name,
        unit="s",
        meaning=meaning,
        value=value,
        kind="float",
        format=units.seconds,
        scales=units.SECONDS,
        **more,
    )


def _rate(name: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(
        name=name,
        unit="img/s",
        meaning=meaning,
        value=value,
        kind="float",
        format=units.rate,
        scales=units.RATES,
        **more,
    )


def _bytes(name: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(
        name=name,
        unit="bytes",
        meaning=meaning,
        value=value,
        kind="int",
        format=units.size,
        scales=units.SIZES,
        metric="memory",
        **more,
    )


def _float(name: str, unit: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(name=name, unit=unit, meaning=meaning, value=value, kind="float", **more)


def _number_of_cores(name: str, meaning: str) -> Column:
    def value(noise: NoiseRecord) -> float | None:
        found: float | None = getattr(noise, name)
        return found

    return _float(name, "", meaning, _noise(value), metric="time", why=_always("the system does not tell"))


def _ratio(name: str, meaning: str, value: Callable[[Row], Value], **more: Any) -> Column:
    return Column(
        name=name,
        unit="0-1",
        meaning=meaning,
        value=value,
        kind="float",
        format=units.percent,
        scales=units.SHARES,
        **more,
    )


_WHAT = (
    _text(
        "model",
        "Name as the user gives it: variant, `@implementation`, arguments in brackets.",
        lambda r: r.cell.model,
    ),
    _text("family", "Published architecture.", lambda r: r.cell.family),
    _text("variant", "Named size of the family.", lambda r: r.cell.variant),
    _text(
        "implementation",
        "Whose code ran: `native` (ours), `timm`, or `upstream` (the authors').",
        lambda r: r.cell.implementation,
    ),
    _int("resolution", "px", "Pixels per side of the square input.", lambda r: r.cell.resolution),
    _int("batch_size", "images", "Images in one iteration.", lambda r: r.cell.batch_size),
    _text(
        "mode", "`infer`: one forward; `train`: forward, backward and optimizer step.", lambda r: r.cell.mode
    ),
    _text("dtype", "Number format of the computation.", lambda r: r.cell.dtype),
    _text("device", "Where it ran, in torch's words.", lambda r: r.cell.device),
    _text(
        "status",
        "How the cell ended; `ok`, or what went wrong. Only `ok` rows are ranked.",
        lambda r: r.status,
    ),
    _text("reason", "Why the status is not ok.", lambda r: r.reason, why=_always("the status says all")),
)

_COST = (
    _number("params", "Unique parameters.", _of(_count, lambda c: c.params), metric="count"),
    _number(
        "macs",
        "Multiply-adds of one forward of one image in eval mode.",
        _of(_count, lambda c: c.macs),
        metric="count",
    ),
    _number(
        "flops", "Floating-point operations: 2 x `macs`.", _of(_count, lambda c: c.flops), metric="count"
    ),
    _number(
        "scan_flops",
        "Operations of selective scans, 9 x batch x length x width x states; not part of `flops`.",
        _of(_count, lambda c: c.scan_flops),
        metric="count",
    ),
    _ratio(
        "flops_coverage",
        "Output elements of operators with a formula / (those + of unknown operators).",
        _of(_count, lambda c: c.coverage),
        metric="count",
        why=_always("no operator with a formula, and none unknown"),
    ),
    _seconds(
        "latency_median_s",
        "Median duration of one iteration; its batch already lies on the device.",
        _latency,
        metric="time",
        why=_no_samples,
    ),
    _seconds(
        "latency_low_s",
        "Low end of the median's 95 % interval by order statistics (sign test; free of a distribution).",
        _latency_end(0),
        metric="time",
        why=_few(6, "an interval"),
    ),
    _seconds(
        "latency_high_s", "High end of the same.", _latency_end(1), metric="time", why=_few(6, "an interval")
    ),
    _seconds(
        "latency_p90_s",
        "90th percentile of the duration; from 29 samples on.",
        _of(_timing, lambda t: stats.quantile(t.samples_s, 0.9)),
        metric="time",
        why=_few(29, "a 90th percentile"),
    ),
    _seconds(
        "latency_p99_s",
        "99th percentile of the duration; from 299 samples on.",
        _of(_timing, lambda t: stats.quantile(t.samples_s, 0.99)),
        metric="time",
        why=_few(299, "a 99th percentile"),
    ),
    _rate(
        "throughput_img_s",
        "`batch_size` / `latency_median_s`.",
        _rate_of(_latency),
        metric="time",
        why=_no_samples,
    ),
    _int(
        "samples",
        "",
        "Iterations timed after the warm-up.",
        _of(_timing, lambda t: len(t.samples_s)),
        metric="time",
    ),
    _text(
        "verdict",
        "`stable`: as precise as asked; `noisy`: the budget was spent before; `budget`: under 6 samples.",
        _of(_timing, lambda t: t.verdict),
        metric="time",
    ),
    _ratio(
        "mfu",
        "FLOP/s achieved / the device's peak in this dtype; a train step counts as three forwards.",
        _mfu,
        metric="time",
        why=_why_no_mfu,
    ),
    _bytes(
        "peak_memory_bytes",
        "Highest memory while one iteration runs in the steady state, above what the process held before the "
        "model was built.",
        _of(_memory, lambda m: m.peak_bytes),
    ),
)

_QUALITY = (
    _ratio(
        "top1",
        "Share of held-out images whose best class is right.",
        _share(lambda a: a.correct_top1),
        metric="accuracy",
        why=_always("no images"),
    ),
    _ratio(
        "top1_low",
        "Low end of its Wilson 95 % interval.",
        _end(lambda a: a.correct_top1, 0),
        metric="accuracy",
        why=_always("no images"),
    ),
    _ratio(
        "top1_high",
        "High end of the same.",
        _end(lambda a: a.correct_top1, 1),
        metric="accuracy",
        why=_always("no images"),
    ),
    _ratio(
        "top5",
        "Share of held-out images with the right class among the best five.",
        _share(lambda a: a.correct_top5),
        metric="accuracy",
        why=_always("too few classes"),
    ),
    _int("num_classes", "", "Classes the model tells apart.", lambda r: r.cell.num_classes),
    _int(
        "images",
        "images",
        "Held-out images the accuracy was measured on.",
        _of(_accuracy, lambda a: a.images),
        metric="accuracy",
    ),
    _text(
        "dataset", "Where the images came from.", lambda r: r.accuracy.dataset if r.accuracy else r.cell.data
    ),
    _text("weights", "File name of the weights.", lambda r: r.cell.weights, why=_always("fresh weights")),
)

_MORE_TIME = (
    _rate(
        "throughput_low_img_s",
        "`batch_size` / `latency_high_s`.",
        _rate_of(_latency_end(1)),
        metric="time",
        why=_few(6, "an interval"),
    ),
    _rate(
        "throughput_high_img_s",
        "`batch_size` / `latency_low_s`.",
        _rate_of(_latency_end(0)),
        metric="time",
        why=_few(6, "an interval"),
    ),
    _ratio(
        "latency_half_width",
        "Half the width of the 95 % interval / median.",
        _of(_timing, lambda t: stats.relative_half_width(t.samples_s)),
        metric="time",
        why=_few(6, "an interval"),
    ),
    _ratio(
        "latency_drift",
        "Change during the measurement, where two rank tests at 1 % find one of at least 2 %.",
        _of(_timing, lambda t: stats.drift(t.samples_s)),
        metric="time",
        why=_always("no drift was found"),
    ),
    _int(
        "rounds",
        "",
        "Rounds of this cell that were timed (`--repeats`); every one is a row.",
        lambda r: len(r.rounds_s) or 1 if r.timing and r.timing.samples_s else None,
        metric="time",
        why=_no_samples,
    ),
    _ratio(
        "round_spread",
        "Largest - smallest of the rounds' median latencies / their median; the same in all rounds' rows.",
        lambda r: stats.spread(r.rounds_s),
        metric="time",
        why=_always("needs two rounds that were timed (--repeats)"),
    ),
    _int(
        "warmup_samples",
        "",
        "Iterations before the counted ones.",
        _of(_timing, lambda t: len(t.warmup_s)),
        metric="time",
    ),
    _seconds(
        "first_iteration_s",
        "First iteration, never counted: allocation, cuDNN's autotune or oneDNN's choice of kernels, caches; "
        "attention's kernels are watched in it.",
        _of(_timing, lambda t: t.warmup_s[0] if t.warmup_s else None),
        metric="time",
        why=_always("not recorded"),
    ),
    _seconds(
        "compile_s",
        "Compiling (`torch.compile`, the kernels of selective scans), before the first iteration.",
        lambda r: r.overhead_s.get("compile"),
        why=_always("not compiled"),
    ),
    _number_of_cores("load_cores", "Cores that other processes kept busy while it was timed."),
    _number_of_cores("own_cores", "Cores that the cell's own process kept busy while it was timed."),
    _ratio(
        "steal",
        "Share of the machine's time that the hypervisor took for others while it was timed.",
        _noise(lambda n: n.steal),
        metric="time",
        why=_always("the system does not tell"),
    ),
    _float(
        "clock_hz",
        "Hz",
        "Median clock of the device while it was timed: its fastest core's, or the GPU's SM clock.",
        _noise(lambda n: n.clock_hz),
        metric="time",
        why=_no_sensor,
    ),
    _ratio(
        "clock_change",
        "Median clock in the later half of the looks at it / in the earlier half - 1.",
        _noise(lambda n: n.clock_change),
        metric="time",
        why=_no_sensor,
    ),
    _float(
        "temperature_c",
        "°C",
        "Highest temperature of the GPU while it was timed.",
        _noise(lambda n: n.temperature_c),
        metric="time",
        why=_no_sensor,
    ),
    _text(
        "slowdowns",
        "Reasons that the GPU gave for running slower than asked while it was timed.",
        _noise(lambda n: ", ".join(n.slowdowns) or None),
        metric="time",
        why=_no_slowdowns,
    ),
    Column(
        name="train_hours",
        unit="h",
        meaning="Hours that training takes on this one device: images x epochs of `train_length` / "
        "`throughput_img_s`; loading data and evaluating are not in it.",
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
        why=_always("not asked for (--hours-for)"),
    ),
    _text(
        "tried_batches",
        "What `--batch auto` tried, as JSON: batch, status, images per second, peak bytes, and why not.",
        lambda r: _json([tried.model_dump(exclude_none=True) for tried in r.batches]),
        why=_always("the batch was given"),
    ),
    _seconds(
        "forward_s",
        "Train mode: median duration of the forward pass.",
        _step_part("forward"),
        metric="time",
        why=_always("timed in train mode only"),
    ),
    _seconds(
        "backward_s",
        "Train mode: median duration of the backward pass.",
        _step_part("backward"),
        metric="time",
        why=_always("timed in train mode only"),
    ),
    _seconds(
        "optimizer_s",
        "Train mode: median duration of the optimizer step.",
        _step_part("optimizer"),
        metric="time",
        why=_always("timed in train mode only"),
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
        _of(_tensors, lambda t: t.peak_bytes),
    ),
    *(
        _bytes(
            f"{part}_memory_bytes",
            f"Part of the peak: {meaning}.",
            _memory_part(part),
            why=_always("not known apart"),
        )
        for part, meaning in _PARTS.items()
    ),
    _bytes(
        "reserved_memory_bytes",
        "What the process (on a GPU: the allocator) held at most above the baseline, building and freed "
        "memory that it keeps included.",
        _of(_memory, lambda m: m.reserved_bytes),
        why=_always("not recorded by this version"),
    ),
    _bytes(
        "baseline_memory_bytes",
        "What the process held before the model was built; not part of the peak.",
        _of(_memory, lambda m: m.baseline_bytes),
    ),
    _text("memory_source", "How the peak was read.", _of(_memory, lambda m: m.source), metric="memory"),
)

_MORE_MODEL = (
    _text(
        "reach",
        "What was done to the model to take this size.",
        _of(_size, lambda s: s.reach),
        why=_always("the cell ended before it was known"),
    ),
    _ratio(
        "padding_ratio",
        "Tokens of padding for each token of image in the stage that pads most.",
        _of(_size, lambda s: s.padding_ratio),
        why=_always("nothing pads, or it is not known"),
    ),
    _text(
        "size_arguments",
        "Arguments that followed from the resolution, as JSON.",
        _of(_size, lambda s: _json(s.arguments)),
        why=_always("none"),
    ),
    _int(
        "random_tensors",
        "",
        "Tensors that the weights do not hold for this size, so that they were random.",
        _of(_size, lambda s: len(s.random_tensors)),
        why=_always("the cell ended before it was known"),
    ),
    _text(
        "unknown_operators",
        "Operators without a formula and their output elements, as JSON.",
        _of(_count, lambda c: _json(c.unknown) or "{}"),
        metric="count",
    ),
    _ratio(
        "top5_low",
        "Low end of top-5's Wilson 95 % interval.",
        _end(lambda a: a.correct_top5, 0),
        metric="accuracy",
        why=_always("too few classes"),
    ),
    _ratio(
        "top5_high",
        "High end of the same.",
        _end(lambda a: a.correct_top5, 1),
        metric="accuracy",
        why=_always("too few classes"),
    ),
    _int(
        "answer_classes",
        "",
        "Classes of the data, among which the answers were chosen.",
        _of(_accuracy, lambda a: a.classes),
        metric="accuracy",
        why=_always("all that the model tells apart"),
    ),
    _text(
        "normalisation",
        "Mean and deviation, by channel, that the weights want of a folder's images, as JSON.",
        lambda r: _json(r.cell.normalisation),
        why=_always("the data's own"),
    ),
    _text(
        "reshaped",
        "Tensors of the weights that were fitted to the size, and how, as JSON.",
        _of(_size, lambda s: _json(s.reshaped)),
        why=_always("none"),
    ),
    _int(
        "trained_resolution",
        "px",
        "Resolution the weights were trained at.",
        _of(_accuracy, lambda a: a.trained_resolution),
        metric="accuracy",
        why=_always("the weights do not say"),
    ),
    _text(
        "weights_sha256",
        "Hash of the weight file.",
        lambda r: r.cell.weights_sha256,
        why=_always("fresh weights"),
    ),
    _text(
        "validity",
        "Whether the logits can be believed: `ok`, `invalid`, or `not checked`.",
        _of(_validity, lambda v: v.verdict),
        metric="validity",
    ),
    _text(
        "validity_reference",
        "What the logits were compared with.",
        _of(_validity, lambda v: v.reference),
        metric="validity",
    ),
    _ratio(
        "validity_error",
        "Largest difference from the reference, of the logits or of sampled operators / its largest value.",
        _of(_validity, lambda v: v.reference_error),
        metric="validity",
        why=_always("not compared"),
    ),
    _ratio(
        "validity_batch_error",
        "The same between an image alone and in a batch.",
        _of(_validity, lambda v: v.batch_error),
        metric="validity",
        why=_always("not compared"),
    ),
)

_CONDITIONS = (
    _text(
        "arguments",
        "Arguments given in brackets, as JSON.",
        lambda r: _json(r.cell.arguments),
        why=_always("none"),
    ),
    _int(
        "threads",
        "",
        "Processor threads within an operator; eager models run one operator at a time.",
        lambda r: r.cell.threads,
    ),
    _text("memory_format", "Layout of images and convolution weights.", lambda r: r.cell.memory_format),
    _text("fused", "`yes` where batch norms were folded into convolutions.", lambda r: _yes(r.cell.fuse)),
    _text(
        "grad_checkpointing",
        "`yes` where training keeps blocks' inputs only and computes the rest again.",
        lambda r: _yes(r.cell.grad_checkpointing),
    ),
    _text("compiled", "`yes` where the model ran through torch.compile.", lambda r: _yes(r.cell.compile)),
    _text("data", "Images that were fed.", lambda r: r.cell.data),
    _int("seed", "", "Seed of fresh weights and labels.", lambda r: r.cell.seed),
    _int("round", "", "Which round of a repeated sweep, from 0.", lambda r: r.cell.round),
    _text(
        "backends",
        "What ran where there was a choice, as JSON.",
        lambda r: _json(r.backends),
        why=_always("there was no choice, or none ran"),
    ),
    _text(
        "attention",
        "Kernels of softmax attention: flash, efficient, cudnn, math, or unfused (the model's own).",
        lambda r: r.attention,
        why=_always("not observed in this row"),
    ),
)

_PHASES = (
    (
        "start_s",
        "From handing the cell over until its process measures; a sweep's first cell waits for torch too.",
        (START,),
    ),
    ("import_s", "Reading the card and importing the module that builds the model.", (IMPORT,)),
    ("build_s", "Building the model and loading its weights.", (BUILD,)),
    ("other_s", "Loading data and starting kernel libraries in the cell's process.", (OTHER,)),
    ("teardown_s", "From the finished row until the cell's process is gone.", (TEARDOWN,)),
    (
        "overhead_s",
        "What goes to neither building nor measuring: `start_s` + `import_s` + `other_s` + `teardown_s`.",
        HARNESS,
    ),
)


def _phase(name: str, meaning: str, phases: tuple[str, ...]) -> Column:
    return _seconds(name, meaning, lambda r: spent(r.overhead_s, *phases), why=_always("it never ran"))


_RECORD = (
    _seconds("budget_s", "Seconds given for warm-up and samples.", lambda r: r.settings.budget_s),
    _ratio("precision", "Wanted half-width of the 95 % interval / median.", lambda r: r.settings.precision),
    _seconds(
        "timeout_s", "Seconds after which the cell would have been ended.", lambda r: r.settings.timeout_s
    ),
    *(_phase(name, meaning, phases) for name, meaning, phases in _PHASES),
    _seconds(
        "measure_s",
        "Counting, compiling, timing, validity, accuracy; where the cell broke off, its last seconds too.",
        lambda r: measuring(r.overhead_s),
        why=_always("it never ran"),
    ),
    _text("notes", "Codes of the row's warnings.", note_codes, why=_always("no warnings")),
    _text(
        "null_reasons",
        "Why what should be measured has no value, as JSON: metric or column -> reason.",
        lambda r: _json(null_reasons(r)),
        why=_always("every measured column has a value"),
    ),
    _int("attempt", "", "How often the cell was run; only the last is shown.", lambda r: r.attempt),
    _text("key", "Identity of the measurement: cell, code, weights and environment.", lambda r: r.key),
    _text("started", "When it began, UTC.", lambda r: r.started),
    _text(
        "machine",
        "Processor or GPU model and core count.",
        lambda r: r.machine or None,
        why=_always("the row was made apart from a sweep"),
    ),
    _int("schema", "", "Version of the stored row.", lambda r: r.version),
)

COLUMNS: tuple[Column, ...] = (
    *_WHAT,
    *_COST,
    *_QUALITY,
    *_MORE_TIME,
    *_MORE_MEMORY,
    *_MORE_MODEL,
    *_CONDITIONS,
    *_RECORD,
)
BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}


def columns_markdown() -> str:
    """results/README.md: what lies in a run's directory, and every column."""
    lines = [_README.strip(), "", "| column | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{c.name}` | {c.unit} | {c.meaning.replace('|', chr(92) + '|')} |" for c in COLUMNS]
    return "\n".join(lines) + "\n"


_README = """
# Results

Generated from `longvis_bench/columns.py`; a test keeps the two equal.

`reference/<machine>/<run>/` holds committed runs; `runs/` is where `longvis bench` writes, and git ignores
it. A run's directory holds

- `run.json`: the resolved configuration (`longvis bench --config run.json` measures the same again), the
  environment and its versions;
- `cells.jsonl`: one row a cell, with raw samples; everything below is derived from it by `longvis report`;
- `summary.csv`: all columns below; `summary.md`: the main ones, with footnotes; `plots/`: figures;
- `predictions/<key>.npz`: what was predicted, and for which image, where accuracy was measured; `classes.csv`
  and `confusion.csv`: accuracy by class, and which classes were taken for which, made from them.

Unknown is `null` in JSON, empty in CSV, `-` in tables and `<NA>` in a frame, never 0, -1 or NaN; the column
`null_reasons` says why. Accuracies and other shares are 0-1. In the CSV a text that a spreadsheet would take
for a formula is preceded by an apostrophe.

A cell ends in one of these statuses: `ok`, `oom` (out of the device's memory), `host_oom` (out of the
machine's memory), `timeout`, `illegal_size`, `missing_dependency`, `unsupported`, `invalid` (wrong logits),
`crashed`, `error`, `skipped`.

## Columns
"""
