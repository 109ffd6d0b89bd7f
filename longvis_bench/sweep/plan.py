"""Make the list of cells from a configuration, and check everything before any cell runs.

Imports no torch, so that `--dry-run` and errors in options are fast, except to find an accelerator, to look
up a model of timm, or to check that given weights fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from longvis_bench.data.folder import order_doubt, refuse_two_orders
from longvis_bench.data.protocol import FOLDER, ImageData, open_data
from longvis_bench.devices import kind_of, torch_gpus
from longvis_bench.environment import default_threads, usable_cores
from longvis_bench.errors import (
    CheckpointError,
    DeviceError,
    IllegalSize,
    LongvisError,
    MissingDependency,
    Unsupported,
)
from longvis_bench.measure.cache import cache_folder
from longvis_bench.records import (
    Cell,
    Environment,
    Request,
    Row,
    Settings,
    Status,
)
from longvis_bench.registry.presets import find_preset
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Resolution
from longvis_bench.runs.progress import PlannedCell, PlannedSweep, name_of
from longvis_bench.sweep.code_hash import cell_key, code_hash
from longvis_bench.sweep.config import CPU_IMAGES, QUICK_BUDGET_S, SweepConfig
from longvis_bench.sweep.estimate import cell_seconds, iteration_seconds
from longvis_bench.text import without_paths
from longvis_bench.weights.resolving import WeightFile, given_weights, no_weights, shipped_weights


@dataclass(frozen=True)
class Planned:
    """One cell of a plan."""

    request: Request
    decided: Row | None = None
    """The row of a cell that cannot run (illegal size, missing package); else None."""

    @property
    def cell(self) -> Cell:
        """The cell."""
        return self.request.cell


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep, in the order of their cost."""

    config: SweepConfig
    environment: Environment
    cells: tuple[Planned, ...]
    notes: tuple[str, ...] = ()
    """What a user should know of the data; see `LoadableData.notes`."""

    macs: Mapping[tuple[str, Resolution], int] = field(default_factory=dict)
    """(model, resolution) -> counted multiply-adds per image, for models whose cards have none."""

    part: PlannedSweep | None = None
    """With `--shard`, the cells of all parts and the part that these are; None for a whole sweep."""

    @property
    def listed(self) -> PlannedSweep:
        """The whole sweep and the part that these cells are, for planned.json."""
        return self.part or self.parted([1] * len(self.cells), 1, 1)

    def parted(self, dealt: Sequence[int], number: int, parts: int) -> PlannedSweep:
        """The sweep with its cells divided into parts.

        Arguments:
            dealt: the part of each cell, from 1.
            number: the part that is run here.
            parts: how many there are.
        """
        listed = [
            PlannedCell(key=planned.request.key, name=name_of(planned.cell), part=part, seconds=seconds)
            for planned, part, seconds in zip(self.cells, dealt, self.seconds, strict=True)
        ]
        return PlannedSweep(sweep=self.config.name, part=number, parts=parts, cells=tuple(listed))

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """Estimated duration of each cell in seconds; 0 for cells that cannot run."""
        processes = self.config.repeats
        return tuple(
            0.0
            if planned.decided is not None
            else cell_seconds(planned.request, self._variant(planned), processes, self._macs(planned))
            for planned in self.cells
        )

    @property
    def estimated_s(self) -> float:
        """Estimated duration of the sweep in seconds, for `--dry-run`."""
        return sum(self.seconds)

    def iteration_seconds(self, planned: Planned) -> float | None:
        """Estimated seconds per iteration of a cell; None where its multiply-adds are unknown."""
        return iteration_seconds(planned.cell, self._variant(planned), self._macs(planned))

    def _macs(self, planned: Planned) -> int | None:
        return self.macs.get((planned.request.model, planned.cell.resolution))

    def _variant(self, planned: Planned) -> Variant:
        return self._variants[planned.request.model]

    @cached_property
    def _variants(self) -> dict[str, Variant]:
        registry = Registry(self.config.models_dirs)
        names = dict.fromkeys(planned.request.model for planned in self.cells)
        return {name: registry.find(name) for name in names}


def make_plan(config: SweepConfig, environment: Environment, working_dir: Path | None = None) -> Plan:
    """Resolve and check a configuration.

    Raises:
        LongvisError: a name, flag or device is wrong, or no cell can run; the message has the first reason.
    """
    registry = Registry(config.models_dirs, working_dir)
    config = config.resolve(registry)
    variants = [registry.find(name) for name in dict.fromkeys(config.models)]
    for variant in variants:
        variant.check_factory()
    _check_options(config)
    data = open_data(config.source)
    given = given_weights(variants, data, config.weights, config.pretrained, config.resolutions)
    for variant in variants:
        _check_fit(config, variant, given.get(variant.full_name), data)
    codes = {variant.full_name: code_hash(variant) for variant in variants}
    table = None if config.preset is None else find_preset(registry, config.preset).cells
    cells: list[Planned] = []
    faults: list[LongvisError | None] = []
    for resolution, batch, mode, dtype, variant in product(
        config.resolutions,
        config.batch_sizes,
        config.modes,
        config.dtypes,
        variants,
    ):
        if table is not None and (variant.full_name, resolution) not in table:
            continue
        condition = {
            "resolution": resolution,
            "batch_size": 1 if batch == "auto" else batch,
            "batch_auto": batch == "auto",
            "mode": mode,
            "dtype": dtype,
        }
        weights = given.get(variant.full_name) or shipped_weights(variant, data.name, resolution)
        code = codes[variant.full_name]
        planned, fault = _plan_cell(config, environment, registry, variant, code, data, weights, condition)
        cells.append(planned)
        faults.append(fault)
    _refuse_hopeless(faults)
    _refuse_empty_evaluation(config, [planned.cell for planned in cells])
    return Plan(config, environment, tuple(sorted(cells, key=_cost)), tuple(data.notes))


def _refuse_hopeless(faults: list[LongvisError | None]) -> None:
    """Raise if no cell can run: exit code 3 if all need a missing package, else 2."""
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
    """Raise if accuracy is the only metric and no cell has weights."""
    if config.is_evaluation and all(cell.weights is None for cell in cells):
        cell = cells[0]
        raise CheckpointError(
            f"{no_weights(cell.model, cell.data, cell.resolution)}, or give a file with --weights."
        )


def _cost(planned: Planned) -> tuple[Resolution, int]:
    """Sort key that puts cheap cells first."""
    return planned.cell.resolution, planned.cell.batch_size


def _plan_cell(
    config: SweepConfig,
    environment: Environment,
    registry: Registry,
    variant: Variant,
    code: str,
    data: ImageData,
    weights: WeightFile | None,
    condition: dict[str, Any],
) -> tuple[Planned, LongvisError | None]:
    cell = _cell(config, variant, data, weights, condition)
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
        device=config.device,
        environment=environment.hash,
        cache_dir=cache_folder() if config.cache else None,
        models_dirs=tuple(path.resolve() for path in registry.models_dirs),
        working_dir=registry.working_dir,
        source=replace(config.source, normalisation=cell.normalisation),
        weights_path=weights.path if weights else None,
        class_indices=weights.class_indices if weights else None,
        trained_resolution=weights.resolution if weights else None,
        class_doubt=class_doubt(config, data) if weights and not weights.knows_classes else None,
    )
    fault = _fault(variant, cell)
    if fault is None:
        return Planned(request), None
    status, error = fault
    return Planned(request, Row.of(request, status, str(error))), error


def class_doubt(config: SweepConfig, data: ImageData) -> str | None:
    """Why the order of class folders is in doubt, unless the user says which it is."""
    is_said = config.class_order is not None or config.classes is not None
    matters = "accuracy" in config.metrics and data.name.startswith(FOLDER)
    return order_doubt(data.classes) if matters and not is_said else None


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
        device=kind_of(config.device),
        threads=config.threads or default_threads(),
        world=config.world,
        memory_format=config.memory_format,
        fuse=config.fuse and condition["mode"] == "infer",
        grad_checkpointing=config.grad_checkpointing and condition["mode"] == "train",
        compile=config.compile,
        output=config.output,
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
    """Why a cell cannot run, as far as known without building the model; None if it can."""
    try:
        variant.require_packages()
        variant.plan(cell.resolution)
        stored = "fp32" if cell.dtype == "tf32" else cell.dtype
        if variant.card is not None and stored not in variant.card.dtypes:
            raise Unsupported(f"{variant.name} does not run in {cell.dtype}.")
        if cell.dtype == "tf32" and not cell.device.startswith("cuda"):
            raise Unsupported(f"tf32 needs an NVIDIA GPU, not {cell.device}; use --dtype fp32.")
    except IllegalSize as error:
        return "illegal_size", error
    except MissingDependency as error:
        return "missing_dependency", error
    except Unsupported as error:
        return "unsupported", error
    return None


def _check_options(config: SweepConfig) -> None:
    """Raise for options that would have no effect."""
    refuse_two_orders(config.classes, config.class_order)
    _check_world(config)
    if config.output == "features" and set(config.metrics) <= {"accuracy", "reach"}:
        raise LongvisError(
            "--output features has maps and no logits, so there is no accuracy and no reach to measure; "
            "add time, memory, count or validity to --metrics, or use --output logits."
        )
    if "auto" in config.batch_sizes and "time" not in config.metrics:
        raise LongvisError(
            "--batch auto searches for the highest throughput, so --metrics must include time."
        )
    if config.grad_checkpointing and "train" not in config.modes:
        raise LongvisError("--grad-checkpointing is for training; add --mode train.")
    if config.fuse and "infer" not in config.modes:
        raise LongvisError(
            "--fuse folds batch norms, which training needs; leave it out, or use --mode infer."
        )
    if config.hours_for is not None and "train" not in config.modes:
        raise LongvisError("--hours-for reports how long training takes; add --mode train.")


def _check_world(config: SweepConfig) -> None:
    """Raise where a training step cannot run on several devices together."""
    world, kind = config.world, kind_of(config.device)
    if world == 1:
        return
    if config.modes != ("train",):
        raise LongvisError("--world measures training steps on several devices together; give --mode train.")
    if config.output != "logits":
        raise LongvisError(
            "--world measures whole training steps, whose loss needs logits; leave --output out."
        )
    if config.devices is not None or "auto" in config.batch_sizes:
        other = "--devices" if config.devices is not None else "--batch auto"
        raise LongvisError(f"--world {world} uses the devices together; leave {other} out.")
    if kind == "cpu":
        needed, there = world * (config.threads or 1), usable_cores()
        short = f"{needed} cores ({config.threads} per process), and this process may use {there}"
    elif kind == "cuda":
        needed, there = world, len(torch_gpus()) - int(config.device.partition(":")[2] or 0)
        short = f"{needed} GPUs from {config.device} on, and there are {there}"
    else:
        needed, there, short = 1, 0, f"CUDA GPUs or the processor, not {kind}"
    if needed > there:
        raise DeviceError(f"--world {world} needs {short}.")


def _check_fit(config: SweepConfig, variant: Variant, weights: WeightFile | None, data: ImageData) -> None:
    """Raise for weights of another model; if accuracy is the only metric, also for missing tensors."""
    if weights is None:
        return
    from longvis_bench.weights.matching import check_fit

    logits = weights.logits(data)
    check_fit(variant, weights.path, config.resolutions, logits, whole=config.is_evaluation)
