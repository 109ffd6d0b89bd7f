"""Setup of a training: accelerate's processes, timm's optimiser and schedule, and seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
from torch import nn

from longvis_bench.errors import LongvisError, Unsupported
from longvis_bench.measure.numerics import require_tf32
from longvis_bench.registry.registry import Variant
from longvis_bench.training.job import Job
from longvis_bench.training.recipe import Recipe


def make_accelerator(job: Job) -> Accelerator:
    """A new accelerator per training, as one process may train several models in sequence.

    Raises:
        Unsupported: the device does not support the recipe's precision.
    """
    AcceleratorState._reset_state()
    precision = {"fp32": "no", "tf32": "no"}.get(job.recipe.precision, job.recipe.precision)
    on_cpu = torch.device(job.device).type == "cpu"
    if on_cpu and precision == "fp16":
        raise Unsupported(
            "training in fp16 needs CUDA; on a CPU, set the recipe's precision to bf16 or fp32."
        )
    if job.recipe.precision == "tf32":
        require_tf32(torch.device(job.device), "set the recipe's precision to fp32")
    return Accelerator(cpu=on_cpu, mixed_precision=precision, device_placement=False)


def own_device(job: Job, accelerator: Accelerator) -> torch.device:
    """The device of this process: the user's, or one of its own among several processes."""
    return torch.device(job.device) if accelerator.num_processes == 1 else accelerator.device


def require_division(recipe: Recipe, processes: int, micro_batch: int) -> None:
    """Raise unless an update divides evenly into processes and micro-batches."""
    if recipe.batch_size % processes:
        raise LongvisError(
            f"a batch of {recipe.batch_size} cannot be shared by {processes} processes; "
            f"{recipe.batch_size // processes * processes or processes} could."
        )
    share = recipe.batch_size // processes
    if share % micro_batch:
        raise LongvisError(
            f"a micro-batch of {micro_batch} does not divide the {share} images of an update on each device."
        )
    if recipe.mixes and micro_batch % 2:
        raise LongvisError(f"mixup and cutmix mix pairs: a micro-batch of {micro_batch} is odd.")


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norms over the batches of all processes.

    Raises:
        Unsupported: the model has batch norms, and the device is not a CUDA GPU.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return model
    if device.type != "cuda":
        raise Unsupported(
            f"synchronised batch norms run on CUDA only, not on {device.type}; "
            "set sync_batch_norm = false in the recipe, or train in one process."
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def with_drop_path(variant: Variant, rate: float) -> Variant:
    """The variant with stochastic depth; a factory without this argument raises."""
    if rate == 0:
        return variant
    name = "drop_path_rate" if variant.origin == "timm" else "drop_path"
    return replace(variant, arguments={**variant.arguments, name: rate})


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    options: dict[str, Any] = {} if recipe.betas is None else {"betas": recipe.betas}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        **options,
    )
    return optimizer


def make_schedule(optimizer: Any, recipe: Recipe, updates: int) -> Any:
    """A schedule of timm, stepped every update; its only state is the number of the update."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.schedule,
        num_epochs=recipe.epochs,
        warmup_epochs=ceil(recipe.warmup * recipe.epochs * updates) / updates,  # type: ignore[arg-type]
        warmup_lr=recipe.learning_rate / 1000,
        min_lr=recipe.final_learning_rate,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return schedule


def seed_everything(*numbers: int) -> None:
    """Set every global random state from these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch and use deterministic algorithms inside; restore the caller's settings afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = [device] if device.type == "cuda" else []
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            # Filling uninitialised memory would cost small models a fifth of their time, for no benefit.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(before or device.type == "cpu", warn_only=before_warn)
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
            torch.use_deterministic_algorithms(before, warn_only=before_warn)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
