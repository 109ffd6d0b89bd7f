"""The closed list of warnings on rows: each names a number in doubt and what the user can do about it.

A warning never changes a number or a status.  `of` returns all warnings that apply to a row; the cell's
process stores them in the row, and `longvis` prints them below the tables only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from longvis_bench import stats, units
from longvis_bench.records import AccuracyRecord, NoiseRecord, Row, RowWarning, TimingRecord

LOAD_LIMIT = 0.1
"""Number of cores that other processes may keep busy while a cell is timed, without a warning."""
STEAL_LIMIT = 0.02
"""Share of steal time (time given to other guests) without a warning."""
CLOCK_LIMIT = 0.05
"""Relative change of the processor's or GPU's clock without a warning."""
REPEATS_LIMIT = 0.02
"""Spread between repeats, as a share of their median, without a warning."""
TEMPERATURE_MARGIN_C = 5.0
"""A device is hot within this many degrees of its throttling temperature."""
PADDING_LIMIT = 0.5
"""Padding tokens per image token without a warning."""
ACCURACY_LIMIT = 0.1
"""Half-width of an accuracy's 95 % interval without a warning."""
HOST_SHARE = 0.9
"""A cell is host-bound if the host takes at least this share of the iteration to launch its kernels."""
THROTTLED_SHARE = 0.9
"""A throttling reason causes a warning only below this share of the GPU's highest clock."""
OVER_TENSORS_BYTES, OVER_TENSORS_SHARE = 64 << 20, 0.5
"""Excess of the measured peak over that of the tensors without a warning: the larger of bytes and share."""


@dataclass(frozen=True)
class WarningKind:
    """One kind of warning: its code, the number in doubt, and what helps."""

    code: str
    column: str
    """The column whose number is in doubt; tables mark its value."""
    advice: str

    def warning(self, message: str) -> RowWarning:
        """A warning of this kind; the message is a clause without a full stop."""
        return RowWarning(code=self.code, message=message, advice=self.advice)


FEW_SAMPLES = WarningKind("few_samples", "latency_median_s", "Give the cell more time with --budget.")
NOISY = WarningKind(
    "noisy",
    "latency_median_s",
    "Stop other load on this machine, raise --budget, or accept a wider interval with --precision.",
)
DISTURBED = WarningKind(
    "disturbed",
    "latency_median_s",
    "Stop other programs on this machine, then measure again with --fresh.",
)
SINGLE = WarningKind(
    "single",
    "latency_median_s",
    "Leave out --quick or raise --budget: another process may differ by much more than the interval shows.",
)
DRIFT = WarningKind(
    "drift",
    "latency_median_s",
    "Repeat the sweep with --repeats 3, and trust a difference between models only if all repeats show it.",
)
LOAD = WarningKind("load", "latency_median_s", "Stop other programs on this machine, then measure again.")
STEAL = WarningKind("steal", "latency_median_s", "Use a machine or virtual cores without other guests.")
CLOCK = WarningKind(
    "clock", "latency_median_s", "Fix the clock frequency, or warm the machine up with a longer --budget."
)
HOT = WarningKind("hot", "latency_median_s", "Cool the device, then measure again.")
THROTTLED = WarningKind(
    "throttled", "latency_median_s", "Cool the device or lift its power limit, then measure again."
)
HOST_BOUND = WarningKind(
    "host_bound",
    "latency_median_s",
    "The GPU waits for Python: compare models at a larger --batch, or with --compile.",
)
REPEATS = WarningKind(
    "rounds",
    "latency_median_s",
    "Use the spread between repeats, not the interval within one, and measure more repeats (--repeats).",
)
OVER_PEAK = WarningKind(
    "over_peak",
    "mfu",
    "Trust neither number and report the row: the count, the time or the table of peak FLOP/s is wrong.",
)
COVERAGE = WarningKind(
    "coverage",
    "macs",
    "Read MACs and FLOPs as lower bounds; `longvis flops NAME` lists the operators without a formula.",
)
PADDING = WarningKind(
    "padding",
    "resolution",
    "Choose a multiple of the model's window size; `longvis models NAME` lists legal sizes.",
)
WIDE_ACCURACY = WarningKind("wide_accuracy", "top1", "Measure on more images with --images.")
OTHER_RESOLUTION = WarningKind(
    "other_resolution",
    "top1",
    "Train at this size (`longvis train --res`) to measure the accuracy that the model can reach.",
)
OVER_TENSORS = WarningKind(
    "over_tensors",
    "peak_memory_bytes",
    "See the parts of the peak in summary.csv; libraries and the allocator hold the rest.",
)
RANDOM_TENSORS = WarningKind(
    "random_tensors", "weights", "Use weights for this size; accuracy is not measured with random tensors."
)
RESTRICTED = WarningKind(
    "restricted",
    "top1",
    "Compare it only with accuracies restricted to the same classes, not with published ones.",
)
RESHAPED = WarningKind(
    "reshaped",
    "top1",
    "Fine-tune at this size (`longvis train --from`) to measure the accuracy that the model can reach.",
)
CLASS_ORDER = WarningKind(
    "class_order",
    "top1",
    "Say the order of the logits with --class-order natural or sorted, or with --classes FILE.",
)
PLAIN_SCAN = WarningKind(
    "plain_scan",
    "latency_median_s",
    "Install what `longvis doctor` names as absent (Triton, a C compiler, Python.h), then measure again.",
)
EMULATED = WarningKind("emulated", "latency_median_s", "Use --dtype fp16, which this GPU computes natively.")
CHANGED_SETTINGS = WarningKind(
    "changed_settings",
    "latency_median_s",
    "Remove the call that changes it from the model's code, or set it for the whole process.",
)

KINDS: dict[str, WarningKind] = {
    kind.code: kind
    for kind in (
        FEW_SAMPLES,
        NOISY,
        DISTURBED,
        SINGLE,
        DRIFT,
        LOAD,
        STEAL,
        CLOCK,
        HOT,
        THROTTLED,
        HOST_BOUND,
        REPEATS,
        OVER_PEAK,
        COVERAGE,
        PADDING,
        WIDE_ACCURACY,
        OTHER_RESOLUTION,
        OVER_TENSORS,
        RANDOM_TENSORS,
        RESTRICTED,
        RESHAPED,
        CLASS_ORDER,
        PLAIN_SCAN,
        EMULATED,
        CHANGED_SETTINGS,
    )
}
"""Code -> kind, in the order in which rows list their warnings."""
_LATENCY = {kind.code for kind in KINDS.values() if kind.column == "latency_median_s"}


def of(row: Row) -> tuple[RowWarning, ...]:
    """Every warning that follows from a row alone; an unknown value causes none."""
    noise = row.timing.noise if row.timing else NoiseRecord()
    if row.timing and row.timing.processes:  # a disturbed process is left out, or the verdict says so
        noise = noise.model_copy(update={"load_cores": None, "steal": None})
    return (
        *_samples(row),
        *_machine(noise, _host_share(row.timing)),
        *_device(noise),
        *_host(row.timing),
        *_coverage(row),
        *_padding(row),
        *_wide(row.accuracy),
        *_memory(row),
        *_weights(row),
        *_restricted(row),
        *_reshaped(row),
        *_class_order(row),
        *_scan(row),
        *_emulated(row),
        *_changed_settings(row),
    )


def with_latency(row: Row) -> tuple[RowWarning, ...]:
    """The row's warnings, with those on its latency recomputed after a further process was timed."""
    return renewed(row, _LATENCY)


def renewed(row: Row, codes: Collection[str]) -> tuple[RowWarning, ...]:
    """The row's warnings, with those of these codes recomputed."""
    others = tuple(note for note in row.notes if note.code not in codes)
    return (*(note for note in of(row) if note.code in codes), *others)


def of_repeats(medians_s: Sequence[float], widest: float | None) -> tuple[RowWarning, ...]:
    """The warning that the repeats of a cell disagree, if they do.

    Arguments:
        medians_s: median latency of each repeat, in seconds.
        widest: width of the widest 95 % interval of one repeat, as a share of its median; None if unknown.
    """
    between = stats.spread(medians_s)
    if between is None or widest is None or between <= max(widest, REPEATS_LIMIT):
        return ()
    message = (
        f"the medians of {len(medians_s)} repeats differ by {units.percent(between)}, "
        f"and the interval within one repeat is at most {units.percent(widest)} wide"
    )
    return (REPEATS.warning(message),)


def _processes(timing: TimingRecord, precision: float) -> Iterator[RowWarning]:
    """Warnings on all processes of a cell together; an excluded disturbed process needs none."""
    processes = timing.by_process(clean=True)
    disturbed = [process.disturbed for process in timing.processes if process.disturbed]
    if timing.verdict == "disturbed":
        yield DISTURBED.warning(f"while it was timed {disturbed[0]}")
    elif timing.verdict == "single":
        yield SINGLE.warning("it was timed in one process")
    elif timing.verdict == "noisy":
        count = units.several(len(processes), "process", "processes")
        width = stats.latency_half_width(processes, timing.others_spread)
        if width is None:
            wide, target = "unknown", units.percent(precision)
        else:
            wide, target = units.percents_apart(width, precision)
            wide = f"±{wide}"
        yield NOISY.warning(f"the latency's 95 % interval over {count} is {wide}; the target is ±{target}")
    elif timing.others_spread is not None and len(processes) < stats.OWN_PROCESSES:
        count = units.several(len(processes), "undisturbed process", "undisturbed processes")
        yield FEW_SAMPLES.warning(
            f"it was timed in {count}, so its interval is from the spread between processes of other cells"
        )


def _samples(row: Row) -> Iterator[RowWarning]:
    if row.timing is None:
        return
    if row.timing.processes:
        yield from _processes(row.timing, row.settings.precision)
        return
    samples, precision = row.timing.samples_s, row.settings.precision
    if len(samples) < stats.MIN_SAMPLES:
        yield FEW_SAMPLES.warning(
            f"{units.several(len(samples), 'sample')} within the budget, and an interval needs "
            f"{stats.MIN_SAMPLES}"
        )
    width = stats.relative_half_width(samples)
    if width is not None and width > precision:
        wide, target = units.percents_apart(width, precision)
        yield NOISY.warning(f"the latency's 95 % interval is ±{wide}, wider than the target of ±{target}")
    change = stats.drift(samples)
    if change is not None:
        word = "slower" if change > 0 else "faster"
        yield DRIFT.warning(f"the model became {units.percent(abs(change))} {word} while it was timed")


def of_mfu(mfu: float | None) -> tuple[RowWarning, ...]:
    """The warning that a row exceeds the peak of its device, if it does."""
    if mfu is None or mfu <= 1:
        return ()
    return (OVER_PEAK.warning(f"count and time give {units.percent(mfu)} of the device's peak FLOP/s"),)


def _host_share(timing: TimingRecord | None) -> float | None:
    """Share of an iteration in which the host launches its kernels; None on a CPU."""
    device = stats.median(timing.samples_s) if timing else None
    host = stats.median(timing.host_s) if timing else None
    return host / device if device and host is not None else None


def _host(timing: TimingRecord | None) -> Iterator[RowWarning]:
    share = _host_share(timing)
    if share is not None and share >= HOST_SHARE:
        yield HOST_BOUND.warning(
            f"the host took {units.percent(min(1.0, share))} of the time to launch the kernels"
        )


def _machine(noise: NoiseRecord, host_share: float | None) -> Iterator[RowWarning]:
    """Other load on the host; it does not matter to a GPU that is slower than the host."""
    load, steal, clock = noise.load_cores, noise.steal, noise.clock_change
    is_waited_for = host_share is None or host_share >= HOST_SHARE
    if load is not None and load > LOAD_LIMIT and is_waited_for:
        yield LOAD.warning(f"other processes kept {units.significant(load, 2)} cores busy")
    if steal is not None and steal > STEAL_LIMIT:
        yield STEAL.warning(f"the hypervisor gave {units.percent(steal)} of the time to other guests")
    if clock is not None and abs(clock) > CLOCK_LIMIT:
        word = "rose" if clock > 0 else "fell"
        yield CLOCK.warning(f"the clock frequency {word} by {units.percent(abs(clock))}")


def _device(noise: NoiseRecord) -> Iterator[RowWarning]:
    temperature, limit = noise.temperature_c, noise.temperature_limit_c
    if temperature is not None and limit is not None and temperature > limit - TEMPERATURE_MARGIN_C:
        yield HOT.warning(
            f"the device reached {units.plain(round(temperature))} °C, and it throttles at "
            f"{units.plain(round(limit))} °C"
        )
    clock, highest = noise.clock_hz, noise.clock_limit_hz
    is_fast = clock is not None and highest is not None and clock >= THROTTLED_SHARE * highest
    if noise.slowdowns and not is_fast:
        yield THROTTLED.warning(f"the device throttled ({', '.join(noise.slowdowns)})")


def _coverage(row: Row) -> Iterator[RowWarning]:
    if row.count is None or row.count.coverage is None or row.count.coverage >= 1:
        return
    unknown = row.count.unknown
    names = sorted(unknown, key=lambda name: -unknown[name])
    shown = units.listing(names, 3) or "unnamed operators"
    yield COVERAGE.warning(
        f"operators without a cost formula make {units.percent(1 - row.count.coverage)} of the output "
        f"elements: {shown}"
    )


def _padding(row: Row) -> Iterator[RowWarning]:
    ratio = row.size.padding_ratio if row.size else None
    if ratio is not None and ratio > PADDING_LIMIT:
        yield PADDING.warning(f"padding adds {units.percent(ratio)} to the image's tokens")


def _memory(row: Row) -> Iterator[RowWarning]:
    if row.memory is None or row.tensors is None:
        return
    tensors = row.tensors.peak_bytes
    over = row.memory.peak_bytes - tensors
    if over > max(OVER_TENSORS_BYTES, OVER_TENSORS_SHARE * tensors):
        yield OVER_TENSORS.warning(
            f"{units.size(over)} above the tensors' {units.size(tensors)}: workspaces, allocator, caches"
        )


def _wide(accuracy: AccuracyRecord | None) -> Iterator[RowWarning]:
    if accuracy is None or not accuracy.images:
        return
    interval = stats.wilson(accuracy.correct_top1, accuracy.images)
    if interval is not None and (interval.high - interval.low) / 2 > ACCURACY_LIMIT:
        yield WIDE_ACCURACY.warning(
            f"the 95 % interval over {units.several(accuracy.images, 'image')} is "
            f"{units.percent(interval.low)} to {units.percent(interval.high)}"
        )


def _weights(row: Row) -> Iterator[RowWarning]:
    trained = row.accuracy.trained_resolution if row.accuracy and row.accuracy.images else None
    if trained is not None and trained != row.cell.resolution:
        yield OTHER_RESOLUTION.warning(f"the weights were trained at {trained} px")
    random = row.size.random_tensors if row.size else ()
    if random:
        yield RANDOM_TENSORS.warning(
            f"{units.several(len(random), 'tensor')} without values in the weights, so random: "
            f"{units.listing(random, 3)}"
        )


def _restricted(row: Row) -> Iterator[RowWarning]:
    if row.accuracy is not None and row.accuracy.classes is not None:
        yield RESTRICTED.warning(
            f"predictions are restricted to {row.accuracy.classes} of the {row.cell.num_classes} classes "
            "of the weights"
        )


def _reshaped(row: Row) -> Iterator[RowWarning]:
    if row.size and row.size.reshaped and row.accuracy and row.accuracy.images:
        name, done = next(iter(row.size.reshaped.items()))
        others = len(row.size.reshaped) - 1
        more = f", and {units.several(others, 'more tensor')}" if others else ""
        yield RESHAPED.warning(f"for this size {name} was {done}{more}")


def _scan(row: Row) -> Iterator[RowWarning]:
    if row.cell.device.startswith("cuda") and row.backends.get("scan") == "torch":
        yield PLAIN_SCAN.warning("the selective scan ran in plain torch, for want of a kernel for this GPU")


def _emulated(row: Row) -> Iterator[RowWarning]:
    if row.cell.dtype == "bf16" and row.numerics.get("native_bf16") == "false":
        yield EMULATED.warning(
            "bf16 is emulated on this GPU, which has no tensor cores for it (before Ampere)"
        )


def _class_order(row: Row) -> Iterator[RowWarning]:
    if row.accuracy is not None and row.accuracy.class_doubt is not None:
        yield CLASS_ORDER.warning(row.accuracy.class_doubt)


def _changed_settings(row: Row) -> Iterator[RowWarning]:
    if row.changed_settings:
        names = units.listing(list(row.changed_settings), 3)
        yield CHANGED_SETTINGS.warning(f"the model's code changed settings of the whole process: {names}")
