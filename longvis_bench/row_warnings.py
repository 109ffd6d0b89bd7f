"""The closed list of warnings a row can carry: what may be wrong with its numbers, and what to do about it.

A warning never changes a number or a status.  `notes_for` looks at plain values and returns all that apply;
the worker stores them in the row, and `tables.py` prints them below the table, nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from longvis_bench import stats, units
from longvis_bench.records import Note

LOAD_LIMIT = 0.1
"""Share of a core that other processes may take while a cell is timed."""
STEAL_LIMIT = 0.02
"""Share of the time that a hypervisor may take while a cell is timed."""
CLOCK_LIMIT = 0.05
"""Share by which a processor's or GPU's clock may change while a cell is timed."""
ROUNDS_LIMIT = 0.02
"""Spread between rounds, as a share of their median, that goes without a warning."""
TEMPERATURE_MARGIN_C = 5.0
"""Degrees below its slow-down temperature from which on a device is called hot."""
PADDING_LIMIT = 0.5
ACCURACY_LIMIT = 0.1
"""Widest half-width of an accuracy's 95 % interval that goes without a warning."""
OVER_TENSORS_BYTES, OVER_TENSORS_SHARE = 64 << 20, 0.5
"""What a measured peak may exceed that of the tensors by without a warning: the larger of the two."""
MIN_SAMPLES = 6


@dataclass(frozen=True)
class Kind:
    """One kind of warning."""

    code: str
    column: str
    """The column whose number is in doubt; tables put the mark there."""
    advice: str

    def note(self, message: str) -> Note:
        """A note of this kind; the message is a clause without a full stop."""
        return Note(code=self.code, message=message, advice=self.advice)


class Warn(Enum):
    """Every warning there is."""

    FEW_SAMPLES = Kind("few_samples", "latency_median_s", "Give the cell more time with --budget.")
    NOISY = Kind(
        "noisy",
        "latency_median_s",
        "Quiet the machine, give the cell more time with --budget, or ask for less with --precision.",
    )
    DRIFT = Kind(
        "drift",
        "latency_median_s",
        "Let the machine settle, or compare rounds of a repeated sweep (--repeats).",
    )
    LOAD = Kind("load", "latency_median_s", "Stop what else runs on this machine and measure again.")
    STEAL = Kind("steal", "latency_median_s", "Use a machine, or virtual cores, that nobody shares.")
    CLOCK = Kind(
        "clock", "latency_median_s", "Fix the clock, or let the machine warm up with a longer --budget first."
    )
    HOT = Kind("hot", "latency_median_s", "Cool the device, then measure again.")
    THROTTLED = Kind(
        "throttled", "latency_median_s", "Cool the device or lift its power limit, then measure again."
    )
    ROUNDS = Kind(
        "rounds",
        "latency_median_s",
        "Believe the spread between rounds, not the interval within one; take more rounds (--repeats).",
    )
    COVERAGE = Kind(
        "coverage",
        "macs",
        "Read MACs and FLOPs as lower bounds; `longvis flops NAME` shows the whole ledger.",
    )
    PADDING = Kind(
        "padding",
        "resolution",
        "Choose a size that the model's windows divide; `longvis models NAME` lists them.",
    )
    WIDE_ACCURACY = Kind("wide_accuracy", "top1", "Measure on more images with --images.")
    OTHER_RESOLUTION = Kind(
        "other_resolution",
        "top1",
        "Train at this size (`longvis train --res`) for the accuracy the model can reach.",
    )
    OVER_TENSORS = Kind(
        "over_tensors",
        "peak_memory_bytes",
        "The parts of the peak are in summary.csv; libraries and the allocator take the rest.",
    )
    RANDOM_TENSORS = Kind(
        "random_tensors", "weights", "Use weights made for this size; accuracy is not measured with these."
    )
    RESTRICTED = Kind(
        "restricted",
        "top1",
        "Compare it with accuracies that were restricted alike, not with published ones.",
    )
    RESHAPED = Kind(
        "reshaped",
        "top1",
        "Fine-tune at this size (`longvis train --from`) for the accuracy the model can reach.",
    )


KINDS: dict[str, Kind] = {warn.value.code: warn.value for warn in Warn}


def notes_for(
    *,
    samples_s: Sequence[float] | None = None,
    precision: float | None = None,
    load: float | None = None,
    steal: float | None = None,
    clock_change: float | None = None,
    temperature_c: float | None = None,
    temperature_limit_c: float | None = None,
    throttle: Sequence[str] = (),
    rounds_s: Sequence[float] = (),
    within_round: float | None = None,
    coverage: float | None = None,
    unknown: Mapping[str, int] | None = None,
    padding_ratio: float | None = None,
    correct_top1: int | None = None,
    images: int | None = None,
    resolution: int | None = None,
    trained_resolution: int | None = None,
    classes: int | None = None,
    num_classes: int | None = None,
    reshaped: Mapping[str, str] | None = None,
    random_tensors: Sequence[str] = (),
    peak_bytes: int | None = None,
    tensor_peak_bytes: int | None = None,
) -> tuple[Note, ...]:
    """Every warning that applies, in the order of `Warn`; what is None was not watched or not measured.

    Arguments:
        samples_s: counted latency samples, in the order taken.
        precision: wanted half-width of the 95 % interval, as a share of the median.
        load: cores that other processes kept busy meanwhile.
        steal: share of the time that the hypervisor took meanwhile, 0-1.
        clock_change: frequency at the end / at the beginning - 1.
        temperature_c: highest temperature of the device meanwhile, degrees Celsius.
        temperature_limit_c: where the device begins to slow itself down.
        throttle: reasons the device gave for slowing down, in its words.
        rounds_s: median latencies of all rounds of the cell.
        within_round: width of the widest interval of one round, as a share of its median.
        coverage: `flops_coverage`.
        unknown: operators without a formula -> output elements.
        padding_ratio: tokens of padding for each token of image.
        correct_top1: right answers.
        images: images the accuracy was measured on.
        resolution: of the cell, pixels per side.
        trained_resolution: of the weights, pixels per side.
        classes: among which the answers were chosen, where the model knows more.
        num_classes: that the model knows.
        reshaped: tensor of the weights -> how it was fitted to the size.
        random_tensors: names of tensors that the weights do not hold.
        peak_bytes: measured.
        tensor_peak_bytes: of the tensors alone.
    """
    notes = [
        *_samples(samples_s, precision),
        *_machine(load, steal, clock_change),
        *_device(temperature_c, temperature_limit_c, throttle),
        *_rounds(rounds_s, within_round),
        *_coverage(coverage, unknown or {}),
        *_padding(padding_ratio),
        *_accuracy(correct_top1, images),
        *_memory(peak_bytes, tensor_peak_bytes),
        *_weights(resolution, trained_resolution if images else None, random_tensors),
        *_restricted(classes, num_classes),
        *_reshaped(reshaped if images else None),
    ]
    return tuple(notes)


def _samples(samples: Sequence[float] | None, precision: float | None) -> Iterator[Note]:
    if samples is None:
        return
    if len(samples) < MIN_SAMPLES:
        yield Warn.FEW_SAMPLES.value.note(
            f"{units.several(len(samples), 'sample')} in the budget, and an interval needs {MIN_SAMPLES}"
        )
    width = stats.relative_half_width(samples)
    if width is not None and precision is not None and width > precision:
        yield Warn.NOISY.value.note(
            f"the latency's 95 % interval is ±{units.percent(width)}, "
            f"wider than the ±{units.percent(precision)} asked for"
        )
    change = stats.drift(samples)
    if change is not None:
        word = "slower" if change > 0 else "faster"
        yield Warn.DRIFT.value.note(f"it became {units.percent(abs(change))} {word} while it was timed")


def _machine(load: float | None, steal: float | None, clock_change: float | None) -> Iterator[Note]:
    if load is not None and load > LOAD_LIMIT:
        yield Warn.LOAD.value.note(f"other processes kept {units.significant(load, 2)} cores busy")
    if steal is not None and steal > STEAL_LIMIT:
        yield Warn.STEAL.value.note(f"the hypervisor took {units.percent(steal)} of the time for others")
    if clock_change is not None and abs(clock_change) > CLOCK_LIMIT:
        word = "rose" if clock_change > 0 else "fell"
        yield Warn.CLOCK.value.note(f"the clock frequency {word} by {units.percent(abs(clock_change))}")


def _device(temperature: float | None, limit: float | None, throttle: Sequence[str]) -> Iterator[Note]:
    if temperature is not None and limit is not None and temperature > limit - TEMPERATURE_MARGIN_C:
        yield Warn.HOT.value.note(
            f"the device reached {units.plain(round(temperature))} °C, and slows down at "
            f"{units.plain(round(limit))} °C"
        )
    if throttle:
        yield Warn.THROTTLED.value.note(f"the device slowed itself down ({', '.join(throttle)})")


def _rounds(medians: Sequence[float], within: float | None) -> Iterator[Note]:
    between = stats.spread(medians)
    if between is not None and within is not None and between > max(within, ROUNDS_LIMIT):
        yield Warn.ROUNDS.value.note(
            f"the medians of {len(medians)} rounds are {units.percent(between)} apart, "
            f"and the interval within one is at most {units.percent(within)} wide"
        )


def _coverage(coverage: float | None, unknown: Mapping[str, int]) -> Iterator[Note]:
    if coverage is None or coverage >= 1:
        return
    names = sorted(unknown, key=lambda name: -unknown[name])
    shown = units.listing(names, 3) or "unnamed operators"
    yield Warn.COVERAGE.value.note(f"{units.percent(1 - coverage)} of the output has no formula: {shown}")


def _padding(ratio: float | None) -> Iterator[Note]:
    if ratio is not None and ratio > PADDING_LIMIT:
        yield Warn.PADDING.value.note(f"padding adds {units.percent(ratio)} to the tokens of the image")


def _memory(peak: int | None, tensors: int | None) -> Iterator[Note]:
    if peak is None or tensors is None:
        return
    over = peak - tensors
    if over > max(OVER_TENSORS_BYTES, OVER_TENSORS_SHARE * tensors):
        yield Warn.OVER_TENSORS.value.note(
            f"{units.size(over)} over the tensors' {units.size(tensors)}: workspace, allocator, caches"
        )


def _accuracy(correct: int | None, images: int | None) -> Iterator[Note]:
    if correct is None or not images:
        return
    interval = stats.wilson(correct, images)
    if interval is not None and (interval.high - interval.low) / 2 > ACCURACY_LIMIT:
        yield Warn.WIDE_ACCURACY.value.note(
            f"{units.several(images, 'image')} give top-1 between "
            f"{units.percent(interval.low)} and {units.percent(interval.high)}"
        )


def _weights(resolution: int | None, trained: int | None, random: Sequence[str]) -> Iterator[Note]:
    if resolution is not None and trained is not None and trained != resolution:
        yield Warn.OTHER_RESOLUTION.value.note(f"the weights were trained at {trained} px")
    if random:
        yield Warn.RANDOM_TENSORS.value.note(
            f"{units.several(len(random), 'tensor')} not in the weights and so random: "
            f"{units.listing(random, 3)}"
        )


def _restricted(classes: int | None, of: int | None) -> Iterator[Note]:
    if classes is not None:
        yield Warn.RESTRICTED.value.note(
            f"answers were chosen among {classes} of the {of} classes of the weights"
        )


def _reshaped(reshaped: Mapping[str, str] | None) -> Iterator[Note]:
    if reshaped:
        name, done = next(iter(reshaped.items()))
        more = f", and {units.several(len(reshaped) - 1, 'more tensor')}" if len(reshaped) > 1 else ""
        yield Warn.RESHAPED.value.note(f"for this size {name} was {done}{more}")
