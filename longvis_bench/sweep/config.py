"""The configuration of a sweep: `SweepConfig`, its defaults on this machine, and the name of its run.

Imports no torch, so that errors in options are reported at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from longvis_bench import units
from longvis_bench.data.protocol import FOLDER, open_data
from longvis_bench.devices import half_dtype, kind_of, resolve_device
from longvis_bench.environment import default_threads, usable_cores
from longvis_bench.errors import DeviceError, LongvisError, UnknownName
from longvis_bench.hashing import digest
from longvis_bench.records import (
    METRICS,
    ClassOrder,
    DataSpec,
    Dtype,
    MemoryFormat,
    Metric,
    Mode,
    Output,
    TrainLength,
)
from longvis_bench.registry.names import expand
from longvis_bench.registry.presets import Preset, find_preset
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import Fit, StoredResolution
from longvis_bench.sweep.devices import Chosen, choose_devices

_NOT_IN_THE_NAME = {
    *("repeats", "budget_s", "precision", "timeout_s"),
    *("memory_limit_bytes", "skip_after_oom", "hours_for", "cache", "devices", "overlap"),
}
"""Fields that do not enter the name: a command with other values resumes the same run."""

QUICK_RESOLUTIONS = {"cpu": (256, 512, 1024), "cuda": (1024, 2048, 4096)}
QUICK_BUDGET_S = 5.0
BUDGET_S = 30.0
CPU_IMAGES = 128
LEAST_MEMORY_LIMIT = 1 << 20

FLAGS = {
    "preset": "--preset",
    "models": "--models",
    "resolutions": "--res",
    "modes": "--mode",
    "output": "--output",
    "batch_sizes": "--batch",
    "dtypes": "--dtype",
    "device": "--device",
    "devices": "--devices",
    "overlap": "--overlap",
    "world": "--world",
    "threads": "--threads",
    "memory_format": "--memory-format",
    "fuse": "--fuse",
    "grad_checkpointing": "--grad-checkpointing",
    "compile": "--compile",
    "repeats": "--repeats",
    "metrics": "--metrics",
    "data": "--data",
    "classes": "--classes",
    "class_order": "--class-order",
    "window": "--window",
    "bands": "--bands",
    "fit": "--fit",
    "images": "--images",
    "weights": "--weights",
    "pretrained": "--pretrained",
    "budget_s": "--budget",
    "precision": "--precision",
    "timeout_s": "--timeout",
    "memory_limit_bytes": "--memory-limit",
    "hours_for": "--hours-for",
    "seed": "--seed",
    "models_dirs": "--models-dir",
    "skip_after_oom": "--no-skip",
    "cache": "--no-cache",
}
"""Field -> the option of `longvis bench` that sets it, for error messages."""


def _text(read: Callable[[str], Any]) -> BeforeValidator:
    """Validator that reads text with a unit and passes numbers unchanged."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return read(value)
        except ValueError as error:
            raise ValueError(f"it takes {error}") from None

    return BeforeValidator(validate)


def _modes(value: object) -> object:
    """Replace `both` by inference and training."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(mode for name in value for mode in (BOTH if name == "both" else (name,)))


def _one_or_three(bands: tuple[int, ...]) -> tuple[int, ...]:
    if len(bands) not in (1, 3):
        raise ValueError("it takes one or three numbers of bands, from 1, like 3,2,1")
    return bands


BOTH: tuple[Mode, ...] = ("infer", "train")
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Pixels = Annotated[StoredResolution, _text(units.read_pixels)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), _text(units.read_seconds)]
Share = Annotated[float, Field(gt=0, lt=1), _text(units.read_share)]
Bytes = Annotated[int, Field(ge=LEAST_MEMORY_LIMIT, lt=2**63), _text(units.read_size)]


def _train_length(value: object) -> object:
    return TrainLength.parse(value) if isinstance(value, str) else value


class SweepConfig(BaseModel):
    """The options of `longvis bench`; also the schema of `--config` files and of `config` in run.json.

    None means the default for this machine, which `resolve` fills in.  Values can be text with a unit: "2k"
    as a resolution, "2m" as a duration, "2%" as a share, "8GiB" as a size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    preset: str | None = None
    """A published table, e.g. "atlas-table1": its cells, of the given models and sizes if there are any."""
    models: tuple[str, ...] = ()
    """Names, patterns such as `*-s`, or `all`; empty for the quick tour of all families."""
    resolutions: tuple[Pixels, ...] = ()
    """Pixels per side; of rectangles width x height, like "2560x1920", or in Python (height, width)."""
    modes: Annotated[tuple[Mode, ...], BeforeValidator(_modes)] = ("infer",)
    """Any of "infer" and "train"; "both" means both."""
    output: Output = "logits"
    """What the models return: "logits", or "features", the backbone's maps without the head."""
    batch_sizes: tuple[Positive | Literal["auto"], ...] = (1,)
    """Images per batch; "auto" finds the batch of the highest throughput."""
    dtypes: tuple[Dtype, ...] = ()
    """Any of "fp32", "tf32", "bf16" and "fp16"; empty for fp32 on the CPU and, on CUDA, bf16, or fp16 on GPUs
    without native bf16."""
    device: str = "auto"
    """One of "auto", "cpu", "cuda", "cuda:N", "mps" and "xpu"."""
    devices: str | None = None
    """Several devices at once: "all" GPUs, names like "cuda:0,cuda:3", or "cpu:2x8": two of eight cores."""
    overlap: bool = False
    """With several CPU devices, also time cells side by side, which disturbs their latencies."""
    world: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices of this machine that train together (DistributedDataParallel), each with a batch of its own."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads; by default OMP_NUM_THREADS if set, else all usable cores."""
    memory_format: MemoryFormat = "channels_last"
    """Memory format of images and convolution weights: "channels_last" or "contiguous"."""
    fuse: bool = False
    """Fold batch norms into the preceding convolutions (inference only)."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory (training only)."""
    compile: bool = False
    """Run through torch.compile; compile time is reported separately and not part of the budget."""
    repeats: int = Field(3, ge=1, le=1000)
    """Fewest fresh processes per cell, interleaved with those of other cells; 1 for a first look."""
    metrics: tuple[Metric, ...] = METRICS
    """Any of "count", "time", "memory", "accuracy", "validity" and, not by default, "reach"."""
    data: str = "digits"
    """Labelled images: "digits", "lookup", "pairs" or "folder:PATH"."""
    classes: str | None = None
    """For folder:PATH: a shipped list of classes, or a file with one class per line, in the logits' order."""
    class_order: ClassOrder | None = None
    """For folder:PATH without `classes`: number the folders "sorted" (1, 10, 2) or "natural" (1, 2, 10); by
    default sorted, with a warning where the two differ."""
    window: tuple[float, float] | None = None
    """For folder:PATH with more than 8 bits per pixel: the pixel values that become black and white."""
    bands: Annotated[tuple[Positive, ...], AfterValidator(_one_or_three)] | None = None
    """For folder:PATH with images of several bands: the numbers of one or three to take, from 1."""
    fit: Fit = "crop"
    """For folder:PATH, how images get the shape of the input: "crop" the centre, "pad" by the mean, or
    "stretch"."""
    images: Positive | None = None
    """Held-out images to measure accuracy on; by default 128 on the CPU, else all."""
    weights: Path | None = None
    """Weight file to use instead of the shipped ones."""
    pretrained: bool = False
    """Use timm's pretrained weights: those in `weights`, or from the local cache."""
    budget_s: Seconds | None = None
    """Timing budget per cell, in seconds; by default 30, and 5 in the quick tour on a CPU."""
    precision: Share = 0.02
    """Stop timing once the 95 % interval of the median latency is this narrow (half-width, relative)."""
    timeout_s: Seconds = 600.0
    """Kill a cell after this many seconds."""
    memory_limit_bytes: Bytes | None = None
    """Kill a cell whose processes hold more memory than this, interpreter and torch included."""
    hours_for: Annotated[TrainLength | None, BeforeValidator(_train_length)] = None
    """Also report the hours of a training of this length, e.g. "126689x320": images x epochs."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the random weights."""
    models_dirs: tuple[Path, ...] = ()
    """Further folders of model cards."""
    cache: bool = True
    """Read counts, shape runs and accuracies of earlier runs from the cache; False computes them anew."""
    skip_after_oom: bool = True
    """Skip sizes larger than one that ran out of memory."""

    @property
    def source(self) -> DataSpec:
        """The data set, in the form that `open_data` takes."""
        order: ClassOrder = self.class_order or "sorted"
        data = self.data
        if data.startswith(FOLDER):
            data = f"{FOLDER}{Path(data.removeprefix(FOLDER)).expanduser().absolute()}"
        return DataSpec(data, self.classes, self.window, class_order=order, bands=self.bands, fit=self.fit)

    @property
    def is_quick(self) -> bool:
        """Whether no model is named, so that the sweep is the quick tour."""
        return not self.models

    def resolve(self, registry: Registry) -> SweepConfig:
        """The configuration with all defaults of this machine filled in.

        Raises:
            DeviceError: this machine does not have the device.
            LongvisError: there is no such preset, or it has no such model or size.
        """
        if self.preset is not None:
            return self._with_preset(find_preset(registry, self.preset))._with_defaults(registry)
        return self._with_defaults(registry)

    def _with_defaults(self, registry: Registry) -> SweepConfig:
        chosen = self.chosen_devices()
        device = resolve_device(self.device) if chosen is None else chosen.names[0]
        kind = "cuda" if kind_of(device) == "cuda" else "cpu"
        budget = QUICK_BUDGET_S if self.is_quick and kind == "cpu" else BUDGET_S
        return self.model_copy(
            update={
                "device": device,
                "devices": chosen and chosen.text,
                "models": tuple(registry.expand(self.models)) or _quick_models(registry, kind),
                "resolutions": self.resolutions or QUICK_RESOLUTIONS[kind],
                "dtypes": self.dtypes or (("fp32",) if kind == "cpu" else (half_dtype(device),)),
                "threads": self.threads or self._usual_threads(chosen),
                "images": self.images or self._usual_images(kind),
                "budget_s": self.budget_s or budget,
            }
        )

    def _usual_threads(self, chosen: Chosen | None) -> int:
        """Threads of a process: those of its device, or its share where several train together."""
        threads = default_threads() if chosen is None else chosen.threads
        return threads if self.world == 1 else max(1, min(threads, usable_cores() // self.world))

    def chosen_devices(self) -> Chosen | None:
        """The devices of `--devices`; None without it.

        Raises:
            DeviceError: they are not there, or cannot be used together.
        """
        chosen = None if self.devices is None else choose_devices(self.devices)
        if self.overlap and (chosen is None or chosen.names[1:2] != ("cpu",)):
            raise DeviceError("--overlap is for several CPU devices; add --devices cpu:NxM, or leave it out.")
        if chosen is None:
            return None
        if self.device not in ("auto", chosen.names[0]):
            raise DeviceError(f"--device {self.device} and --devices {self.devices}: give one of them.")
        if self.threads is not None and self.threads > chosen.cores:
            raise DeviceError(
                f"--threads {self.threads} is more than the {units.several(chosen.cores, 'core')} that each "
                f"of --devices {self.devices} has."
            )
        return chosen

    def _with_preset(self, preset: Preset) -> SweepConfig:
        """What the table has, in the fields that are not given."""
        models = tuple(expand(self.models, preset.models)) or preset.models
        for model in models:
            if model not in preset.models:
                raise UnknownName(f"model of {preset.name}", model, preset.models)
        for size in self.resolutions:
            if size not in preset.resolutions:
                sizes = ", ".join(map(str, preset.resolutions))
                raise LongvisError(f"{preset.name} has no cell at {size} px; its sizes are {sizes} px.")
        found: dict[str, Any] = {"models": models, "resolutions": self.resolutions or preset.resolutions}
        found |= {} if "modes" in self.model_fields_set else {"modes": preset.modes}
        if preset.batch_sizes and "batch_sizes" not in self.model_fields_set:
            found["batch_sizes"] = preset.batch_sizes
        return self.model_copy(update=found)

    @property
    def is_evaluation(self) -> bool:
        """Whether accuracy is the only metric."""
        return self.metrics == ("accuracy",)

    def _usual_images(self, kind: str) -> int:
        """Default number of held-out images: all, or a part on a CPU if there are other metrics."""
        if kind == "cpu" and not self.is_evaluation:
            return CPU_IMAGES
        return open_data(self.source).size("val")

    @property
    def name(self) -> str:
        """Name of the run's directory: readable, and equal for equal resolved configurations."""
        models = "-".join(re.sub(r"[^a-z0-9]+", "-", Path(model).name.lower()) for model in self.models)
        short = models if len(models) <= 48 else f"{len(self.models)}-models"
        sizes = "-".join(map(str, self.resolutions))
        numbers = self.model_dump(mode="json", exclude=_NOT_IN_THE_NAME) | {"device": kind_of(self.device)}
        unsaid = {None: "sorted", "sorted": "sorted, as asked"}  # None has the name that 0.2 gave to sorted
        numbers["class_order"] = unsaid.get(self.class_order, self.class_order)
        unchanged = {"bands": None, "preset": None, "output": "logits", "world": 1, "fit": "crop"}
        for name, usual in unchanged.items():
            if numbers[name] == usual:
                del numbers[name]  # runs of versions without this option keep their names
        return f"{short}-{sizes}-{digest(numbers)[:8]}"


def _quick_models(registry: Registry, kind: str) -> tuple[str, ...]:
    """On a CPU the nano variants; on CUDA the larger defaults, then nano variants that have weights."""
    cards = [found.card for found in registry.cards if found.origin == "built-in" and found.card.tour]
    chosen = [card.nano if kind == "cpu" else card.default_cuda for card in cards]
    if kind == "cuda":
        chosen += [card.nano for card in cards if card.nano in {entry.variant for entry in card.weights}]
    return tuple(name for name in chosen if name is not None)


def read_config(options: Mapping[str, Any]) -> SweepConfig:
    """Validate options.

    Raises:
        LongvisError: a field is unknown or its value invalid; the message names the field and its flag.
    """
    try:
        return SweepConfig.model_validate(dict(options))
    except ValidationError as error:
        raise LongvisError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    """A sentence on the first error: the field with its flag, the value, and valid values."""
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return _unknown_field(name)
    flag = f" ({FLAGS[name]})" if name in FLAGS else ""
    wrong = fault["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    for jargon, plain in _PLAIN.items():
        wrong = wrong.replace(jargon, plain)
    return f"{name}{flag} cannot be {str(fault['input'])[:80]!r}: {wrong}."


_PLAIN = {
    "a valid tuple": 'a list, like ["..."]',
    "a valid integer, unable to parse string as an integer": "a whole number",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean, unable to interpret input": "true or false",
    "less than 1": "less than 1, which is 100%",
}
"""pydantic's words -> those of a configuration file."""


def _unknown_field(name: str) -> str:
    known = list(SweepConfig.model_fields)
    asked = name.lower().replace("-", "_")
    by_flag = {flag.removeprefix("--").replace("-", "_"): field for field, flag in FLAGS.items()}
    meant = by_flag.get(asked, " or ".join(_nearest(asked, known)))
    advice = f"did you mean {meant}? " if meant else ""
    return f"unknown field {name[:80]!r} of a configuration: {advice}The fields are {', '.join(known)}."


def _nearest(asked: str, known: Sequence[str]) -> list[str]:
    """The nearest known name, and others that are almost as near."""
    near = difflib.get_close_matches(asked, known, n=3, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, asked, name).ratio() for name in near]
    return [name for name, like in zip(near, likeness, strict=True) if like > likeness[0] - 0.1]
