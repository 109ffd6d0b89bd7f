"""The program of one rank of `world.py`: torchrun starts it once per device."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from longvis_bench.data.protocol import open_data
from longvis_bench.errors import LongvisError, Unsupported
from longvis_bench.files import write_whole
from longvis_bench.measure.cell import build_model, cell_images
from longvis_bench.measure.exception_status import classify
from longvis_bench.measure.iteration import Step, make_iteration, make_optimizer
from longvis_bench.measure.latency.clock import Clock, clock_for, use_device
from longvis_bench.measure.memory.peak import PeakMemory
from longvis_bench.measure.numerics import set_numerics
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.measure.world import Failure, Result, Task
from longvis_bench.records import Request
from longvis_bench.registry.registry import Registry

WARMUP = 3
LEAST, MOST = 6, 200
"""Fewest and most samples; the budget decides between them."""


def main() -> None:
    """Run the task of the file that the command line names, as the rank that torchrun says."""
    task = Task.model_validate_json(Path(sys.argv[1]).read_text())
    rank = int(os.environ["RANK"])
    try:
        result = run_rank(task, rank)
    except Exception as error:
        status, reason = classify(error)
        if not isinstance(error, LongvisError):
            traceback.print_exception(error)
        failure = Failure(status=status, reason=f"rank {rank}: {reason}").model_dump_json()
        write_whole(
            task.folder / f"failure-{rank}.json", lambda file: file.write(failure.encode()), durable=False
        )
        sys.exit(1)
    if rank == 0:
        text = result.model_dump_json().encode()
        write_whole(task.folder / "result.json", lambda file: file.write(text), durable=False)


def run_rank(task: Task, rank: int) -> Result:
    """Measure the step of one rank together with the others."""
    cell, device, world = task.request.cell, torch.device(task.devices[rank]), len(task.devices)
    torch.set_num_threads(cell.threads)
    torch.manual_seed(cell.seed)
    use_device(device)
    set_numerics(cell)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world > 1:
        distributed.init_process_group(backend)
    try:
        iteration, memory = _prepare(task.request, device, world)
        warm, samples = _time(iteration, clock_for(device), task.request.timing_budget_s, world)
        record = None if memory is None else memory.read(iteration)
        every = _gathered((samples, record), world)
    finally:
        if world > 1:
            distributed.destroy_process_group()
    return Result(
        warmup_s=tuple(warm),
        samples_s=tuple(tuple(samples) for samples, _ in every),
        memory=tuple(record for _, record in every),
        backend=backend if world > 1 else "none",
    )


def _prepare(request: Request, device: torch.device, world: int) -> tuple[Step, PeakMemory | None]:
    """The training step, and the memory counter from before the model was built."""
    cell = request.cell
    variant = Registry(request.models_dirs, request.working_dir).find(request.model or cell.model)
    images = cell_images(cell, open_data(request.source or cell.data), cell.batch_size)
    try:
        memory = PeakMemory(images)
    except Unsupported:
        memory = None
    model = build_model(request, variant, RowBuilder(request))
    optimizer = make_optimizer(model)
    step, _ = make_iteration(cell, _shared(model, device, world), images, optimizer)
    return step, memory


def _shared(model: nn.Module, device: torch.device, world: int) -> nn.Module:
    """The model whose backward exchanges gradients; alone it is left as it is."""
    if world == 1:
        return model
    indices = None if device.index is None else [device.index]
    return DistributedDataParallel(model, device_ids=indices, static_graph=True)


def _time(iteration: Step, clock: Clock, budget_s: float, world: int) -> tuple[list[float], list[float]]:
    """Warm-up and samples in seconds; all ranks take the same number, and start each step together."""
    warm = [clock.time(iteration) for _ in range(WARMUP)]
    left = budget_s - sum(warm)
    wanted = min(MOST, max(LEAST, int(left / warm[-1])))
    count = min(_gathered(wanted, world))
    samples = []
    for _ in range(count):
        if world > 1:
            distributed.barrier()
        samples.append(clock.time(iteration))
    return warm, samples


def _gathered(value: Any, world: int) -> list[Any]:
    """The values of all ranks, by rank."""
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    distributed.all_gather_object(found, value)
    return found


if __name__ == "__main__":
    main()
