"""What is asked (Cell), what came of it (Row), and where (Environment): the schema of everything stored.

History of the row schema, newest first; `runs/migrations.py` makes rows of the older ones current on reading:

    2   `Row.tensors`, `Row.batches`, `Cell.batch_auto`, `Cell.grad_checkpointing`; `Row.code`: hash of the
        measuring sources; `Settings.memory_limit_bytes` and `hours_for`; run.json keeps every command, in
        `invocations`; added since, with defaults that are true of older rows: `Cell.normalisation`,
        `SizeRecord.reshaped`, `AccuracyRecord.classes`, `Row.numerics`, `Environment.cpu` and `gpus`,
        `TimingRecord.host_s`, `Row.changed_settings`, `Row.params`, `Row.attention` (which
        `migrations.py` fills from older rows)
    1   first version

Unknown is None, with a reason in `Row.null_reasons`, never 0, -1 or NaN.  Units are part of the names.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from longvis_bench.hashing import digest

SCHEMA = 2

Mode = Literal["infer", "train"]
Dtype = Literal["fp32", "tf32", "bf16", "fp16"]
"""fp32 is strict; tf32 is float32 whose products and convolutions round inputs to TF32 (NVIDIA GPUs)."""
MemoryFormat = Literal["channels_last", "contiguous"]
Metric = Literal["count", "time", "memory", "accuracy", "validity"]
METRICS: tuple[Metric, ...] = ("count", "time", "memory", "accuracy", "validity")
Status = Literal[
    "ok",
    "oom",
    "host_oom",
    "timeout",
    "illegal_size",
    "missing_dependency",
    "unsupported",
    "invalid",
    "crashed",
    "error",
    "skipped",
]
ACCEPTED: frozenset[Status] = frozenset({"ok", "oom", "host_oom", "illegal_size", "unsupported", "skipped"})
"""Statuses that are a result; every other one makes the sweep end with exit code 1."""


Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of pixels in 0-1, by channel: what becomes 0 and 1 for the model."""


ClassOrder = Literal["sorted", "natural"]
"""How class folders are numbered: by their names' characters, or by the numbers in them (2 before 10)."""


@dataclass(frozen=True)
class DataSpec:
    """What a user says about the data: `--data`, `--classes`, `--window` and `--class-order`."""

    data: str
    classes: str | None = None
    """A shipped list of classes, or a file of them; None for all."""
    window: tuple[float, float] | None = None
    """Pixel values that become black and white, for images of more than 8 bits."""
    normalisation: Normalisation | None = None
    """What a weight file wants of a folder's images; None for ImageNet's."""
    class_order: ClassOrder = "sorted"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Record):
    """One condition: every resolved field that can change a number, and nothing else."""

    model: str
    """As the user names it: variant, `@implementation` if not the default, and arguments in brackets."""
    family: str
    variant: str
    implementation: str
    arguments: dict[str, Any] = {}
    resolution: int = Field(ge=1)
    """Pixels per side of the square input."""
    batch_size: int = Field(1, ge=1)
    batch_auto: bool = False
    """The batch is searched for: it starts at `batch_size`, and the row's is what was chosen."""
    mode: Mode = "infer"
    dtype: Dtype = "fp32"
    device: str = "cpu"
    threads: int = Field(1, ge=1)
    memory_format: MemoryFormat = "channels_last"
    fuse: bool = False
    """Batch norms folded into the convolutions before them."""
    compile: bool = False
    grad_checkpointing: bool = False
    """In training, activations inside a block are computed again in the backward instead of kept."""
    data: str = "digits"
    num_classes: int = Field(10, ge=1)
    images: int = Field(128, ge=1)
    """Held-out images the accuracy is measured on, evenly spaced over all of them."""
    metrics: tuple[Metric, ...] = METRICS
    seed: int = 0
    weights: str | None = None
    """File name of the weights, never a path; None for fresh weights."""
    weights_sha256: str | None = None
    normalisation: Normalisation | None = None
    """Mean and deviation that the weights want of a folder's images; None for the data's own."""
    round: int = Field(0, ge=0)
    """Which of the `--repeats` passes, from 0."""

    def identity(self, without: Collection[str] = ()) -> str:
        """A hash that two cells share where they differ in none but the named fields, in hexadecimal."""
        return digest(self.model_dump(mode="json", exclude=set(without)))


class TrainLength(_Record):
    """How long a training is: `--hours-for 126689x320`."""

    images: int = Field(ge=1)
    """Images of an epoch."""
    epochs: int = Field(ge=1)

    @classmethod
    def parse(cls, text: str) -> TrainLength:
        """`126689x320` -> 126689 images, 320 epochs.

        Raises:
            ValueError: it is of another form; the message says which is right.
        """
        found = re.fullmatch(r"\s*([1-9]\d*)\s*[x×*]\s*([1-9]\d*)\s*", text)
        if found is None:
            raise ValueError(f"it takes images x epochs, like 126689x320, not {text!r}")
        return cls(images=int(found[1]), epochs=int(found[2]))

    def __str__(self) -> str:
        return f"{self.images}x{self.epochs}"


class Settings(_Record):
    """How hard to measure: recorded with the row, but no part of its key."""

    budget_s: float = Field(30.0, gt=0)
    precision: float = Field(0.02, gt=0)
    """Wanted half-width of the median's 95 % interval, as a share of the median."""
    timeout_s: float = Field(600.0, gt=0)
    memory_limit_bytes: int | None = Field(None, ge=1)
    """Memory that the cell's processes may hold together; None: all the machine has."""
    hours_for: TrainLength | None = None
    """What `train_hours` is worked out for; `report.write.restate` replaces it in rows that are there."""


class Request(_Record):
    """Everything a worker needs for one cell; paths stay here and never reach the row."""

    cell: Cell
    model: str = ""
    """The model as the registry finds it, where the cell's name leaves out a folder."""
    settings: Settings = Settings()
    key: str = ""
    attempt: int = 1
    machine: str = ""
    code: str | None = None
    models_dirs: tuple[Path, ...] = ()
    working_dir: Path | None = None
    source: DataSpec | None = None
    """The data as `open_data` finds it, where the cell's name leaves out the folder."""
    weights_path: Path | None = None
    logit_places: tuple[int, ...] | None = None
    """Where the data's classes stand among the model's logits; None where they are the same."""
    trained_resolution: int | None = None
    """What the weights were trained at, where the file does not say it itself."""
    time_only: bool = False
    """Measure latency and nothing else: a further process of a cell that has its other numbers."""
    process_budget_s: float | None = Field(None, gt=0)
    """Share of the cell's budget that one process gets, in seconds; None for all of it."""
    predictions_path: Path | None = None
    sent: float | None = None
    """When it was handed to its process, on the monotonic clock."""

    @property
    def timing_budget_s(self) -> float:
        """Seconds that this process may time: its share, or less where the settings give less, as a try of
        `--batch auto` does.
        """
        budget = self.settings.budget_s
        return budget if self.process_budget_s is None else min(budget, self.process_budget_s)


class SizeRecord(_Record):
    """The resolution contract: what was done to the model to take this size."""

    reach: str
    padding_ratio: float | None = None
    arguments: dict[str, Any] = {}
    random_tensors: tuple[str, ...] = ()
    """Tensors that the weights file does not hold for this size, so that they are random."""
    reshaped: dict[str, str] = {}
    """Tensors whose values were fitted to this size, and how: interpolated tables of positions."""


class CountRecord(_Record):
    """Operations of one forward of one image in eval mode."""

    params: int
    macs: int
    flops: int
    scan_flops: int
    coverage: float | None
    """Output elements of operators with a formula / (those + unknown), 0-1."""
    unknown: dict[str, int] = {}
    """Operators without a formula: name -> output elements."""


class NoiseRecord(_Record):
    """What else happened while a cell was timed; None where the platform does not tell."""

    load_cores: float | None = None
    """Cores that other processes kept busy, on average."""
    own_cores: float | None = None
    """Cores that this process kept busy, on average."""
    steal: float | None = None
    """Share of the machine's time that the hypervisor took, 0-1."""
    clock_hz: float | None = None
    """Median clock of the device: the fastest core's, or the GPU's SM clock."""
    clock_limit_hz: float | None = None
    """The GPU's highest SM clock."""
    clock_change: float | None = None
    """Median clock of the later looks / of the earlier ones - 1."""
    temperature_c: float | None = None
    """Highest temperature of the device, degrees Celsius."""
    temperature_limit_c: float | None = None
    """Where the device begins to slow itself down, degrees Celsius."""
    slowdowns: tuple[str, ...] = ()
    """Reasons the device gave for running slower than asked, in the order they came."""


class CountersRecord(_Record):
    """What the system counted for a process while it was timed; None where the platform does not tell."""

    page_faults: int | None = None
    """Pages that the process touched for the first time, or again after giving them back."""
    context_switches: int | None = None
    """Switches that the system forced on the process's threads."""
    migrations: int | None = None
    """Moves of the process's threads from one processor to another."""


class ProcessRecord(_Record):
    """One of the fresh processes that a cell's latency is measured in."""

    samples: int = Field(ge=0)
    """How many of the cell's `samples_s` it took; the processes' samples follow each other there."""
    yardstick_s: tuple[float, ...] = ()
    """Seconds of the yardstick between these samples; see `measure/latency/yardstick.py`."""
    seconds: float = 0.0
    """All of its time, building the model included."""
    started: str | None = None
    """UTC, ISO 8601, seconds."""
    disturbed: str | None = None
    """What disturbed it, so that its samples do not count unless all are disturbed; None for nothing."""
    noise: NoiseRecord = NoiseRecord()
    counters: CountersRecord = CountersRecord()


class TimingRecord(_Record):
    """Seconds per iteration; one iteration is one batch that already lies on the device."""

    samples_s: tuple[float, ...]
    """Of all processes, in the order they ran."""
    warmup_s: tuple[float, ...]
    """Of the first process."""
    verdict: Literal["stable", "noisy", "disturbed", "single", "budget"]
    """`budget` is in rows of longvis 0.1 only: too few samples in the time given."""
    parts_s: dict[str, tuple[float, ...]] = {}
    """Train mode: forward, backward and optimizer apart."""
    noise: NoiseRecord = NoiseRecord()
    """Of the first process."""
    host_s: tuple[float, ...] = ()
    """On CUDA, for each counted sample, seconds until the host had handed over the iteration's work."""
    processes: tuple[ProcessRecord, ...] = ()
    """In rows of longvis 0.1, and of a single process, none or one."""
    others_spread: float | None = None
    """Spread between the processes of other cells of the sweep, where this cell has too few of its own."""
    conditions: dict[str, str] = {}
    """What the harness did for every model alike while it timed, e.g. {"freed memory": "kept"}."""

    def by_process(self, *, clean: bool = False) -> tuple[tuple[float, ...], ...]:
        """The samples of each process that took some.

        Arguments:
            clean: leave out disturbed processes, unless all are.
        """
        if not self.processes:
            return (self.samples_s,) if self.samples_s else ()
        found, start = [], 0
        for process in self.processes:
            samples = self.samples_s[start : start + process.samples]
            start += process.samples
            if samples:
                found.append((process.disturbed, samples))
        undisturbed = tuple(samples for disturbed, samples in found if disturbed is None)
        return undisturbed if clean and undisturbed else tuple(samples for _, samples in found)

    def yardsticks(self, *, clean: bool = False) -> tuple[tuple[float, ...], ...]:
        """The yardstick's samples of the same processes; empty where one took none."""
        timed = [process for process in self.processes if process.samples]
        undisturbed = [process for process in timed if process.disturbed is None]
        return tuple(process.yardstick_s for process in (undisturbed if clean and undisturbed else timed))


class TensorRecord(_Record):
    """Bytes of the tensors alone, found by executing shapes; known even where the cell does not fit."""

    peak_bytes: int
    parts_bytes: dict[str, int] = {}
    """Of what was alive at the peak; the parts sum to it."""


class MemoryRecord(_Record):
    """Bytes above what the process held before the model was built."""

    peak_bytes: int
    baseline_bytes: int
    source: str
    """How it was read, e.g. "VmHWM - RssFile" or "torch.cuda.max_memory_allocated"."""
    reserved_bytes: int | None = None
    parts_bytes: dict[str, int] = {}
    """What the peak is made of; the parts sum to it."""


class BatchTry(_Record):
    """A batch that `--batch auto` tried."""

    batch_size: int
    status: Status
    """`skipped` where a limit kept it from being run."""
    reason: str | None = None
    throughput_img_s: float | None = None
    peak_bytes: int | None = None


class AccuracyRecord(_Record):
    """Right answers on held-out images at the cell's resolution."""

    correct_top1: int
    correct_top5: int | None
    images: int
    dataset: str
    weights: str
    trained_resolution: int | None = None
    broken: tuple[str, ...] = ()
    """Held-out files that could not be read and were left out, relative to the data set's folder."""
    classes: int | None = None
    """Those of the data, among which the answers were chosen, where the model knows more; else None."""


Verdict = Literal["ok", "invalid", "not checked"]


class ValidityRecord(_Record):
    """Whether the outputs can be believed."""

    verdict: Verdict
    reference: str
    """What the outputs were compared with, e.g. "float64, unfused attention"."""
    reference_error: float | None = None
    """Largest absolute difference of the logits / largest absolute logit of the reference."""
    batch_error: float | None = None
    """The same between an image alone and the same image in a batch."""
    tolerance: float | None = None


class Note(_Record):
    """A typed warning on a row; see `row_warnings.py` for the closed list."""

    code: str
    message: str
    advice: str


class Row(_Record):
    """What one cell gave.  One line of `cells.jsonl`."""

    version: Literal[2] = Field(2, alias="schema")
    key: str
    attempt: int = 1
    machine: str = ""
    """`Environment.machine`, so that rows of several machines can stand side by side."""
    code: str | None = None
    """Hash of the measuring sources, a part of the key; None before schema 2."""
    cell: Cell
    settings: Settings = Settings()
    status: Status
    reason: str | None = None
    """Why the status is not ok: one sentence, with what would help."""
    started: str | None = None
    """UTC, ISO 8601, seconds."""
    size: SizeRecord | None = None
    count: CountRecord | None = None
    params: int | None = None
    """Parameters, where the operations could not be counted and `count` is None."""
    timing: TimingRecord | None = None
    tensors: TensorRecord | None = None
    memory: MemoryRecord | None = None
    batches: tuple[BatchTry, ...] = ()
    """What `--batch auto` tried, smallest first."""
    accuracy: AccuracyRecord | None = None
    validity: ValidityRecord | None = None
    backends: dict[str, str] = {}
    """What ran, e.g. {"scan": "numba"}; see `attention` for attention."""
    attention: str | None = None
    """Kernels of softmax attention, as an iteration without inference mode showed them: `flash`, `efficient`,
    `cudnn`, `math` (torch's function, unfused), `unfused` (the model's own products and softmax)."""
    numerics: dict[str, str] = {}
    """torch's settings and library versions that can change a number, as they were after the timing; empty in
    rows measured before they were recorded."""
    null_reasons: dict[str, str] = {}
    """Column or metric -> why it has no value."""
    notes: tuple[Note, ...] = ()
    changed_settings: tuple[str, ...] = ()
    """Global settings that the model's code changed while it was timed, or that could not be restored."""
    overhead_s: dict[str, float] = {}
    """Phase (`phases.py`) -> seconds: all of the time from handing the cell over to its process's end."""
    log_tail: str = ""
    """Last lines the model printed, kept for failures."""
    rounds_s: tuple[float, ...] = Field((), exclude=True)
    """Median latency of every round of this cell; never stored, `report/repeats.py` adds it on reading."""

    reference_yardstick_s: float | None = Field(None, exclude=True)
    """Fastest yardstick among the rows it is read with, on its machine; never stored."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @classmethod
    def of(cls, request: Request, status: Status = "error", reason: str = "not finished") -> Row:
        """The row of a cell that has measured nothing, or nothing yet."""
        return cls(
            key=request.key,
            attempt=request.attempt,
            machine=request.machine,
            code=request.code,
            cell=request.cell,
            settings=request.settings,
            status=status,
            reason=reason,
        )

    def to_json(self) -> str:
        """One line of JSON; None stays null, and nothing is NaN."""
        return self.model_dump_json(by_alias=True)


class Environment(_Record):
    """Where rows were made.  Rows of different environments never share a directory."""

    machine: str
    """Processor or GPU model and core count; never the host name."""
    processor: str
    cores: int
    memory_bytes: int
    gpu: str | None = None
    driver: str | None = None
    system: str
    python: str
    versions: dict[str, str]
    """Packages whose version can change a number."""
    flags: dict[str, str] = {}
    """Environment variables that can change a number; of paths only the file names."""
    cpu: dict[str, str] = {}
    """The processor's vendor, family, model, stepping and nominal clock, as far as the system tells."""
    gpus: tuple[dict[str, str], ...] = ()
    """Every NVIDIA GPU: name, memory, power limit, ECC, MIG."""

    @property
    def hash(self) -> str:
        """Eight characters that differ where any field differs."""
        return digest(self.model_dump(mode="json"))[:8]


def cell_key(cell: Cell, code: str, environment: str) -> str:
    """The identity of a measurement: the cell, the code that makes it and where it runs.

    Arguments:
        cell: what is measured; the weights' hash is part of it.
        code: hash of our sources that the cell imports.
        environment: `Environment.hash`.

    Returns:
        Sixteen hexadecimal characters.
    """
    content = {"cell": cell.model_dump(mode="json"), "code": code, "environment": environment}
    return digest(content)[:16]
