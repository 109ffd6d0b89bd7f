"""The scripts behind docs/lookup.md: true records made once, half the detail when shrunk, bags of 45 px."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longvis_bench.data.lookup import Dials, Lookup

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import lookup_bags
import lookup_probes
import lookup_runs

NET = """
from torch import nn
def net(*, resolution, num_classes, in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""


def test_a_training_is_recorded_once_and_its_counts_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.py").write_text(NET)
    command = [
        "--models",
        "net.py:net",
        "--res",
        "64",
        "--epochs",
        "1",
        "--store",
        "store",
        "--records",
        "r.jsonl",
    ]
    lookup_runs.main(command)
    lookup_runs.main(command)
    assert "net.py:net is there already" in capsys.readouterr().out
    (record,) = lookup_runs.read_records(tmp_path / "r.jsonl")
    known = ("model", "data", "resolution", "recipe", "presentations", "seed", "images")
    assert [record[key] for key in known] == ["net.py:net", "lookup", 64, "quick", 1600, 0, 1000]
    bins = record["by_distance"]
    assert (bins[0][0], bins[-1][1]) == (0.3, 0.65)
    assert sum(right for *_, right, _ in bins) == record["right"]
    assert sum(images for *_, images in bins) == 1000
    distances = np.array([Lookup().scene("val", index).distance for index in range(1000)])
    assert bins[0][3] == (distances < 0.3875).sum()
    assert [seen for seen, *_ in record["on_the_way"]] == [1600]
    assert record["minutes"] > 0
    assert len(list(Path("store").rglob("*.safetensors"))) == 1


def test_shrunk_scenes_have_lost_their_textures() -> None:
    data, whole = lookup_runs.Shrunk(Dials()), Lookup()
    (image, label), (large, same) = data.load("val", 3, 128), whole.load("val", 3, 256)
    assert (image.shape, label, data.name) == ((3, 128, 128), same, "lookup, shrunk")
    disc = whole.scene("val", 3).discs[0]
    top, left = round(disc.y * 128) - 8, round(disc.x * 128) - 8
    part, detail = (
        image[0, top : top + 16, left : left + 16],
        large[0, 2 * top : 2 * top + 32, 2 * left :][:, :32],
    )
    assert detail.float().std() > 35  # contrast 40 and grain
    assert part.float().std() < 8  # grain alone, of which four pixels make one
    batch, _ = data.batch("val", [3], 128)
    assert batch.shape == (1, 3, 128, 128)


def _sees(layers: tuple[tuple[int, int, int], ...]) -> int:
    pixels, step = 1, 1
    for _, kernel, stride in layers:
        pixels, step = pixels + (kernel - 1) * step, step * stride
    return pixels


def test_bags_see_what_is_said() -> None:
    assert (_sees(lookup_bags.LOCAL), _sees(lookup_bags.SMALL)) == (45, 253)
    image = torch.randn(2, 3, 64, 64)
    for make in (lookup_bags.mean, lookup_bags.maximum, lookup_bags.mlp, lookup_bags.small):
        assert make(resolution=64, num_classes=3)(image).shape == (2, 3)
    one = lookup_bags.mean(resolution=64, num_classes=3).eval()
    assert isinstance(one, lookup_bags.Bag)
    maps = one.features(image)  # the mean of scores is the score of means: a sum of local scores
    scores = torch.einsum("oc,bcyx->bo", one.head.weight, maps) / maps.shape[-1] ** 2 + one.head.bias
    torch.testing.assert_close(one(image), scores)


def test_a_probe_is_judged_on_held_out_scenes(tmp_path: Path) -> None:
    found = lookup_probes.probe("32", scenes=48, held_out=30)
    assert (found["scenes"], found["images"]) == (48, 30)
    assert found["C"] in lookup_probes.GRID["C"]
    assert 0 <= found["right"] <= 30
    values, labels = lookup_probes.features("224", "val", 2)
    assert values.shape == (2, 3 * 224**2)
    assert labels == [Lookup().scene("val", index).label for index in range(2)]


def test_kernels_are_products_of_standardised_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_probes, "CHUNK", 3)
    torch.manual_seed(0)
    train, other = torch.randn(6, 8), torch.randn(4, 8)
    own, cross = lookup_probes.kernels(train, other)
    scaled, its = ((each - train.mean(0)) / train.std(0) for each in (train, other))
    torch.testing.assert_close(own, scaled @ scaled.T / 8)
    torch.testing.assert_close(cross, its @ scaled.T / 8)


def test_the_committed_records_are_of_this_data_set() -> None:
    """Each line is a training or a probe on 1,000 held-out scenes of `lookup`."""
    folder = lookup_runs.RECORDS.parent
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            record = json.loads(line)
            assert record["images"] == 1000
            assert 0 <= record["right"] <= 1000
