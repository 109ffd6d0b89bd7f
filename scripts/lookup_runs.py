"""Train models on `lookup` with one recipe, and record what each reaches: the figures of docs/lookup.md.

    python scripts/lookup_runs.py --models longvit-n,vit-n --res 256 --epochs 4 --store FOLDER
    python scripts/lookup_runs.py --models scripts/lookup_bags.py:mean --res 256 --epochs 4 --store FOLDER
    python scripts/lookup_runs.py --models vit-n --res 128 --shrunk --epochs 4 --store FOLDER

One model after the other, each trained as `longvis train` does it, on one thread.  The same command goes on
after a kill: a training that was cut off continues from its checkpoint, and what is on record in
results/lookup/trainings.jsonl is left out.  With --shrunk, scenes are drawn at twice the size, then shrunk.

Minutes are processor time: all updates at the mean time of those of the last session.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longvis_bench import units
from longvis_bench.data.lookup import Dials, Lookup, read_dials
from longvis_bench.data.protocol import Split
from longvis_bench.files import write_whole
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import Resolution, scaled
from longvis_bench.training.job import Job, TrainProgress, TrainReport
from longvis_bench.training.jobs import Options, keep, start_training
from longvis_bench.training.loop import WATCHED_IMAGES, train
from longvis_bench.training.recipe import read_recipe

RECORDS = Path(__file__).parent.parent / "results" / "lookup" / "trainings.jsonl"
BINS = 4
"""Of distance, equally wide between `near` and `far`."""


class Shrunk(Lookup):
    """Scenes that are drawn at twice the resolution and shrunk to it by averaging: half of their detail."""

    @property
    def name(self) -> str:
        return f"{super().name}, shrunk"

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        image, label = super().load(split, index, scaled(resolution, 2))
        return F.avg_pool2d(image.float(), 2).round().to(torch.uint8), label


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", required=True, help="separated by commas")
    parser.add_argument("--data", default="lookup", help="lookup, with dials in brackets")
    parser.add_argument("--shrunk", action="store_true", help="draw at twice the resolution, then shrink")
    parser.add_argument("--res", type=int, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, required=True, help="where weights and checkpoints are kept")
    parser.add_argument("--records", type=Path, default=RECORDS)
    asked = parser.parse_args(arguments)
    recipe = read_recipe(asked.recipe, epochs=asked.epochs)
    dials = read_dials(asked.data)
    for name in asked.models.split(","):
        options = Options(seed=asked.seed, device="cpu", threads=1, store=asked.store, checkpoint_s=60)
        (job,) = start_training([Registry(()).find(name)], asked.data, asked.res, recipe, options)
        if asked.shrunk:
            job = replace(job, data=Shrunk(dials), checkpoint=_beside(job))
        if any(_identity(job).items() <= record.items() for record in read_records(asked.records)):
            print(f"{name} is there already", flush=True)
            continue
        clock = Clock(name)
        report = train(job, clock.show)
        assert report is not None
        found = record(report, dials, clock.minutes)
        add_record(asked.records, found)
        keep(report, asked.store)
        print(f"{name}: {units.percent(found['right'] / found['images'])} of {found['images']}", flush=True)


def _beside(job: Job) -> Path:
    """The checkpoint of a training on shrunk scenes, beside that of one on whole scenes."""
    assert job.checkpoint is not None
    return job.checkpoint.with_name(f"shrunk-{job.checkpoint.name}")


class Clock:
    """Measures the processor time of updates, and prints the progress at the ends of epochs."""

    def __init__(self, name: str) -> None:
        self._name, self._began, self._first = name, time.process_time(), -1
        self.minutes = 0.0
        """Of one core, for all updates."""

    def show(self, progress: TrainProgress) -> None:
        """Take note of an update or of the end of an epoch."""
        if self._first < 0:  # the first update of this session is not timed: it allocates
            self._first, self._began = progress.step, time.process_time()
            return
        if progress.top1 is None:
            done = max(1, progress.step - self._first)
            self.minutes = (time.process_time() - self._began) / done * progress.steps / 60
            return
        print(
            f"{self._name}  {progress.step}/{progress.steps}  loss {progress.loss:.3f}, "
            f"held-out top-1 {units.percent(progress.top1)} of {WATCHED_IMAGES}, "
            f"{units.significant(self.minutes)} minutes for all updates",
            flush=True,
        )


def _identity(job: Job) -> dict[str, Any]:
    """What two trainings of one model must differ in to be two."""
    return {
        "model": Path(job.variant.full_name).name,
        "data": job.data.name,
        "resolution": job.resolution,
        "recipe": job.recipe.name,
        "presentations": job.recipe.epochs * job.data.size("train"),
        "seed": job.seed,
    }


def record(report: TrainReport, dials: Dials, minutes: float) -> dict[str, Any]:
    """What a training reached, as plain values."""
    right = report.accuracy.labels == report.accuracy.predictions
    data = Lookup(dials)
    distances = np.array([data.scene("val", index).distance for index in report.accuracy.indices.tolist()])
    edges = np.linspace(dials.near, dials.far, BINS + 1)
    bins = np.clip(np.searchsorted(edges, distances, side="right") - 1, 0, BINS - 1)
    per_epoch = report.job.data.size("train")
    return {
        **_identity(report.job),
        "learning_rate": report.job.recipe.learning_rate,
        "parameters": report.parameters,
        "minutes": round(minutes, 3),
        "right": int(right.sum()),
        "images": report.accuracy.images,
        "by_distance": [
            [round(low, 4), round(high, 4), int(right[bins == place].sum()), int((bins == place).sum())]
            for place, (low, high) in enumerate(zip(edges.tolist(), edges[1:].tolist(), strict=False))
        ],
        "on_the_way": [
            [epoch.epoch * per_epoch, round(epoch.loss, 4), round((epoch.top1 or 0) * WATCHED_IMAGES)]
            for epoch in report.history
        ],
    }


def read_records(path: Path) -> list[dict[str, Any]]:
    """All trainings on record."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def add_record(path: Path, found: dict[str, Any]) -> None:
    """Append a record; the file is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(each) for each in [*read_records(path), found]]
    write_whole(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))


if __name__ == "__main__":
    main()
