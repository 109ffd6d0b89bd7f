"""Which size and batch of a model fit into a memory, for inference and training, without that device.

Nothing is allocated: an iteration is executed by shape (`measure/memory/tensor_peak.py`), and what a device
takes beside the tensors is added (`need.py`).  Every storage is linear in the batch, so two executions give
all batches; sizes are found by bisection over those that are legal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, lru_cache, partial
from itertools import product
from math import inf, log

from longvis_bench import units
from longvis_bench.advice.gpus import DEFAULT_CAPABILITY, find_gpu
from longvis_bench.advice.need import Device, Need, need_of
from longvis_bench.errors import LongvisError, MissingDependency, Unsupported
from longvis_bench.measure.exception_status import cause
from longvis_bench.measure.memory.tensor_peak import meta_model, planned_trace
from longvis_bench.measure.memory.trace import Trace
from longvis_bench.ops.kernel_trace import ATTENTION, listen
from longvis_bench.records import Cell, Dtype, Mode, Output
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Resolution, columns

PARTS = (
    "weights",
    "buffers",
    "gradients",
    "optimizer",
    "input",
    "activations",
    "workspace",
    "library",
    "allocator",
    "rest",
    "margin",
    "context",
)
"""What a need is made of; see `FitRow.parts_bytes`."""
BUILDS = 4
"""Models, each of one size, that are kept for other modes and batches."""
MOST_BATCH = 1024
"""Largest batch that is looked for."""
MOST_PIXELS = 16384
"""Largest size that is looked for."""
STEPS = (32, 16, 14, 8, 1)
"""Multiples among which the largest legal size is looked for: the first of which the model takes any."""


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """One model, size, mode and batch."""

    model: str
    family: str
    variant: str
    implementation: str
    resolution: Resolution
    mode: Mode
    output: Output
    grad_checkpointing: bool
    batch_size: int
    dtype: Dtype
    device: str
    memory_bytes: int
    predicted_peak_bytes: int | None = None
    """What `peak_memory_bytes` of a measured row would be; see `Need.peak_bytes`."""
    needed_low_bytes: int | None = None
    """What the device needs at least."""
    needed_bytes: int | None = None
    """What it needs at most."""
    fits: str | None = None
    """`yes`, `tight` or `no`; None where it is not known, for the reason given."""
    largest_batch: int | None = None
    """Largest batch that fits surely at this size, up to 1024; 0 where none does."""
    largest_resolution: int | None = None
    """Largest legal square that fits surely at batch 1, up to 16384 px; None where none does."""
    attention: str | None = None
    """Kernels of softmax attention that are assumed."""
    reason: str
    parts_bytes: dict[str, int] = field(default_factory=dict)
    """What `needed_bytes` is made of, by the names in `PARTS`."""
    fault: LongvisError | None = None
    """Why there is no answer."""

    @property
    def columns(self) -> dict[str, object]:
        """Column -> value, as tables and frames have them; bytes of a part are `<part>_bytes`."""
        named: dict[str, object] = {}
        for name in (each.name for each in fields(self)):
            named |= columns(self.resolution) if name == "resolution" else {name: getattr(self, name)}
        del named["parts_bytes"], named["fault"]
        unknown = self.fits is None
        return named | {f"{part}_bytes": None if unknown else self.parts_bytes.get(part, 0) for part in PARTS}


@dataclass(frozen=True)
class Question:
    """What is asked of each model."""

    device: Device
    resolutions: Sequence[Resolution]
    modes: Sequence[Mode] = ("infer",)
    batch_sizes: Sequence[int] = (1,)
    dtype: Dtype = "bf16"
    grad_checkpointing: bool = False
    """Also ask for training with it."""
    num_classes: int = 1000
    output: Output = "logits"
    search: bool = True
    """Also look for the largest batch and size, which takes several executions."""

    @property
    def ways(self) -> list[tuple[Mode, bool]]:
        """Modes, training without and with gradient checkpointing."""
        checkpointed = [("train", True)] if self.grad_checkpointing and "train" in self.modes else []
        return [*((mode, False) for mode in self.modes), *checkpointed]  # type: ignore[list-item]


def make_device(kind: str, gpu: str | None, memory: int | None) -> Device:
    """The device that is asked about.

    Arguments:
        kind: "cuda" or "cpu".
        gpu: short name of an NVIDIA GPU.
        memory: in bytes, where it is not that of the GPU.

    Raises:
        LongvisError: the GPU is unknown, the device has no model here, or there is no memory to fit into.
    """
    if kind not in ("cuda", "cpu"):
        raise LongvisError(f"fit knows the memory of cuda and of cpu, not of {kind[:80]!r}.")
    if gpu is not None and kind == "cpu":
        raise LongvisError("--gpu names a device already; leave out --device cpu, or give --memory instead.")
    if memory is None and gpu is None:
        raise LongvisError("give the memory to fit into: --memory 24GiB, or --gpu rtx4090.")
    if gpu is None:
        assert memory is not None
        return Device(kind, memory, DEFAULT_CAPABILITY if kind == "cuda" else None)
    found = find_gpu(gpu)
    return Device(kind, memory or found.memory_bytes, found.capability)


def fit(models: Sequence[str], question: Question, registry: Registry) -> Iterator[FitRow]:
    """A row for each model, size, way and batch, as soon as it is known.

    Raises:
        LongvisError: a name is wrong.
    """
    variants = [registry.find(name) for name in registry.expand(models)]
    for variant in variants:
        variant.check_factory()
    for variant in variants:
        shared = _Shared(variant, question)
        for mode, checkpointed in question.ways:
            asked = _Asked(variant, question, mode, checkpointed, shared)
            for resolution, batch in product(question.resolutions, question.batch_sizes):
                yield asked.row(resolution, batch)


def refuse_hopeless(rows: Sequence[FitRow]) -> None:
    """Raise the first reason where no row has an answer.

    Raises:
        LongvisError: exit code 3 where all models want for a package, 1 where none can be executed by shape.
    """
    if not rows or any(row.fits is not None for row in rows):
        return
    fault = next((row.fault for row in rows if not isinstance(row.fault, MissingDependency)), rows[0].fault)
    raise fault or LongvisError(rows[0].reason)


def legal_sizes(variant: Variant) -> list[int]:
    """Sizes up to 16384 px that a model takes: multiples of 32, or of less where it takes none of these."""
    for step in STEPS:
        legal = [size for size in range(step, MOST_PIXELS + 1, step) if _takes(variant, size)]
        if legal:
            return legal
    return []


def _takes(variant: Variant, size: int) -> bool:
    try:
        variant.plan(size)
    except LongvisError:
        return False
    return True


class _Shared:
    """What all modes of one model share."""

    def __init__(self, variant: Variant, question: Question) -> None:
        self.legal = cache(partial(legal_sizes, variant))
        build = partial(meta_model, variant, question.output, num_classes=question.num_classes)
        self.model = lru_cache(maxsize=BUILDS)(build)
        """Resolution -> the model on the meta device."""


class _Asked:
    """One model in one mode: its needs at all sizes and batches, each found once."""

    def __init__(
        self,
        variant: Variant,
        question: Question,
        mode: Mode,
        checkpointed: bool,
        shared: _Shared,
    ) -> None:
        self._variant, self._question = variant, question
        self._mode, self._checkpointed, self._shared = mode, checkpointed, shared
        self._traces: dict[tuple[Resolution, int], Trace] = {}
        self._growing: dict[tuple[int, ...], tuple[bool, ...] | None] = {}
        self.attention: dict[Resolution, str | None] = {}

    def row(self, resolution: Resolution, batch: int) -> FitRow:
        """The answer for a size and batch."""
        question = self._question
        row = FitRow(
            model=self._variant.full_name,
            family=self._variant.family,
            variant=self._variant.variant,
            implementation=self._variant.implementation,
            resolution=resolution,
            mode=self._mode,
            output=question.output,
            grad_checkpointing=self._checkpointed,
            batch_size=batch,
            dtype=question.dtype,
            device=question.device.kind,
            memory_bytes=question.device.memory_bytes,
            reason="",
        )
        try:
            need = self.need(resolution, batch)
            largest_batch = self._largest_batch(resolution)
        except Exception as error:
            fault = _fault(error, self._variant)
            return replace(row, reason=str(fault), fault=fault, largest_resolution=self._largest_resolution)
        answer = need.fits(row.memory_bytes)
        return replace(
            row,
            predicted_peak_bytes=need.peak_bytes,
            needed_low_bytes=need.low_bytes,
            needed_bytes=need.high_bytes,
            fits=answer,
            largest_batch=largest_batch,
            largest_resolution=self._largest_resolution,
            attention=self.attention.get(resolution),
            reason=_because(need, answer, row.memory_bytes),
            parts_bytes=need.parts_bytes,
        )

    def need(self, resolution: Resolution, batch: int) -> Need:
        """The need at a size and batch."""
        self._check_dtype()
        return need_of(self._trace(resolution, batch), self._question.device, train=self._mode == "train")

    def _check_dtype(self) -> None:
        dtype, card = self._question.dtype, self._variant.card
        if dtype == "tf32" and self._question.device.kind != "cuda":
            raise Unsupported("tf32 needs an NVIDIA GPU, not cpu; use --dtype fp32.")
        if card is not None and ("fp32" if dtype == "tf32" else dtype) not in card.dtypes:
            raise Unsupported(f"{self._variant.name} does not run in {dtype}.")

    def _trace(self, resolution: Resolution, batch: int) -> Trace:
        """The trace: executed at batch 1, and of other batches worked out as far as that goes."""
        one = self._executed(resolution, 1)
        if batch == 1:
            return one
        if one.events not in self._growing:
            self._growing[one.events] = one.growing(self._executed(resolution, 2))
        grows = self._growing[one.events]
        if grows is not None:
            return one.times(batch, grows)
        two = self._executed(resolution, 2)
        found = one.at(batch, two, (1, 2))
        if (
            found is None and batch > 3
        ):  # a batch of 1 may take other operators, as its layouts are two at once
            found = two.at(batch, self._executed(resolution, 3), (2, 3))
        return self._executed(resolution, batch) if found is None else found

    def _executed(self, resolution: Resolution, batch: int) -> Trace:
        if (resolution, batch) not in self._traces:
            model = None if self._checkpointed else self._shared.model(resolution)
            capability, cell = self._question.device.capability, self._cell(resolution, batch)
            with listen() as kernels:
                trace = planned_trace(self._variant, cell, capability, model=model)
            self._traces[resolution, batch] = trace
            self.attention[resolution] = " and ".join(sorted(kernels.get(ATTENTION, ()))) or None
        return self._traces[resolution, batch]

    def _cell(self, resolution: Resolution, batch: int) -> Cell:
        return Cell(
            model=self._variant.full_name,
            family=self._variant.family,
            variant=self._variant.variant,
            implementation=self._variant.implementation,
            resolution=resolution,
            batch_size=batch,
            mode=self._mode,
            dtype=self._question.dtype,
            device=self._question.device.kind,
            grad_checkpointing=self._checkpointed,
            num_classes=self._question.num_classes,
            output=self._question.output,
        )

    def _largest_batch(self, resolution: Resolution) -> int | None:
        if not self._question.search:
            return None
        return _last(range(1, MOST_BATCH + 1), [0], lambda batch: self._excess(resolution, batch)) or 0

    @cached_property
    def _largest_resolution(self) -> int | None:
        """The last legal size that surely fits at batch 1; None where none does, or it is not known."""
        if not self._question.search:
            return None
        legal = self._shared.legal()
        asked = [legal.index(size) for size in self._question.resolutions if size in legal]
        try:
            return _last(legal, sorted(asked), lambda size: self._excess(size, 1), power=2)
        except Exception:
            return None

    def _excess(self, resolution: Resolution, batch: int) -> float:
        """The need as a share of the memory."""
        return self.need(resolution, batch).high_bytes / self._question.device.memory_bytes


SECANTS = 6
"""Trials by interpolation, after which the search goes on by bisection."""


def _last(
    legal: Sequence[int], first: Sequence[int], excess: Callable[[int], float], power: int = 1
) -> int | None:
    """The last size or batch whose excess is at most 1, if it grows with the size; None where none is.

    The next one tried is where a + b x^power through the two known ones nearest to 1 would reach it: weights
    and context do not grow, and activations grow with the batch, or with the square of the size.

    Arguments:
        legal: sizes or batches, smallest first.
        first: indices of those that are tried first.
        excess: of one.
        power: of the size or batch with which memory grows.
    """
    low, high = -1, len(legal)
    known: dict[int, float] = {}
    while high - low > 1:
        index = next((index for index in first if low < index < high), None)
        if index is None and len(known) < len(first) + SECANTS:
            index = _next_index(legal, low, high, known, power)
        if index is None:
            index = (low + high) // 2
        known[index] = excess(legal[index])
        low, high = (index, high) if known[index] <= 1 else (low, index)
    return legal[low] if low >= 0 else None


def _next_index(legal: Sequence[int], low: int, high: int, known: Mapping[int, float], power: int) -> int:
    """The index to try next, strictly between two."""
    nearest = sorted(known, key=lambda index: (index not in (low, high), abs(log(known[index]))))[:2]
    if len(nearest) == 2:
        wanted = _where_full([(legal[index], known[index]) for index in nearest], power)
    elif low in known:
        wanted = legal[low] * min(8.0, (1 / known[low]) ** 0.5)
    elif high in known:
        wanted = legal[high] * max(0.125, (1 / known[high]) ** 0.5)
    else:
        wanted = 2048.0
    return min(max(bisect_right(legal, wanted) - 1, low + 1), high - 1)


def _where_full(ends: Sequence[tuple[int, float]], power: int) -> float:
    """Where a + b x^power through two points (x, excess) is 1; infinite where it does not grow."""
    (x, one), (y, other) = ((float(size**power), excess) for size, excess in ends)
    if (other - one) * (y - x) <= 0:
        return inf
    return float(max(0.0, x + (1 - one) * (y - x) / (other - one)) ** (1 / power))


def _fault(error: Exception, variant: Variant) -> LongvisError:
    """What kept a model from being executed by shape, as one sentence."""
    if isinstance(error, LongvisError):
        return error
    return Unsupported(f"{variant.full_name} cannot be executed by shape: {cause(error).rstrip('.')}.")


def _because(need: Need, answer: str, memory: int) -> str:
    """The answer in numbers."""
    least, most = units.size(need.low_bytes), units.size(need.high_bytes)
    given = units.size(memory)
    if answer == "yes":
        return f"needs at most {most} of {given}"
    if answer == "no":
        largest = max(need.parts_bytes, key=lambda part: need.parts_bytes[part])
        share = units.percent(need.parts_bytes[largest] / need.high_bytes)
        return f"needs at least {least} of {given}; {share} of it {largest}"
    return f"needs {least} to {most} of {given}; how the free pieces lie decides"
