"""From what the user asks for to a list of cells: everything is checked here, before anything runs.

Imports no torch, so that `--dry-run` and bad input answer at once; unless an accelerator may be there and has
to be asked for, or timm for one of its names, or weights are given, which have to fit.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from longvis_bench.data.protocol import FOLDER, ImageData, open_data
from longvis_bench.environment import resolve_device, usable_cores
from longvis_bench.errors import (
    CheckpointError,
    IllegalSize,
    LongvisError,
    MissingDependency,
    Unsupported,
)
from longvis_bench.files import PACKAGE
from longvis_bench.hashing import digest
from longvis_bench.privacy import without_paths
from longvis_bench.records import (
    METRICS,
    Cell,
    DataSpec,
    Dtype,
    Environment,
    MemoryFormat,
    Metric,
    Mode,
    Request,
    Row,
    Settings,
    Status,
    TrainLength,
    cell_key,
)
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.weights.resolving import WeightFile, check_fit, given_weights, no_weights, shipped_weights

_NOT_IN_THE_NAME = {"budget_s", "precision", "timeout_s", "memory_limit_bytes", "skip_after_oom", "hours_for"}
"""Changing these continues the same run."""
QUICK_RESOLUTIONS = {"cpu": (256, 512, 1024), "cuda": (1024, 2048, 4096)}
QUICK_BUDGET_S = 5.0
CPU_IMAGES = 128


Positive = Annotated[int, Field(ge=1, lt=2**31)]


def _train_length(value: object) -> object:
    return TrainLength.parse(value) if isinstance(value, str) else value


class SweepConfig(BaseModel):
    """What `longvis bench` was asked; also the form of `--config` files and of `config` in run.json.

    None means "the default for this machine", which `resolve` fills in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = ()
    """Names as `registry.Registry.find` takes them; empty for the quick default."""
    resolutions: tuple[Positive, ...] = ()
    modes: tuple[Mode, ...] = ("infer",)
    batch_sizes: tuple[Positive | Literal["auto"], ...] = (1,)
    """`auto`: the batch of best throughput; see `batch_search.py`."""
    dtypes: tuple[Dtype, ...] = ()
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    memory_format: MemoryFormat = "channels_last"
    fuse: bool = False
    """Fold batch norms into the convolutions before them, in inference."""
    grad_checkpointing: bool = False
    """In training, keep blocks' inputs only and compute the rest again in the backward."""
    compile: bool = False
    """Run through torch.compile; its time is no part of the budget."""
    repeats: int = Field(1, ge=1, le=1000)
    """Passes over all cells, each cell in a fresh process every time."""
    metrics: tuple[Metric, ...] = METRICS
    data: str = "digits"
    classes: str | None = None
    """For `folder:PATH`: a shipped list of classes, or a file."""
    window: tuple[float, float] | None = None
    """For `folder:PATH`: the pixel values that become 0 and 1, for images of more than 8 bits."""
    images: Positive | None = None
    weights: Path | None = None
    pretrained: bool = False
    """timm's own weights: `weights`, or what the local cache holds."""
    budget_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    precision: float = Field(0.02, gt=0, lt=1)
    timeout_s: float = Field(600.0, gt=0, allow_inf_nan=False)
    memory_limit_bytes: int | None = Field(None, ge=1, lt=2**63)
    hours_for: Annotated[TrainLength | None, BeforeValidator(_train_length)] = None
    """What `train_hours` is worked out for."""
    seed: int = Field(0, ge=0, lt=2**63)
    models_dirs: tuple[Path, ...] = ()
    skip_after_oom: bool = True

    @property
    def source(self) -> DataSpec:
        """The data, as `open_data` finds it."""
        if not self.data.startswith(FOLDER):
            return DataSpec(self.data, self.classes, self.window)
        path = Path(self.data.removeprefix(FOLDER)).expanduser().absolute()
        return DataSpec(f"{FOLDER}{path}", self.classes, self.window)

    @property
    def is_quick(self) -> bool:
        """Whether the quick default is asked for."""
        return not self.models

    def resolve(self, registry: Registry) -> SweepConfig:
        """The same with every default of this machine filled in.

        Raises:
            DeviceError: the device is not there.
        """
        device = resolve_device(self.device)
        kind = "cuda" if device.startswith("cuda") else "cpu"
        quick = QUICK_BUDGET_S if self.is_quick and kind == "cpu" else 30.0
        return self.model_copy(
            update={
                "device": device,
                "models": self.models or _quick_models(registry, kind),
                "resolutions": self.resolutions or QUICK_RESOLUTIONS[kind],
                "dtypes": self.dtypes or (("fp32",) if kind == "cpu" else ("bf16",)),
                "threads": self.threads or usable_cores(),
                "images": self.images or self._usual_images(kind),
                "budget_s": self.budget_s or quick,
            }
        )

    @property
    def is_evaluation(self) -> bool:
        """Whether accuracy is all that is asked for."""
        return self.metrics == ("accuracy",)

    def _usual_images(self, kind: str) -> int:
        """All held-out images; some of them where accuracy is one of many numbers on a CPU."""
        if kind == "cpu" and not self.is_evaluation:
            return CPU_IMAGES
        return open_data(self.source).size("val")

    @property
    def name(self) -> str:
        """Name of the run's directory: readable, and the same for the same resolved configuration."""
        models = "-".join(re.sub(r"[^a-z0-9]+", "-", Path(model).name.lower()) for model in self.models)
        short = models if len(models) <= 48 else f"{len(self.models)}-models"
        sizes = "-".join(map(str, self.resolutions))
        numbers = self.model_dump(mode="json", exclude=_NOT_IN_THE_NAME)
        return f"{short}-{sizes}-{digest(numbers)[:8]}"


def _quick_models(registry: Registry, kind: str) -> tuple[str, ...]:
    cards = (found.card for found in registry.cards if found.origin == "built-in")
    chosen = (card.nano if kind == "cpu" else card.default_cuda for card in cards)
    return tuple(name for name in chosen if name is not None)


@dataclass(frozen=True)
class Planned:
    """One cell of a plan."""

    request: Request
    decided: Row | None = None
    """The row, where planning alone settles it (illegal size, missing package)."""

    @property
    def cell(self) -> Cell:
        """The cell."""
        return self.request.cell


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep, cheap ones first."""

    config: SweepConfig
    environment: Environment
    cells: tuple[Planned, ...]

    @property
    def longest_s(self) -> float:
        """Seconds the measuring takes at most where no cell is slower than its budget; for `--dry-run`."""
        runnable = sum(1 for planned in self.cells if planned.decided is None)
        return runnable * ((self.config.budget_s or 0.0) + 3.0)


def make_plan(config: SweepConfig, environment: Environment, working_dir: Path | None = None) -> Plan:
    """Resolve and check a configuration.

    Raises:
        LongvisError: a name, flag or device is wrong, or no cell at all can run; the first reason is given.
    """
    registry = Registry(config.models_dirs, working_dir)
    config = config.resolve(registry)
    variants = [registry.find(name) for name in dict.fromkeys(config.models)]
    for variant in variants:
        variant.check_factory()
    _check_options(config)
    data = open_data(config.source)
    given = given_weights(variants, data, config.weights, config.pretrained)
    for variant in variants:
        _check_fit(config, variant, given.get(variant.full_name), data)
    cells: list[Planned] = []
    faults: list[LongvisError | None] = []
    for turn, resolution, batch, mode, dtype, variant in product(
        range(config.repeats),
        config.resolutions,
        config.batch_sizes,
        config.modes,
        config.dtypes,
        variants,
    ):
        condition = {
            "round": turn,
            "resolution": resolution,
            "batch_size": 1 if batch == "auto" else batch,
            "batch_auto": batch == "auto",
            "mode": mode,
            "dtype": dtype,
        }
        weights = given.get(variant.full_name) or shipped_weights(variant, data.name, resolution)
        planned, fault = _plan_cell(config, environment, registry, variant, data, weights, condition)
        cells.append(planned)
        faults.append(fault)
    _refuse_hopeless(faults)
    _refuse_empty_evaluation(config, [planned.cell for planned in cells])
    return Plan(config, environment, tuple(sorted(cells, key=_cost)))


def _refuse_hopeless(faults: list[LongvisError | None]) -> None:
    """Raise where no cell can run: exit code 3 if all want for a package, else 2."""
    reasons = [fault for fault in faults if fault is not None]
    if len(reasons) < len(faults):
        return
    if not reasons:
        raise LongvisError("nothing to measure: no model, size, mode, batch or dtype is left.")
    other = next((fault for fault in reasons if not isinstance(fault, MissingDependency)), None)
    if other is None or isinstance(other, IllegalSize):
        raise other or reasons[0]
    raise LongvisError(str(other))


def _refuse_empty_evaluation(config: SweepConfig, cells: list[Cell]) -> None:
    """Raise where accuracy is all that is asked for and no cell has weights."""
    if config.is_evaluation and all(cell.weights is None for cell in cells):
        cell = cells[0]
        raise CheckpointError(
            f"{no_weights(cell.model, cell.data, cell.resolution)}, or give a file with --weights."
        )


def _cost(planned: Planned) -> tuple[int, int, int]:
    """Cheap cells first, one round after the other."""
    cell = planned.cell
    return cell.round, cell.resolution, cell.batch_size


def _plan_cell(
    config: SweepConfig,
    environment: Environment,
    registry: Registry,
    variant: Variant,
    data: ImageData,
    weights: WeightFile | None,
    condition: dict[str, Any],
) -> tuple[Planned, LongvisError | None]:
    cell = _cell(config, variant, data, weights, condition)
    code = code_hash(variant)
    key = cell_key(cell, code, environment.hash)
    settings = Settings(
        budget_s=config.budget_s or QUICK_BUDGET_S,
        precision=config.precision,
        timeout_s=config.timeout_s,
        memory_limit_bytes=config.memory_limit_bytes,
        hours_for=config.hours_for,
    )
    request = Request(
        cell=cell,
        settings=settings,
        model=variant.full_name,
        key=key,
        machine=environment.machine,
        code=code,
        models_dirs=tuple(path.resolve() for path in registry.models_dirs),
        working_dir=registry.working_dir,
        source=replace(config.source, normalisation=cell.normalisation),
        weights_path=weights.path if weights else None,
        logit_places=weights.places if weights else None,
        trained_resolution=weights.resolution if weights else None,
    )
    fault = _fault(variant, cell)
    if fault is None:
        return Planned(request), None
    status, error = fault
    row = Row(
        key=key,
        machine=environment.machine,
        code=code,
        cell=cell,
        settings=settings,
        status=status,
        reason=str(error),
    )
    return Planned(request, row), error


def _cell(
    config: SweepConfig,
    variant: Variant,
    data: ImageData,
    weights: WeightFile | None,
    condition: dict[str, Any],
) -> Cell:
    return Cell(
        model=without_paths(variant.full_name),
        family=variant.family,
        variant=variant.variant,
        implementation=variant.implementation,
        arguments=variant.arguments,
        device=config.device,
        threads=config.threads or usable_cores(),
        memory_format=config.memory_format,
        fuse=config.fuse and condition["mode"] == "infer",
        grad_checkpointing=config.grad_checkpointing and condition["mode"] == "train",
        compile=config.compile,
        data=data.name,
        num_classes=weights.logits(data) if weights else data.num_classes,
        images=config.images or CPU_IMAGES,
        metrics=config.metrics,
        seed=config.seed,
        weights=weights.name if weights else None,
        weights_sha256=weights.sha256 if weights else None,
        normalisation=weights.normalisation if weights else None,
        **condition,
    )


def _fault(variant: Variant, cell: Cell) -> tuple[Status, LongvisError] | None:
    """What makes a cell impossible, as far as it shows without building the model."""
    try:
        variant.require_packages()
        variant.plan(cell.resolution)
        if variant.card is not None and cell.dtype not in variant.card.dtypes:
            raise Unsupported(f"{variant.name} does not run in {cell.dtype}.")
    except IllegalSize as error:
        return "illegal_size", error
    except MissingDependency as error:
        return "missing_dependency", error
    except Unsupported as error:
        return "unsupported", error
    return None


def _check_options(config: SweepConfig) -> None:
    """Refuse options that would have no effect."""
    if "auto" in config.batch_sizes and "time" not in config.metrics:
        raise LongvisError("--batch auto looks for the best throughput, so it needs time among --metrics.")
    if config.grad_checkpointing and "train" not in config.modes:
        raise LongvisError("--grad-checkpointing is for training; add --mode train.")
    if config.hours_for is not None and "train" not in config.modes:
        raise LongvisError("--hours-for tells how long training takes; add --mode train.")


def _check_fit(config: SweepConfig, variant: Variant, weights: WeightFile | None, data: ImageData) -> None:
    """Refuse weights of another model; for accuracy alone, also those that leave a tensor random."""
    if weights is None:
        return
    logits = weights.logits(data)
    check_fit(variant, weights.path, config.resolutions, logits, whole=config.is_evaluation)


_MEASURING = (
    "records.py",
    "stats.py",
    "sizes",
    "data",
    "ops",
    "weights",
    "registry",
    "measure",
    "isolation",
    "backbones/building.py",
)
"""Files and packages of ours that can change a number of any model."""


def code_hash(variant: Variant, package: Path = PACKAGE) -> str:
    """Hash of the sources that can change a number of this variant: no commands, tables or plots.

    Arguments:
        variant: its backbone's own file is hashed beside what all models share.
        package: the folder of this package.
    """
    files = [path for name in _MEASURING for path in _sources(package / name)]
    source = variant.source_file()
    if source is not None:
        files.append(source)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return digest(hashes)[:16]


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]
