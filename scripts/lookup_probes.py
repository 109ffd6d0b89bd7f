"""Linear shortcuts on `lookup`: mean colours and shrunk pixels, the figures of docs/lookup.md.

    python scripts/lookup_probes.py [colour] [32] [224]

Each is a linear support vector machine on standardised features of 2,400 training scenes of 256 px, judged on
the 1,000 held-out ones; its C is the best of six by cross-validation on the training scenes alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from longvis_bench import units
from longvis_bench.data.lookup import Lookup
from longvis_bench.data.protocol import Split
from longvis_bench.files import write_whole

RECORDS = Path(__file__).parent.parent / "results" / "lookup" / "probes.jsonl"
RESOLUTION, TRAIN_SCENES, FOLDS = 256, 2400, 4
GRID = {"C": [10.0**power for power in range(-5, 1)]}
KNOWN = ("colour", "32", "224")
CHUNK = 8192
"""Features that are in memory as float32 at once."""


def features(kind: str, split: Split, scenes: int) -> tuple[Tensor, list[int]]:
    """(scenes, features), uint8 or float32, and labels."""
    data, rows, labels = Lookup(), [], []
    for index in range(scenes):
        image, label = data.load(split, index, RESOLUTION)
        rows.append(_of(kind, image))
        labels.append(label)
    return torch.stack(rows), labels


def _of(kind: str, image: Tensor) -> Tensor:
    if kind == "colour":
        return image.float().mean((1, 2))
    side = int(kind)
    small = F.interpolate(image[None].float(), (side, side), mode="bicubic", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8).flatten()


def kernels(train: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Products of standardised features, divided by their number: (train, train) and (held out, train)."""
    own = torch.zeros(len(train), len(train))
    other = torch.zeros(len(held_out), len(train))
    for begin in range(0, train.shape[1], CHUNK):
        part, its = (each[:, begin : begin + CHUNK].float() for each in (train, held_out))
        mean, deviation = part.mean(0), part.std(0).clamp_min(1e-6)
        part, its = (part - mean) / deviation, (its - mean) / deviation
        own += part @ part.T
        other += its @ part.T
    return own / train.shape[1], other / train.shape[1]


def probe(kind: str, scenes: int = TRAIN_SCENES, held_out: int | None = None) -> dict[str, Any]:
    """Fit a probe and judge it; plain values."""
    train, labels = features(kind, "train", scenes)
    other, truth = features(kind, "val", held_out or Lookup().size("val"))
    own, cross = kernels(train, other)
    search = GridSearchCV(SVC(kernel="precomputed"), GRID, cv=FOLDS).fit(own.numpy(), labels)
    return {
        "probe": kind,
        "resolution": RESOLUTION,
        "scenes": scenes,
        "C": search.best_params_["C"],
        "right_on_train": int((search.predict(own.numpy()) == np.array(labels)).sum()),
        "right": int((search.predict(cross.numpy()) == np.array(truth)).sum()),
        "images": len(truth),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("probes", nargs="*", default=KNOWN, metavar="PROBE", help=", ".join(KNOWN))
    parser.add_argument("--records", type=Path, default=RECORDS)
    asked = parser.parse_args(arguments)
    for kind in asked.probes:
        found = probe(kind)
        lines = asked.records.read_text("utf-8").splitlines() if asked.records.is_file() else []
        kept = [line for line in lines if json.loads(line)["probe"] != kind]
        text = "\n".join([*kept, json.dumps(found)]) + "\n"
        asked.records.parent.mkdir(parents=True, exist_ok=True)
        write_whole(asked.records, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        print(f"{kind}: {units.percent(found['right'] / found['images'])} of {found['images']}", flush=True)


if __name__ == "__main__":
    main()
