"""Shipping weights: what was trained is entered in the card once, true to the file, and nothing else is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from longvis_bench.data.digits import Digits
from longvis_bench.data.protocol import Split
from longvis_bench.errors import CardError, LongvisError
from longvis_bench.hashing import sha256_file
from longvis_bench.registry.card import read_card
from longvis_bench.registry.registry import Registry
from longvis_bench.training.job import Job
from longvis_bench.training.recipe import QUICK

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import ship_weights


class Few(Digits):
    """The first of the digits only."""

    def size(self, split: Split) -> int:
        return {"train": 32, "val": 40}[split]


@pytest.fixture(scope="module")
def job() -> Job:
    variant = Registry(()).find("convnext-n")
    return Job(
        variant=variant, data=Few(), resolution=32, recipe=QUICK.model_copy(update={"epochs": 1}), seed=3
    )


@pytest.fixture(scope="module")
def store(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    ship_weights.train_and_keep(job, store)
    return store


def test_a_training_that_ended_before_it_was_entered_is_found_again(job: Job, store: Path) -> None:
    weights = ship_weights.trained(job, store)
    assert weights is not None
    assert weights.suffix == ".safetensors"
    other = Job(variant=job.variant, data=job.data, resolution=32, recipe=job.recipe, seed=4)
    assert ship_weights.trained(other, store) is None


def test_the_card_says_what_the_file_is(job: Job, store: Path, tmp_path: Path) -> None:
    shutil.copyfile(job.variant.folder / "card.toml", tmp_path / "card.toml")
    before = read_card(tmp_path / "card.toml")
    weights = ship_weights.trained(job, store)
    assert weights is not None
    ship_weights.ship(job, weights, tmp_path)
    after = read_card(tmp_path / "card.toml")
    (entry,) = (each for each in after.weights if each not in before.weights)
    assert (entry.variant, entry.dataset, entry.resolution, entry.seed, entry.epochs) == (
        "convnext-n",
        "digits",
        32,
        3,
        1,
    )
    assert entry.file == "convnext-n-digits-32.safetensors"
    assert entry.sha256 == sha256_file(tmp_path / entry.file)
    facts = json.loads(weights.with_suffix(".json").read_text())
    assert entry.top1 == pytest.approx(facts["top1"], abs=1e-6)
    assert entry.images_s == facts["images_s"]
    assert after.model_copy(update={"weights": before.weights}) == before
    with pytest.raises(CardError, match="two files for convnext-n on digits at 32 px"):
        ship_weights.ship(job, weights, tmp_path)
    assert read_card(tmp_path / "card.toml") == after


def test_an_accuracy_that_the_file_does_not_give_is_not_entered(
    job: Job, store: Path, tmp_path: Path
) -> None:
    weights = ship_weights.trained(job, store)
    assert weights is not None
    facts = json.loads(weights.with_suffix(".json").read_text())
    with pytest.raises(LongvisError, match="were written down"):
        ship_weights.check(job, weights, facts | {"top1": facts["top1"] + 0.1})
