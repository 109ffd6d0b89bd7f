"""The steps of `longvis train` without its output: check all options, make jobs, store the weights.

Names, sizes, packages and devices of all models are checked before the first one is trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from longvis_bench.data.folder import order_doubt
from longvis_bench.data.protocol import FOLDER, ImageData, LoadableData, open_data
from longvis_bench.devices import kind_of, resolve_device
from longvis_bench.environment import default_threads, usable_cores
from longvis_bench.errors import CheckpointError, DataError, LongvisError
from longvis_bench.files import absence
from longvis_bench.hashing import digest
from longvis_bench.records import DataSpec
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution, to_json
from longvis_bench.training.curves import write_curves
from longvis_bench.training.job import Job, TrainReport
from longvis_bench.training.recipe import Recipe
from longvis_bench.weights.classes import head_classes, knows_classes
from longvis_bench.weights.files import find_file, sha256_weights, split_key
from longvis_bench.weights.header import read_header
from longvis_bench.weights.matching import check_fit
from longvis_bench.weights.resolving import chosen_set
from longvis_bench.weights.store import store_weights, weights_folder


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `longvis train` besides models, data, size and recipe."""

    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    initial: str | None = None
    """See `initial_weights`."""
    micro_batch: int | None = None
    workers: int | None = None
    """Loader processes per device; None for 0 on a CPU, whose cores the model needs, and up to 8 per GPU."""
    store: Path | None = None
    """Folder for weights; None for the user's data folder."""
    checkpoint_s: float = 600.0


def start_training(
    variants: Sequence[Variant],
    data: str | DataSpec,
    resolution: Resolution,
    recipe: Recipe,
    options: Options,
) -> list[Job]:
    """Check all options and make the jobs.

    Raises:
        LongvisError: an unknown name or device, an illegal size, a package that is not installed, or initial
            weights of another model.
    """
    images, device = open_data(data), _prepare(options.device, options.threads)
    if not images.size("train"):
        raise DataError(f"{images.name} has no train/: a training needs train/, with one folder per class.")
    if not variants:
        raise LongvisError("there is no model to train: name at least one.")
    for variant in variants:
        variant.plan(resolution)
        variant.require_packages()
    jobs = [
        Job(
            variant=variant,
            data=images,
            resolution=resolution,
            recipe=_suited(recipe, images),
            seed=options.seed,
            device=device,
            initial=_initial(variant, images, resolution, options.initial),
            micro_batch=options.micro_batch,
            workers=_workers(device) if options.workers is None else options.workers,
            checkpoint_s=options.checkpoint_s,
        )
        for variant in variants
    ]
    for job in jobs:
        if job.initial is not None:
            check_fit(job.variant, job.initial, [resolution], images.num_classes, whole=False)
    return [replace(job, checkpoint=_checkpoint(job, options.store)) for job in jobs]


def _suited(recipe: Recipe, data: LoadableData) -> Recipe:
    """The recipe without shifts, where every image is new and its detail is locked to pixels.

    Raises:
        LongvisError: the recipe resamples or mirrors such images.
    """
    if not data.fresh:
        return recipe
    if recipe.crop_scale is not None or recipe.flip > 0 or recipe.auto_augment is not None:
        raise LongvisError(
            f"the recipe {recipe.name} crops, mirrors or distorts images, which changes the detail of single "
            f"pixels that {data.name} is about; take quick, or leave out crop_scale, flip and auto_augment."
        )
    return recipe.model_copy(update={"shift": 0.0})


def _workers(device: str) -> int:
    if torch.device(device).type == "cpu":
        return 0
    return min(8, max(1, usable_cores() // max(1, torch.cuda.device_count())))


def _checkpoint(job: Job, store: Path | None) -> Path:
    """Path of a training's checkpoint, from a hash of its options, so that only the same command finds it."""
    identity = {
        "model": job.variant.full_name,
        "data": job.data.name,
        "resolution": to_json(job.resolution),
        "recipe": job.recipe.model_dump(mode="json"),
        "seed": job.seed,
        "initial": _identity_of(job.initial) if job.initial is not None else None,
        "micro_batch": job.micro_batch,
    }
    name = f"unfinished-{job.resolution}-{digest(identity)[:8]}.pt"
    return weights_folder(job.variant.full_name, store) / name


def _identity_of(weights: Path) -> str:
    """The hash of a weight file, and the key of the set that is taken from it."""
    key = split_key(weights)[1]
    return f"{sha256_weights(weights)}#{key}" if key else sha256_weights(weights)


def class_doubt(job: Job) -> str | None:
    """Why the order of the data's classes may not be that of the initial weights; None where none says so."""
    if job.initial is None or not job.data.name.startswith(FOLDER):
        return None
    known = head_classes(split_key(job.initial)[0])
    if known not in (None, job.data.num_classes):
        return None  # the classifier starts fresh
    is_known = knows_classes(known, job.data, read_header(job.initial).metadata)
    return None if is_known else order_doubt(job.data.classes)


def keep(report: TrainReport, store: Path | None) -> Path:
    """Store the weights and curves, delete the checkpoint, and return the weight file."""
    job = report.job
    weights = store_weights(
        report.model,
        variant=job.variant.full_name,
        dataset=job.data.name,
        resolution=job.resolution,
        classes=job.data.classes,
        facts=report.facts(),
        store=store,
    )
    write_curves(report, weights)
    if job.checkpoint is not None:
        job.checkpoint.unlink(missing_ok=True)
    return weights


def _initial(variant: Variant, data: ImageData, resolution: Resolution, spec: str | None) -> Path | None:
    """The file that training starts from, with the key of its parts where the model needs several."""
    path = initial_weights(variant, data.name, spec)
    return None if path is None else chosen_set(variant, path, [resolution], data.num_classes)


def initial_weights(variant: Variant, dataset: str, spec: str | None) -> Path | None:
    """The file of initial weights.

    Arguments:
        variant: the model.
        dataset: name of the data set that the model is trained on.
        spec: None for random weights, a path (FILE#KEY if a file holds several sets), or a size in pixels for
            the shipped weights of that size.

    Raises:
        CheckpointError: there is no such file, or no weights ship for the size.
    """
    if spec is None:
        return None
    if not spec.isdigit():
        path = find_file(Path(spec))
        if not split_key(path)[0].is_file():
            raise CheckpointError(f"{absence(path, 'weight file')}.")
        return path
    entry = variant.shipped_weights(dataset, int(spec))
    if entry is None or entry.file is None:
        raise CheckpointError(f"no weights ship for {variant.name} on {dataset} at {spec} px to start from.")
    return variant.folder / entry.file


def _prepare(device: str, threads: int | None) -> str:
    """Set the number of CPU threads; return the device to train on."""
    resolved = resolve_device(device)
    torch.set_num_threads(threads or _usual_threads())
    return resolved


def _usual_threads() -> int:
    """Default number of CPU threads of this process.

    Processes that train together on one machine share its cores.  torchrun sets OMP_NUM_THREADS=1 if the user
    did not set it, so a 1 is not a request there.
    """
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if together > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        return max(1, usable_cores() // together)
    return default_threads()


def devices_to_lock(device: str) -> tuple[str, ...]:
    """The devices that this process locks for a training on `device`: the one it trains on.

    Of several processes that train together on one machine, each on a GPU of its own, the first locks all of
    these GPUs and the others none: locks taken one by one could make two trainings wait for each other.
    """
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if together == 1 or kind_of(device) != "cuda":
        return (device,)
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    return tuple(f"cuda:{index}" for index in range(together)) if is_first else ()


def end_processes() -> None:
    """Leave the process group of a distributed training, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process prints and writes: the only one, or rank 0 of torchrun or accelerate."""
    return os.environ.get("RANK", "0") == "0"
