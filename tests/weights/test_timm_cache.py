"""timm's own weights from a local cache that the tests make, and which logits are asked about. No network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.data.protocol import open_data
from longvis_bench.environment import read_environment
from longvis_bench.errors import CheckpointError
from longvis_bench.measure.accuracy import measure_accuracy
from longvis_bench.records import DataSpec
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.plan import Plan, make_plan
from longvis_bench.weights.classes import class_indices
from longvis_bench.weights.reading import read_tensors
from longvis_bench.weights.timm_cache import find_pretrained

WEIGHTS = "test_vit.r160_in1k"
SYNSETS: list[str] = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
PETS = {SYNSETS[281]: 1, SYNSETS[207]: 1, SYNSETS[5]: 1}
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _hub(cache: Path, repository: str, name: str = "model.safetensors") -> Path:
    """Where the hub's cache keeps a file of a repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc" / name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of the hub and of torch.hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


@pytest.fixture
def weights(cache: Path) -> Path:
    """A tiny model of timm's, with random weights, in the hub's cache."""
    file = _hub(cache, f"timm/{WEIGHTS}")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), file)
    return file


def _plan(model: str, data: Path | str, **options: Any) -> Plan:
    source = data if isinstance(data, str) else f"folder:{data}"
    config = SweepConfig(
        models=(model,), resolutions=(160,), data=source, device="cpu", metrics=("accuracy",), **options
    )
    return make_plan(config, read_environment())


def test_weights_in_the_cache_are_asked_about_the_classes_of_the_data(weights: Path, pictures: Any) -> None:
    (planned,) = _plan("timm:test_vit", pictures(PETS), pretrained=True).cells
    assert planned.request.weights_path == weights.resolve()
    assert planned.request.class_indices == tuple(sorted([281, 207, 5]))
    assert planned.request.trained_resolution == 160
    assert planned.cell.weights == f"timm:{WEIGHTS}"
    assert planned.cell.num_classes == 1000
    assert planned.cell.normalisation == HALF
    assert planned.request.source is not None
    assert planned.request.source.normalisation == HALF


def test_a_given_file_takes_the_place_of_the_cache(cache: Path, pictures: Any, tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "mine.safetensors")
    plan = _plan("timm:test_vit", pictures(PETS), pretrained=True, weights=tmp_path / "mine.safetensors")
    cell = plan.cells[0].cell
    assert (cell.weights, cell.normalisation) == ("mine.safetensors", HALF)
    plain = _plan("timm:test_vit", tmp_path / "pets", weights=tmp_path / "mine.safetensors").cells[0]
    assert plain.cell.normalisation is None
    assert plain.request.class_indices == (5, 207, 281)
    assert plain.request.key != plan.cells[0].request.key


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("timm:test_vit", f"hf download timm/{WEIGHTS} model.safetensors"),
        ("timm:test_vit.r160_in1k", f"model.safetensors of timm/{WEIGHTS} on the Hugging Face hub"),
        ("convnext-b", "weights of convnext-b (convnext_base.fb_in1k) are not in the local cache"),
        ("timm:hf-hub:someone/net", "hf download someone/net model.safetensors"),
        (
            "mambavision-s",
            "timm has no weights for mambavision-s: give a file with --weights; the authors' are at",
        ),
        ("atlas-n", "timm has no weights for atlas-n: give a file with --weights."),
        ("convnext-n", "timm has no weights for convnext-n"),
    ],
)
def test_one_sentence_says_which_file_is_wanted_and_where(
    cache: Path, model: str, wanted: str, pictures: Any
) -> None:
    words = ["eval", "--models", model, "--pretrained", "--res", "160", "--data", f"folder:{pictures(PETS)}"]
    done = CliRunner().invoke(app, words)
    said = " ".join(done.stderr.split())
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert wanted in said
    if "hf download" in wanted:
        assert f"{cache} (HF_HOME), or give the file with --weights FILE." in said
    assert not Path("results").exists()


def test_torch_hubs_cache_is_looked_into(cache: Path, tmp_path: Path) -> None:
    entry = get_pretrained_cfg("convnext_base.fb_in1k")
    assert entry is not None
    file = tmp_path / "torch" / "hub" / "checkpoints" / str(entry.url).rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert find_pretrained(Registry().find("convnext-b")).path == file


def test_a_model_of_the_hub_says_its_normalisation_itself(cache: Path, tmp_path: Path) -> None:
    file = _hub(cache, "someone/net")
    file.write_bytes(b"x")
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96]}
    file.with_name("config.json").write_text(
        json.dumps({"architecture": "test_vit", "pretrained_cfg": facts})
    )
    found = find_pretrained(Registry().find("timm:hf-hub:someone/net"))
    assert (found.path, found.resolution) == (file, 96)
    assert found.normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_cards_name_weights_that_timm_has_and_the_same_ones() -> None:
    named = [entry for card in Registry((), Path("/none")).cards for entry in card.card.weights if entry.timm]
    assert len(named) == 12
    for entry in named:
        known = get_pretrained_cfg(str(entry.timm))
        assert known is not None
        assert (known.num_classes, known.input_size[-1]) == (entry.num_classes, entry.resolution)
        assert str(known.url).rpartition("/")[2] == str(entry.url).rpartition("/")[2]


# Which logits


class _Data:
    name = "folder:x"

    def __init__(self, *classes: str) -> None:
        self.classes, self.num_classes = classes, len(classes)


def _places(known: int | None, *classes: str) -> tuple[int, ...] | None:
    data: Any = _Data(*classes)
    return class_indices("w", known, data)


def test_synsets_find_their_logits_in_every_set_of_imagenet() -> None:
    assert _places(1000, "n01440764", "n15075141") == (0, 999)
    places = _places(21841, "n01440764", "n15075141")
    assert places is not None
    names = ImageNetInfo("imagenet-22k").label_names()  # type: ignore[no-untyped-call]
    assert [names[place] for place in places] == ["n01440764", "n15075141"]
    assert _places(1000, *sorted(SYNSETS)) is None
    assert _places(2, "n01440764", "n15075141") is None
    assert _places(None, "cat", "dog") is None


@pytest.mark.parametrize("classes", [("cat", "dog"), ("n01440764", "dog"), ("n01440764", "n99999999")])
def test_other_classes_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match="w has 1000 classes and folder:x has 2: choose weights"):
        _places(1000, *classes)


def test_the_hundred_classes_of_the_shipped_list_are_imagenets(pictures: Any) -> None:
    names = Path(__file__).parents[2] / "longvis_bench" / "data" / "imagenet100.txt"
    listed = [line.partition("#")[0].strip() for line in names.read_text().splitlines()]
    classes = sorted(name for name in listed if name)
    places = _places(1000, *classes)
    assert places is not None
    assert [SYNSETS[place] for place in places] == classes


class _Fixed(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_answers_are_chosen_among_the_classes_of_the_data() -> None:
    logits = torch.zeros(1000)
    logits[999], logits[70], logits[63] = 9.0, 5.0, 4.0
    wide = [7 * label for label in range(10)]  # label 9 is logit 63, and logit 70 is no class of the data
    result = measure_accuracy(
        _Fixed(logits),
        open_data("digits"),
        resolution=8,
        images=40,
        batch_size=8,
        logits=1000,
        logit_indices=wide,
    )
    assert set(result.predictions.tolist()) == {9}
    assert result.correct_top1 == int((result.labels == 9).sum())
    assert result.to_record(weights="w").classes == 10


def test_images_are_normalised_as_the_weights_want(pictures: Any) -> None:
    root = f"folder:{pictures()}"
    usual, _ = open_data(root).batch("val", [0], 8)
    halves, _ = open_data(DataSpec(root, normalisation=HALF)).batch("val", [0], 8)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = usual[0] * deviation[:, None, None] + mean[:, None, None]
    assert torch.allclose(halves[0], (pixels - 0.5) / 0.5, atol=1e-6)


@pytest.mark.slow
def test_pretrained_weights_end_to_end(weights: Path, pictures: Any, tmp_path: Path) -> None:
    """The row equals what timm's own model says of the same images, restricted by hand."""
    root = pictures(PETS, size=(160, 160), val=8)
    words = ["--models", "timm:test_vit", "--pretrained", "--res", "160", "--data", f"folder:{root}"]
    done = CliRunner().invoke(app, ["eval", *words, "--device", "cpu", "--out", "run"])
    assert done.exit_code == 0, done.output
    row = json.loads(Path("run/cells.jsonl").read_text())
    assert [note["code"] for note in row["notes"] if note["code"] == "restricted"] == ["restricted"]
    assert "predictions are restricted to 3 of the 1000 classes of the weights" in " ".join(
        done.output.split()
    )
    model = timm.create_model("test_vit").eval()
    model.load_state_dict(read_tensors(weights))
    data = open_data(DataSpec(f"folder:{root}", normalisation=HALF))
    images, labels = data.batch("val", range(24), 160)
    with torch.inference_mode():
        said = model(images)[:, [5, 207, 281]].argmax(1)
    assert row["accuracy"]["correct_top1"] == int((said == labels).sum())
    assert (row["accuracy"]["classes"], row["accuracy"]["trained_resolution"]) == (3, 160)
