"""The classifier of a model and the classes of a file, over the architectures of timm and torchvision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from longvis_bench.registry.registry import Registry
from longvis_bench.weights.classifier import classifier_dims, classifier_names, file_classes
from longvis_bench.weights.matching import load_weights, match_weights

QUICK = [
    *("inception_next_atto", "mambaout_femto", "test_vit", "deit_tiny_distilled_patch16_224", "lcnet_035"),
    "volo_d1_224",
]
TORCHVISION = ["squeezenet1_1", "mobilenet_v3_small", "vit_b_16", "alexnet", "googlenet", "inception_v3"]


def _one_of_each_family() -> list[str]:
    """The first name of each of timm's modules."""
    families: dict[str, str] = {}
    for name in timm.list_models():
        family = timm.models.model_entrypoint(name).__module__
        families.setdefault(family, name)
    return sorted(families.values())


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in _one_of_each_family())]
)
def test_the_classes_of_a_file_are_found_for_timms_architectures(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        variant = Registry().find(f"timm:{name}")
        known = timm.models.get_pretrained_cfg(name)
        assert known is not None
        resolution = known.input_size[-1]
        with torch.device("meta"):
            model = variant.build(resolution=resolution, num_classes=1000)
        classes = file_classes(variant, dict(model.state_dict()), [resolution], 3, "w")
        assert classes == 1000
        heads = set(classifier_dims(variant, resolution, 3))
        assert heads <= classifier_names(model)
        with torch.device("meta"):
            three = variant.build(resolution=resolution, num_classes=3)
        assert set(match_weights(three, dict(model.state_dict()), "w").random) == heads


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_classes_of_a_file_are_found_for_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("torchvision.models")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torchvision's own initialisation
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import torchvision\ndef net(*, resolution, num_classes, in_chans=3):\n"
        f"    return torchvision.models.get_model({name!r}, num_classes=num_classes)\n"
    )
    with torch.device("meta"):
        model: nn.Module = models.get_model(name, num_classes=1000)
        three: nn.Module = models.get_model(name, num_classes=3)
    assert file_classes(Registry().find("net.py:net"), dict(model.state_dict()), [224], 3, "w") == 1000
    random = match_weights(three, dict(model.state_dict()), "w").random
    assert {model.state_dict()[key].shape[0] for key in random} == {1000}
    assert len(random) == {"googlenet": 6, "inception_v3": 4}.get(name, 2)


class Unusual(nn.Module):
    """A classifier under no usual name."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        self.to_logits = nn.Linear(4, classes)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential])
def test_the_last_layer_is_the_classifier_where_nothing_tells(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, target = wrap(Unusual(5)), wrap(Unusual(3))
    report = load_weights(target, dict(source.state_dict()))
    assert {name.rpartition("to_logits.")[2] for name in report.random} == {"weight", "bias"}
