"""Where training stands, on disk: enough to go on as if nothing had happened.

A checkpoint is one file of torch.save, written beside itself and renamed, so that there is always a whole
one; it is read by the restricted unpickler.  It holds the model, the optimiser, the scaler of fp16, the
place in the schedule and in the order of images, and the curves.  No random state is in it because none is
carried over: the order of an epoch, each image's augmentation and each update are seeded by their numbers
(`loop.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from longvis_bench.errors import CheckpointError
from longvis_bench.files import write_whole


@dataclass(kw_only=True)
class Place:
    """How far training has come; plain values."""

    epoch: int = 1
    """The current one, from 1."""
    update: int = 0
    """Updates done in it."""
    seen: int = 0
    """Images learnt from in it."""
    loss_sum: float = 0.0
    """Over those images."""
    spent_s: float = 0.0
    """Seconds of its updates."""
    waited_s: float = 0.0
    """Seconds of those in which the model stood idle for want of images."""
    curve: list[list[float]] = field(default_factory=list)
    """One entry an update: see `curves.UPDATE`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an epoch that ended: the fields of `job.TrainProgress`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A place, and the states that belong to it."""

    place: Place
    states: dict[str, Any]
    """State dicts by name."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint that appears whole or not at all.

    Raises:
        CheckpointError: the disk does not take it; the checkpoint before it is still there.
    """
    content = {"place": asdict(checkpoint.place), "states": checkpoint.states}
    try:
        write_whole(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise CheckpointError(f"cannot write the checkpoint {path}: {error}.") from error


def read_checkpoint(path: Path, device: torch.device) -> Checkpoint | None:
    """The checkpoint of an interrupted training; None where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        return Checkpoint(place=Place(**content["place"]), states=content["states"])
    except Exception as error:  # a damaged pickle can fail anywhere in torch's reader
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({type(error).__name__}); delete it to train from the start."
        ) from error
