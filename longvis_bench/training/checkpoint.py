"""Checkpoints: the state of a training on disk, from which it resumes with the same result.

A checkpoint is one file of torch.save, written under a temporary name and renamed, so that a complete one
always exists; the restricted unpickler reads it.  It holds the model, the optimiser, the scaler of fp16, the
position in the schedule and in the order of images, and the curves.  It needs no random state: the loop seeds
the order of an epoch, each image's augmentation and each update by their numbers (`loop.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from longvis_bench.errors import CheckpointError
from longvis_bench.files import write_whole


@dataclass(kw_only=True)
class Position:
    """The position of a training in its epochs and updates; plain values."""

    epoch: int = 1
    """Current epoch, from 1."""
    update: int = 0
    """Finished updates of the epoch."""
    seen: int = 0
    """Training images used in the epoch so far."""
    loss_sum: float = 0.0
    """Sum of the loss over these images."""
    spent_s: float = 0.0
    """Seconds of the epoch's updates."""
    waited_s: float = 0.0
    """Seconds of these in which the model waited for images."""
    curve: list[list[float]] = field(default_factory=list)
    """One entry per update; see `curves.UPDATE`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per finished epoch: the fields of `job.TrainProgress`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A position, and the states that belong to it."""

    position: Position
    states: dict[str, Any]
    """State dicts by name."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, which replaces the previous one only when it is complete.

    Raises:
        CheckpointError: the file cannot be written; the previous checkpoint is still there.
    """
    content = {"position": asdict(checkpoint.position), "states": checkpoint.states}
    try:
        write_whole(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise CheckpointError(f"cannot write the checkpoint {path}: {error}.") from error


def read_checkpoint(path: Path, device: torch.device) -> Checkpoint | None:
    """The checkpoint of an interrupted training; None if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        position = content["position"] if "position" in content else content["place"]  # until longvis 0.2
        return Checkpoint(position=Position(**position), states=content["states"])
    except Exception as error:  # a damaged pickle can raise anything in torch's reader
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({type(error).__name__}); delete it to train from the start."
        ) from error
