"""Train the nano variants, put their weights beside the cards, and enter them there.

    python scripts/ship_weights.py --data digits --res 512 --recipe tune --from 256 --store FOLDER
    python scripts/ship_weights.py --data pairs --res 512 --recipe quick --store FOLDER

One family after the other, each trained as `longvis train` does it.  The same command goes on after a kill:
families that ship for this data set and size are left out, trained ones are taken from the store, a training
that was cut off continues from its checkpoint.  A file is entered only if, loaded as a user loads it, every
tensor fits and it gives exactly the accuracy that its training ended with.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from longvis_bench import units
from longvis_bench.errors import LongvisError
from longvis_bench.hashing import sha256_file
from longvis_bench.measure.accuracy import batch_for, measure_accuracy
from longvis_bench.registry.card import read_card
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Resolution
from longvis_bench.training.job import Job, TrainProgress
from longvis_bench.training.jobs import Options, keep, start_training
from longvis_bench.training.loop import train
from longvis_bench.training.recipe import Recipe, read_recipe
from longvis_bench.weights.matching import load_weights
from longvis_bench.weights.store import weights_folder

END_OF_OURS = ("# The authors' weights", "# Published numbers")
"""Comments of a card before the first of which our own weights stand."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", help="separated by commas; default: the nano variant of every family")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--res", type=int, required=True)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--from", dest="initial", help="size of shipped weights to start from")
    parser.add_argument("--store", type=Path, required=True, help="where trained weights are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    registry = Registry(())
    names = (
        asked.models.split(",")
        if asked.models
        else [found.card.nano for found in registry.cards if found.card.nano]
    )
    recipe = read_recipe(asked.recipe, epochs=asked.epochs)
    options = Options(
        seed=asked.seed, device=asked.device, threads=asked.threads, initial=asked.initial, store=asked.store
    )
    for name in names:
        variant = registry.find(name)
        if variant.shipped_weights(asked.data, asked.res) is not None:
            print(f"{name} ships for {asked.data} at {asked.res} px already", flush=True)
            continue
        (job,) = start_training([variant], asked.data, asked.res, recipe, options)
        weights = trained(job, asked.store) or train_and_keep(job, asked.store)
        print(ship(job, weights), flush=True)


def trained(job: Job, store: Path) -> Path | None:
    """Weights in the store that this very job made, from a run that was cut off before they were entered."""
    wanted = _identity(job.variant, job.data.name, job.resolution, job.recipe, job.seed, job.initial)
    folder = weights_folder(job.variant.full_name, store)
    for card in sorted(folder.glob(f"{job.data.name}-{job.resolution}-*.json")):
        facts = json.loads(card.read_text())
        weights = card.with_suffix(".safetensors")
        same = {key: facts.get(key) for key in wanted} == wanted
        if same and weights.is_file() and sha256_file(weights) == facts["sha256"]:
            return weights
    return None


def _identity(
    variant: Variant, dataset: str, resolution: Resolution, recipe: Recipe, seed: int, initial: Path | None
) -> dict[str, Any]:
    return {
        "variant": variant.full_name,
        "dataset": dataset,
        "resolution": resolution,
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "initial": initial.name if initial is not None else None,
    }


def train_and_keep(job: Job, store: Path) -> Path:
    def show(progress: TrainProgress) -> None:
        if progress.top1 is not None:
            print(
                f"{job.variant.name}  epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}, "
                f"{units.rate(progress.images_s)} images/s, held-out top-1 {units.percent(progress.top1)}, "
                f"about {units.seconds(round(progress.left_s))} left",
                flush=True,
            )

    report = train(job, show)
    assert report is not None
    return keep(report, store)


def ship(job: Job, weights: Path, folder: Path | None = None) -> str:
    """Copy a file beside its card, enter it there, and say so.

    Arguments:
        job: what made it.
        weights: the file in the store, its facts beside it.
        folder: of the card; the variant's own unless given.

    Raises:
        LongvisError: the file does not load whole, or its accuracy is another one than was written down.
    """
    facts = json.loads(weights.with_suffix(".json").read_text())
    check(job, weights, facts)
    folder = folder or job.variant.folder
    target = folder / f"{job.variant.variant}-{job.data.name}-{job.resolution}.safetensors"
    shutil.copyfile(weights, target)
    card = folder / "card.toml"
    text = with_entry(card.read_text("utf-8"), entry(job, facts, target.name))
    draft = card.with_suffix(".draft")
    draft.write_text(text, "utf-8")
    read_card(draft)
    draft.replace(card)
    return f"{target.name}: {units.percent(facts['top1'])} of {facts['images']}, {facts['images_s']} images/s"


def check(job: Job, weights: Path, facts: dict[str, Any]) -> None:
    """Load the file as a user does and measure it again."""
    model = job.variant.build(resolution=job.resolution, num_classes=job.data.num_classes)
    loaded = load_weights(model, weights)
    if loaded.random or loaded.unused or loaded.missing:
        raise LongvisError(f"{weights.name} does not fit {job.variant.name} tensor by tensor.")
    model.to(job.device)
    batch, size = batch_for(job.resolution), job.resolution
    found = measure_accuracy(model, job.data, resolution=size, batch_size=batch, device=job.device)
    if (found.top1, found.images) != (facts["top1"], facts["images"]):
        raise LongvisError(f"{weights.name} is right in {found.top1}, but {facts['top1']} were written down.")


def entry(job: Job, facts: dict[str, Any], file: str) -> str:
    """A card's table of one weight file."""
    lines = [
        "[[weights]]",
        f'variant = "{job.variant.variant}"',
        f'dataset = "{job.data.name}"',
        f"resolution = {job.resolution}",
        f"num_classes = {facts['num_classes']}",
        f'file = "{file}"',
        f'sha256 = "{facts["sha256"]}"',
        f'recipe = "{facts["recipe"]["name"]}"',
        f"epochs = {facts['epochs']}",
        f"seed = {facts['seed']}",
        *([f'initial = "{facts["initial"]}"'] if facts["initial"] else []),
        f"images_s = {facts['images_s']}",
        f"top1 = {round(facts['top1'], 6)}",
        f"images = {facts['images']}",
    ]
    return "\n".join(lines) + "\n"


def with_entry(card: str, entry: str) -> str:
    """A card's text with one more table, after those of our own weights."""
    place = re.search("|".join(f"^{re.escape(comment)}" for comment in END_OF_OURS), card, re.MULTILINE)
    if place is None:
        return f"{card.rstrip()}\n\n{entry}"
    return f"{card[: place.start()]}{entry}\n{card[place.start() :]}"


if __name__ == "__main__":
    main()
