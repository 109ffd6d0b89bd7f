"""The schema of everything stored: what to measure (Cell), its result (Row), and the machine (Environment).

History of the row schema, newest first; `runs/migrations.py` converts rows of older schemas as it reads them:

    3   `Cell.height` and `Cell.width`; `Cell.resolution` and `trained_resolution` also describe rectangles
    2   `Row.tensors`, `Row.batches`, `Cell.batch_auto`, `Cell.grad_checkpointing`; `Row.code`: hash of the
        measuring sources; `Settings.memory_limit_bytes` and `hours_for`; run.json keeps every command, in
        `invocations`; added since, with defaults that are true of older rows: `Cell.normalisation`,
        `SizeRecord.reshaped`, `AccuracyRecord.classes` and `class_doubt`, `Row.numerics`, `Environment.cpu`
        and `gpus`, `TimingRecord.host_s` and `graph_s`, `Row.changed_settings`, `Row.params`, `Row.gpu_index`
        and `gpu_uuid`, `MemoryRecord.outside_bytes`, `Row.cached`, `Row.reach`, `Row.attention`,
        `Row.neighbours`, `Row.energy`, `Cell.output`, `Row.features`, `Cell.world` and `Row.world`
    1   first version

An unknown value is None, with a reason in `Row.null_reasons`, never 0, -1 or NaN.  Names end in the unit.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from longvis_bench.hashing import digest
from longvis_bench.resolution import Fit, Sized, StoredResolution
from longvis_bench.stats.ratios import Ratio

SCHEMA = 3

Mode = Literal["infer", "train"]
Dtype = Literal["fp32", "tf32", "bf16", "fp16"]
"""fp32 is strict; tf32 is float32 whose matrix products and convolutions round inputs to TF32 (NVIDIA)."""
MemoryFormat = Literal["channels_last", "contiguous"]
Output = Literal["logits", "features"]  # features: the maps of the backbone, without the head
Metric = Literal["count", "time", "memory", "accuracy", "validity", "reach"]
METRICS: tuple[Metric, ...] = ("count", "time", "memory", "accuracy", "validity")  # by default
Result = Literal["ok", "oom", "host_oom", "illegal_size", "unsupported", "skipped"]
Status = Literal[Result, "timeout", "missing_dependency", "invalid", "crashed", "error"]
ACCEPTED: frozenset[Status] = frozenset(get_args(Result))  # any other one makes the sweep exit with code 1
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel, of pixels in 0-1; the model gets (pixel - mean) / deviation."""
ClassOrder = Literal["sorted", "natural"]
"""Numbering of class folders: sorted by characters, or by the numbers in their names (2 before 10)."""


@dataclass(frozen=True)
class DataSpec:
    """The data options of a user, which begin with `--data`."""

    data: str
    classes: str | None = None
    """Name of a shipped class list, or path of a file that lists classes; None for all classes."""
    window: tuple[float, float] | None = None
    """Pixel values that are mapped to black and to white, for images of more than 8 bits."""
    normalisation: Normalisation | None = None
    """Normalisation that the weights were trained with, for images of a folder; None for ImageNet's."""
    class_order: ClassOrder = "sorted"
    bands: tuple[int, ...] | None = None  # numbers of an image's bands, from 1: one or three; None for all
    fit: Fit = "crop"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(Sized, _Record):
    """One condition to measure: every resolved option that can change a number, and nothing else."""

    model: str
    """Name that the user gave: variant, `@implementation` if not the default, and arguments in brackets."""
    family: str
    variant: str
    implementation: str
    arguments: dict[str, Any] = {}
    batch_size: int = Field(1, ge=1)
    batch_auto: bool = False
    """The harness searches for the batch size from `batch_size` up; the row's cell has the one it chose."""
    mode: Mode = "infer"
    output: Output = "logits"
    LATER = ("output", "world")
    dtype: Dtype = "fp32"
    device: str = "cpu"
    threads: int = Field(1, ge=1)
    memory_format: MemoryFormat = "channels_last"
    fuse: bool = False  # fold batch norms into the preceding convolutions
    compile: bool = False
    grad_checkpointing: bool = False  # the backward pass recomputes activations inside each block
    data: str = "digits"
    num_classes: int = Field(10, ge=1)
    images: int = Field(128, ge=1)
    """Number of held-out images for the accuracy, evenly spaced over all of them."""
    metrics: tuple[Metric, ...] = METRICS
    seed: int = 0
    weights: str | None = None  # file name of the weights, without a path; None for random initial weights
    weights_sha256: str | None = None
    normalisation: Normalisation | None = None
    """Normalisation that the weights were trained with, for images of a folder; None for the data's own."""
    world: int = Field(1, ge=1)  # devices that train together, each on a batch of its own
    round: int = Field(0, ge=0)  # index of the repeat (`--repeats`), from 0

    def identity(self, without: Collection[str] = ()) -> str:
        """SHA-256 in hexadecimal, equal for two cells that differ at most in the fields `without` names."""
        return digest(self.conditions(without))


class TrainLength(_Record):
    """Length of a training run, images per epoch x epochs, e.g. `--hours-for 126689x320`."""

    images: int = Field(ge=1)
    epochs: int = Field(ge=1)

    @classmethod
    def parse(cls, text: str) -> TrainLength:
        """`126689x320` -> 126689 images, 320 epochs; a ValueError shows the right form."""
        found = re.fullmatch(r"\s*([1-9]\d*)\s*[x×*]\s*([1-9]\d*)\s*", text)
        if found is None:
            raise ValueError(f"it takes images x epochs, like 126689x320, not {text!r}")
        return cls(images=int(found[1]), epochs=int(found[2]))

    def __str__(self) -> str:
        return f"{self.images}x{self.epochs}"


class Settings(_Record):
    """Effort and limits of a measurement: stored in the row, but not part of its key."""

    budget_s: float = Field(30.0, gt=0)  # timing budget per cell, in seconds
    precision: float = Field(0.02, gt=0)
    """Target half-width of the median's 95 % interval, as a share of the median."""
    timeout_s: float = Field(600.0, gt=0)  # seconds after which the harness kills the cell
    memory_limit_bytes: int | None = Field(None, ge=1)
    """Memory that all processes of the cell may hold together; None for the machine's whole memory."""
    hours_for: TrainLength | None = None
    """Training length for `train_hours`; `report.write.restate` replaces it in stored rows."""


class Request(_Record):
    """Everything that a cell's process needs; paths are in the request only and never get into the row."""

    cell: Cell
    model: str = ""
    """Name that the registry resolves; it holds the folder that the cell's name leaves out."""
    settings: Settings = Settings()
    key: str = ""
    attempt: int = 1
    machine: str = ""
    code: str | None = None
    device: str = ""
    """Where it runs, in torch's words with an index; empty for the cell's."""
    environment: str = ""
    """`Environment.hash`."""
    cache_dir: Path | None = None  # folder of `measure/cache.py`; None computes everything
    models_dirs: tuple[Path, ...] = ()
    working_dir: Path | None = None
    source: DataSpec | None = None
    """Data options that `open_data` resolves; they hold the folder that the cell's name leaves out."""
    weights_path: Path | None = None
    class_indices: tuple[int, ...] | None = None
    """Logit index of each dataset class; None if the model's classes are the dataset's, in the same order."""
    trained_resolution: StoredResolution | None = None
    """Resolution the weights were trained at, if the weight file does not state it."""
    class_doubt: str | None = None
    """Why the order of the dataset's classes may differ from that of the logits; a clause."""
    time_only: bool = False
    """Measure latency only: a further process of a cell whose other numbers are already measured."""
    process_budget_s: float | None = Field(None, gt=0)
    """Timing budget of this process, in seconds; None for the cell's whole budget."""
    predictions_path: Path | None = None
    turns: Path | None = None  # folder of the locks of `measure/latency/turns.py`; None for a cell alone
    turn_note: Path | None = None  # file in which the process notes how long it waited for other cells
    sent: float | None = None
    """Time at which the request was sent to its process, in seconds of the monotonic clock."""

    @property
    def timing_budget_s(self) -> float:
        """Timing budget of this process in seconds: at most the settings' budget, which a trial may lower."""
        budget = self.settings.budget_s
        return budget if self.process_budget_s is None else min(budget, self.process_budget_s)


class SizeRecord(_Record):
    """How the model was adapted to the resolution."""

    reach: str  # the adaptation, in words for people; `Row.reach` is another thing
    padding_ratio: float | None = None  # padding tokens per image token, in the stage that pads most
    arguments: dict[str, Any] = {}  # arguments of the factory that depend on the resolution
    random_tensors: tuple[str, ...] = ()
    """Tensors with random values, because the weight file has none for this size."""
    reshaped: dict[str, str] = {}
    """Tensors that were resized to this resolution, e.g. position tables -> how (interpolation)."""


class CountRecord(_Record):
    """Operation counts of one forward pass of one image in eval mode."""

    params: int
    macs: int
    flops: int
    scan_flops: int
    coverage: float | None
    """Output elements of operators with a cost formula / output elements of all operators, 0-1."""
    unknown: dict[str, int] = {}  # operators without a formula: name -> output elements


class FeaturesRecord(_Record):
    """The maps of a backbone (`--output features`), finest first."""

    strides: tuple[int, ...]  # in pixels of the image
    channels: tuple[int, ...]
    held_bytes: int | None = None  # of all maps of a batch, by the caller; None where no iteration ran


class NoiseRecord(_Record):
    """Disturbances on the machine while a cell was timed; None where the platform does not report them."""

    load_cores: float | None = None  # mean number of cores that other processes kept busy
    own_cores: float | None = None  # mean number of cores that this process kept busy
    steal: float | None = None  # share of processor time that the hypervisor gave to other guests, 0-1
    clock_hz: float | None = None  # median clock of the device: the fastest core's, or the GPU's SM clock
    clock_limit_hz: float | None = None  # the GPU's highest SM clock
    clock_change: float | None = None
    """Median clock of the later readings / median clock of the earlier ones - 1."""
    temperature_c: float | None = None  # highest temperature of the device, degrees Celsius
    temperature_limit_c: float | None = None  # temperature from which the device throttles, degrees Celsius
    slowdowns: tuple[str, ...] = ()  # throttling reasons that the device reported, in order of occurrence


class CountersRecord(_Record):
    """Kernel counters of a process while it was timed; None where the platform has none."""

    page_faults: int | None = None
    """Minor page faults: pages touched for the first time, or again after the process released them."""
    context_switches: int | None = None  # involuntary context switches of the process's threads
    migrations: int | None = None  # migrations of the process's threads between processors


class ProcessRecord(_Record):
    """One of the fresh processes that measure the latency of a cell."""

    samples: int = Field(ge=0)
    """Number of samples this process took; `samples_s` holds them process after process."""
    yardstick_s: tuple[float, ...] = ()
    """Times of the yardstick runs between these samples, in seconds; see `measure/latency/yardstick.py`."""
    seconds: float = 0.0  # wall time of the process, including the model build
    overhead_s: dict[str, float] = {}
    """Phase -> seconds of a further process; empty for the first one, whose phases are the row's."""
    started: str | None = None  # start time: UTC, ISO 8601, to the second
    disturbed: str | None = None
    """Cause of a disturbance, which excludes the samples unless all processes were disturbed; else None."""
    noise: NoiseRecord = NoiseRecord()
    counters: CountersRecord = CountersRecord()


class TimingRecord(_Record):
    """Seconds per iteration; an iteration processes one batch that is already on the device."""

    samples_s: tuple[float, ...]  # samples of all processes, in the order the processes ran
    warmup_s: tuple[float, ...]  # warm-up iterations of the first process
    verdict: Literal["stable", "noisy", "disturbed", "single", "budget"]
    """How the timing ended; only rows of longvis 0.1 have `budget`: too few samples within the budget."""
    parts_s: dict[str, tuple[float, ...]] = {}
    """In train mode, separate times of the forward pass, the backward pass and the optimizer step."""
    noise: NoiseRecord = NoiseRecord()  # disturbances during the first process
    host_s: tuple[float, ...] = ()
    """On CUDA, per counted sample, seconds until the host had launched all kernels of the iteration."""
    graph_s: tuple[float, ...] = ()
    """On CUDA, seconds of the iteration replayed as a CUDA graph, without the host; of the first process."""
    processes: tuple[ProcessRecord, ...] = ()  # the processes; empty in rows of longvis 0.1
    others_spread: float | None = None
    """Spread between the processes of other cells of the sweep, if this cell has too few of its own."""
    conditions: dict[str, str] = {}
    """Settings that the harness applied to every model while timing, e.g. {"freed memory": "kept"}."""

    def by_process(self, *, clean: bool = False) -> tuple[tuple[float, ...], ...]:
        """The samples of each process that took any.

        Arguments:
            clean: leave out disturbed processes, unless all processes were disturbed.
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
        """The yardstick samples of the same processes, in the same order; empty for a process without any."""
        timed = [process for process in self.processes if process.samples]
        undisturbed = [process for process in timed if process.disturbed is None]
        return tuple(process.yardstick_s for process in (undisturbed if clean and undisturbed else timed))


class EnergyRecord(_Record):
    """Energy that the device took for iterations repeated back to back; idle power is part of it."""

    joules: float
    seconds: float
    images: int
    source: str  # the counter, e.g. "NVML" or "RAPL, 2 packages"
    idle_w: float | None = None  # power of the device before the model was built, for comparison


class WorldRecord(_Record):
    """A training step on several devices, compared with one."""

    backend: str  # of torch.distributed, e.g. "nccl"
    one_device_s: tuple[float, ...]  # samples of the same step on one device, without exchange of gradients
    rank_peak_bytes: tuple[int, ...] = ()  # measured peak of each rank


class TensorRecord(_Record):
    """Bytes of the tensors alone, from a shape-only run; known even if the cell exceeds the memory."""

    peak_bytes: int
    parts_bytes: dict[str, int] = {}
    """Bytes per kind of tensor alive at the peak; they sum to `peak_bytes`."""


class MemoryRecord(_Record):
    """Peak memory in bytes, above the baseline that the process held before it built the model."""

    peak_bytes: int
    baseline_bytes: int
    source: str
    """Counter that was read, e.g. "VmHWM - RssFile" or "torch.cuda.max_memory_allocated"."""
    reserved_bytes: int | None = None
    """Highest memory that the allocator held from the system or the device."""
    outside_bytes: int | None = None
    """On CUDA, what the process held beyond the allocator at the peak: context, kernels, libraries."""
    parts_bytes: dict[str, int] = {}
    """Bytes per part of the peak; they sum to `peak_bytes`."""


class BatchTry(_Record):
    """One trial of `--batch auto`."""

    batch_size: int
    status: Status  # `skipped` if a limit excluded this batch size before it ran
    reason: str | None = None
    throughput_img_s: float | None = None
    peak_bytes: int | None = None


class AccuracyRecord(_Record):
    """Correct predictions on held-out images at the cell's resolution."""

    correct_top1: int
    correct_top5: int | None
    images: int
    dataset: str
    weights: str
    trained_resolution: StoredResolution | None = None
    broken: tuple[str, ...] = ()
    """Held-out files that could not be read and do not count, relative to the dataset's folder."""
    classes: int | None = None
    """Number of dataset classes that predictions were restricted to, if the model has more; else None."""
    class_doubt: str | None = None
    """Why the order of the dataset's classes may differ from that of the logits; None if nothing says so."""


Verdict = Literal["ok", "invalid", "not checked"]


class ValidityRecord(_Record):
    """Comparison of the model's outputs with a reference."""

    verdict: Verdict
    reference: str
    """The reference, e.g. "float64, unfused attention"."""
    reference_error: float | None = None
    """Largest absolute difference of the logits / largest absolute logit of the reference."""
    batch_error: float | None = None
    """The same ratio between the logits of an image alone and of the same image in a batch."""
    tolerance: float | None = None
    """Largest ratio that is accepted."""


class ReachRecord(_Record):
    """Which pixels a token can see, and radii per seed or image; definitions are in `measure/reach.py`."""

    basis: Literal["map", "logits"]
    share: float
    tokens: int
    radius_50_px: tuple[float, ...]
    radius_90_px: tuple[float, ...]
    trained_radius_50_px: tuple[float, ...] = ()
    trained_radius_90_px: tuple[float, ...] = ()


class RowWarning(_Record):
    """A typed warning on a row; see `row_warnings.py` for the closed list."""

    code: str
    message: str
    advice: str


class Row(_Record):
    """The result of one cell: one line of `cells.jsonl`."""

    version: Literal[3] = Field(3, alias="schema")
    key: str
    attempt: int = 1
    machine: str = ""  # `Environment.machine`, to tell rows of several machines apart in one table
    code: str | None = None  # hash of the measuring sources, a part of the key; None in rows of schema 1
    cell: Cell
    settings: Settings = Settings()
    status: Status
    reason: str | None = None
    """Why the status is not ok: one sentence, with a remedy where there is one."""
    started: str | None = None
    gpu_index: int | None = None
    gpu_uuid: str | None = None
    """On CUDA, which GPU or slice of one (MIG) ran it, by torch's index and by UUID; no conditions."""
    neighbours: int = 0  # most cells of the same sweep that ran meanwhile on other devices of the machine
    size: SizeRecord | None = None
    count: CountRecord | None = None
    params: int | None = None
    """Number of parameters, if the operations could not be counted so that `count` is None."""
    features: FeaturesRecord | None = None  # where the cell's output is features
    timing: TimingRecord | None = None
    energy: EnergyRecord | None = None
    world: WorldRecord | None = None
    tensors: TensorRecord | None = None
    memory: MemoryRecord | None = None
    batches: tuple[BatchTry, ...] = ()
    """Trials of `--batch auto`, smallest batch first."""
    accuracy: AccuracyRecord | None = None
    validity: ValidityRecord | None = None
    reach: ReachRecord | None = None
    backends: dict[str, str] = {}
    """Operator -> backend that executed it, e.g. {"scan": "numba"}; attention kernels are in `attention`."""
    attention: str | None = None
    """Softmax attention kernels observed in one iteration without inference mode: `flash`, `efficient`,
    `cudnn`, `math` (torch's function, unfused), `unfused` (the model's own matrix products and softmax)."""
    numerics: dict[str, str] = {}
    """torch settings and library versions that can change a number, after the timing; empty in older rows."""
    null_reasons: dict[str, str] = {}
    """Column or metric -> why it has no value."""
    notes: tuple[RowWarning, ...] = ()
    changed_settings: tuple[str, ...] = ()
    """Global settings that the model's code changed while it was timed, or that could not be restored."""
    cached: tuple[str, ...] = ()
    """What was not computed for this row but read from the cache: "count", "shapes", "accuracy", "reach"."""
    overhead_s: dict[str, float] = {}
    """Phase (`phases.py`) -> seconds; the sum is the time from sending the request to the process's end."""
    log_tail: str = ""
    """Last lines of the cell's output, kept for failures."""
    repeats_s: tuple[float, ...] = Field((), exclude=True)
    """Median latency of each repeat of this cell; never stored: `report/repeats.py` adds it after reading."""
    reference_yardstick_s: float | None = Field(None, exclude=True)
    """Fastest yardstick among the rows of the same machine in the report; never stored."""
    baseline: tuple[str, Ratio | None] | None = Field(None, exclude=True)  # see `report/baseline.py`
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @classmethod
    def of(cls, request: Request, status: Status = "error", reason: str = "not finished") -> Row:
        """The row of a cell without any measurement yet."""
        names = ("key", "attempt", "machine", "code", "cell", "settings")
        return cls(**{name: getattr(request, name) for name in names}, status=status, reason=reason)

    def to_json(self) -> str:
        """One line of JSON; None becomes null, and NaN never occurs."""
        return self.model_dump_json(by_alias=True)


class Environment(_Record):
    """The machine and software that made rows.  Rows of different environments never share a directory."""

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
    """Environment variables that can change a number; paths are reduced to file names."""
    cpu: dict[str, str] = {}
    """Vendor, family, model, stepping and nominal clock of the processor, where the system reports them."""
    gpus: tuple[dict[str, str], ...] = ()
    """The kind of NVIDIA GPU: name, memory, power limit, ECC, MIG; in older rows an entry for each GPU."""

    @property
    def hash(self) -> str:
        """Eight hexadecimal characters of the SHA-256 of all fields."""
        return digest(self.model_dump(mode="json"))[:8]
