"""Shortcuts that do not solve `pairs`: the figures of longvis_bench/data/README.md, measured again.

    python scripts/shortcuts.py [colour] [probe] [mean] [maximum] [--images 4000] [--passes 3]

Each is trained on the training images at 256 px, where the canvas is emptiest of all, and judged on the 1,000
held-out ones; the choice of everything was made before, on nothing.  The local networks are kept after each
pass in --state, so that a run that is cut off goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from longvis_bench import units
from longvis_bench.data.pairs import Pairs
from longvis_bench.data.protocol import Split
from longvis_bench.stats import wilson

RESOLUTION, BATCH = 256, 32
Set = tuple[Tensor, Tensor]
"""Images (images, 1, 256, 256), uint8, and labels."""


def images(data: Pairs, split: Split) -> Set:
    loaded = [data.load(split, index, RESOLUTION) for index in range(data.size(split))]
    return torch.stack([image for image, _ in loaded]), torch.tensor([label for _, label in loaded])


def say(name: str, right: Tensor | NDArray[np.bool_], train: float | None = None) -> None:
    """One line of the table."""
    hits, n = int(right.sum()), len(right)
    ends = wilson(hits, n)
    assert ends is not None
    low, high = (units.percent(end) for end in ends)
    own = "" if train is None else f" ({units.percent(train)} on its training images)"
    print(f"{name}: {units.percent(hits / n)}, {low} to {high}{own}", flush=True)


def classify(name: str, model: Any, features: Callable[[Tensor], Tensor], train: Set, val: Set) -> None:
    own, held_out = features(train[0]).numpy(), features(val[0]).numpy()
    model = make_pipeline(StandardScaler(), model).fit(own, train[1].numpy())
    say(
        name,
        model.predict(held_out) == val[1].numpy(),
        float((model.predict(own) == train[1].numpy()).mean()),
    )


def colour(images: Tensor) -> Tensor:
    """Mean and deviation of each image."""
    flat = images.flatten(1).float()
    return torch.stack([flat.mean(1), flat.std(1)], dim=1)


def shrunk(images: Tensor) -> Tensor:
    """32 x 32 pixels: a glyph is about 4 of them wide."""
    return F.interpolate(images.float(), (32, 32), mode="area").flatten(1)


class Local(nn.Module):
    """Four convolutions that see 45 px, one glyph and never two; pooled over all places; linear."""

    def __init__(self, pool: str, width: int = 12) -> None:
        super().__init__()
        sizes = ((1, width, 5, 2), (width, 2 * width, 5, 2), (2 * width, 2 * width, 5, 2))
        layers: list[nn.Module] = []
        for before, after, kernel, stride in (*sizes, (2 * width, 4 * width, 3, 1)):
            layers += [
                nn.Conv2d(before, after, kernel, stride, kernel // 2),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.features, self.head, self.pool = nn.Sequential(*layers), nn.Linear(4 * width, 2), pool

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features((images.float() / 255 - 0.25) / 0.15)
        pooled = maps.mean((2, 3)) if self.pool == "mean" else maps.amax((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


def local(pool: str, train: Set, val: Set, passes: int, state: Path) -> None:
    """Train a local network, going on where its state stands, and judge it."""
    torch.manual_seed(0)
    model = Local(pool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = passes * -(-len(train[0]) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    done, path = 0, state / f"{pool}-{len(train[0])}-{passes}.pt"
    holders: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if path.exists():
        kept = torch.load(path, weights_only=True)
        done = kept["done"]
        for name, holder in holders.items():
            holder.load_state_dict(kept[name])
    for number in range(done, passes):
        own = one_pass(model, optimizer, schedule, train, number)
        torch.save(
            {"done": number + 1, **{name: holder.state_dict() for name, holder in holders.items()}}, path
        )
        print(f"  {pool}, pass {number + 1} of {passes}: {units.percent(own)} in training", flush=True)
    model.eval()
    with torch.inference_mode():
        right = torch.cat([model(x).argmax(1) == y for x, y in zip(*(t.split(50) for t in val), strict=True)])  # type: ignore[no-untyped-call]
    say(f"local network, {pool} over all places, {passes} passes", right)


def one_pass(model: nn.Module, optimizer: Any, schedule: Any, train: Set, number: int) -> float:
    """All training images once; the share that was right when seen."""
    hits, random = 0, torch.Generator().manual_seed(number)
    model.train()
    for places in torch.randperm(len(train[0]), generator=random).split(BATCH):  # type: ignore[no-untyped-call]
        logits = model(train[0][places])
        F.cross_entropy(logits, train[1][places]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        hits += int((logits.argmax(1) == train[1][places]).sum())
    return hits / len(train[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = ("colour", "probe", "mean", "maximum")
    parser.add_argument("shortcuts", nargs="*", default=known, metavar="SHORTCUT", help=", ".join(known))
    parser.add_argument("--images", type=int, default=Pairs().size("train"), help="training images")
    parser.add_argument("--passes", type=int, default=3, help="of the local networks over them")
    parser.add_argument("--state", type=Path, default=Path(), help="folder for what is unfinished")
    options = parser.parse_args()
    data = Pairs(options.images)
    train, val = images(data, "train"), images(data, "val")
    if "colour" in options.shortcuts:
        classify(
            "mean colour, logistic regression", LogisticRegression(), lambda x: colour(x)[:, :1], train, val
        )
        trees = HistGradientBoostingClassifier(random_state=0)
        classify("mean and deviation of colour, boosted trees", trees, colour, train, val)
    if "probe" in options.shortcuts:
        linear = LogisticRegression(C=0.01, max_iter=500)
        classify("32 x 32 pixels, logistic regression", linear, shrunk, train, val)
    for pool in ("mean", "maximum"):
        if pool in options.shortcuts:
            local(pool, train, val, options.passes, options.state)


if __name__ == "__main__":
    main()
