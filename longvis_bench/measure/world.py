"""A training step on several devices of one machine: DistributedDataParallel, one process (rank) per device.

torchrun starts the ranks, which `rank.py` runs.  The same step is timed on one device first, by the same
program without the exchange of gradients, so that the scaling efficiency compares like with like: images per
second of N devices / N x those of one.  A sample is the time of the slowest rank; all start a step together.
Batch norms keep the statistics of their own rank, as DistributedDataParallel leaves them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from longvis_bench.files import PACKAGE
from longvis_bench.measure.latency.processes import ENERGY_COLUMNS
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import MemoryRecord, ProcessRecord, Request, Status, TimingRecord, WorldRecord
from longvis_bench.stats import verdict

RANK = "longvis_bench.measure.rank"
NOT_MEASURED = ("accuracy", "validity", "attention", "tensor_peak_bytes", *ENERGY_COLUMNS)
"""What is measured of a model in one process alone."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Message):
    """What a rank has to do."""

    request: Request
    devices: tuple[str, ...]
    """In torch's words, by rank."""
    folder: Path
    """Where the ranks leave their results."""


class Result(_Message):
    """What rank 0 gathered from all ranks."""

    warmup_s: tuple[float, ...]
    samples_s: tuple[tuple[float, ...], ...]
    """By rank."""
    memory: tuple[MemoryRecord | None, ...]
    """By rank."""
    backend: str


class Failure(_Message):
    """How a rank failed."""

    status: Status
    reason: str


class RankError(Exception):
    """A rank failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def world_devices(device: str, world: int) -> tuple[str, ...]:
    """The devices of the ranks: consecutive GPUs from the given one on, or the processor for all.

    Arguments:
        device: in torch's words.
        world: how many.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return ("cpu",) * world
    return tuple(f"{kind}:{int(index or 0) + rank}" for rank in range(world))


def measure_world(request: Request, builder: RowBuilder) -> None:
    """Measure the step on one device, then on all.

    Raises:
        RankError: a rank failed, with the status of its failure.
    """
    devices = world_devices(request.device or request.cell.device, request.cell.world)
    builder.null_reasons |= dict.fromkeys(NOT_MEASURED, "not measured on several devices (--world)")
    with builder.turns.alone(), builder.timed("time"):
        alone = _launch(request, devices[:1])
        together = _launch(request, devices)
    if "time" in request.cell.metrics:
        builder.timing = _timing(request, together, builder.started)
    known = [record for record in together.memory if record is not None]
    if known and "memory" in request.cell.metrics:
        builder.memory = max(known, key=lambda record: record.peak_bytes)
    builder.world = WorldRecord(
        backend=together.backend,
        one_device_s=alone.samples_s[0],
        rank_peak_bytes=tuple(record.peak_bytes for record in known),
    )


def _timing(request: Request, result: Result, started: str) -> TimingRecord:
    samples = [max(of_ranks) for of_ranks in zip(*result.samples_s, strict=True)]
    process = ProcessRecord(samples=len(samples), started=started)
    return TimingRecord.model_validate(
        {
            "samples_s": samples,
            "warmup_s": result.warmup_s,
            "verdict": verdict(samples, request.settings.precision),
            "processes": (process,),
        }
    )


def _launch(request: Request, devices: Sequence[str]) -> Result:
    """Run one rank per device.

    Raises:
        RankError: a rank failed.
    """
    with TemporaryDirectory(prefix="longvis-ranks-") as name:
        folder = Path(name)
        task = Task(request=request, devices=tuple(devices), folder=folder)
        file = folder / "task.json"
        file.write_text(task.model_dump_json())
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        done = subprocess.run([*program, str(len(devices)), "-m", RANK, str(file)], env=_variables(request))
        result = folder / "result.json"
        if done.returncode or not result.exists():
            raise RankError(_failure(folder, done.returncode))
        return Result.model_validate_json(result.read_text())


def _variables(request: Request) -> dict[str, str]:
    """The environment of the ranks, which find this package and do not search the working directory."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    threads = str(request.cell.threads)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": threads}


def _failure(folder: Path, code: int) -> Failure:
    """The first failure; the other ranks lose their connection because of it."""
    found = sorted(folder.glob("failure-*.json"), key=lambda file: file.stat().st_mtime_ns)
    if found:
        return Failure.model_validate_json(found[0].read_text())
    return Failure(status="crashed", reason=f"a rank ended without a result (torchrun's exit code {code})")
