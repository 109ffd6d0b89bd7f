"""Models by name: where cards come from, near misses, users' own models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longvis_bench.adapters.scaffold import write_model
from longvis_bench.errors import CardError, IllegalSize, MissingDependency, UnknownName
from longvis_bench.registry.card import read_card
from longvis_bench.registry.discovery import built_in_folder
from longvis_bench.registry.names import split_names
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.config import SweepConfig

HERE = Path(__file__).parents[1]

FACTORY = """
from torch import nn
def build(*, resolution, num_classes, in_chans=3, dim=4):
    return nn.Sequential(nn.Conv2d(in_chans, dim, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(dim, num_classes))
"""
CARD = """
schema = 1
family = "{family}"
title = "t"
summary = "s"
factory = "{factory}"
implementation = "user"
licences = {{ code = "mine" }}
variants = {{ {family}-s = {{ arguments = {{ dim = 4 }} }} }}
{extra}
"""


def write_card(folder: Path, family: str = "own", factory: str = "own.py:build", extra: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(FACTORY)
    path = folder / "card.toml"
    path.write_text(CARD.format(family=family, factory=factory, extra=extra))
    return path


SEVEN = {"atlas", "convnext", "fastervit", "longvit", "mambavision", "vit", "swin"}


def test_a_bench_without_models_runs_the_seven_families_that_ship_weights() -> None:
    cards = [found.card for found in Registry().cards]
    assert {card.family for card in cards if card.tour} == SEVEN
    assert {card.family for card in cards if any(entry.file for entry in card.weights)} == SEVEN
    config = SweepConfig(device="cpu").resolve(Registry())
    assert config.models == tuple(f"{family}-n" for family in sorted(SEVEN))


def test_near_misses_are_named() -> None:
    with pytest.raises(UnknownName, match=r"did you mean atlas-[sbn]"):
        Registry().find("atlas-xs")
    with pytest.raises(UnknownName, match="longvis models"):
        Registry().find("qqqqqqqq")


def test_models_dir_and_working_directory(tmp_path: Path) -> None:
    write_card(tmp_path / "elsewhere" / "own")
    write_card(tmp_path / "models" / "local", family="local")
    registry = Registry([tmp_path / "elsewhere"], tmp_path)
    assert {"own-s", "local-s"} <= set(registry.names())
    model = registry.find("own-s").build(resolution=32, num_classes=5)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_listing_runs_no_code_of_the_user(tmp_path: Path) -> None:
    write_card(tmp_path / "models" / "own")
    (tmp_path / "models" / "own" / "own.py").write_text("raise SystemExit('imported')")
    assert "own-s" in Registry(working_dir=tmp_path).names()


def test_folders_without_a_card_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "models" / "empty").mkdir(parents=True)
    assert Registry(working_dir=tmp_path).names() == Registry().names()


def test_the_same_card_twice_is_one(tmp_path: Path) -> None:
    write_card(tmp_path / "models" / "own")
    names = Registry([tmp_path / "models"], tmp_path).names()
    assert names.count("own-s") == 1


def test_two_different_cards_for_one_name_are_refused(tmp_path: Path) -> None:
    write_card(tmp_path / "one" / "own")
    write_card(tmp_path / "two" / "own", extra='notes = ["another"]')
    with pytest.raises(CardError, match="two different cards claim the family 'own'"):
        Registry([tmp_path / "one", tmp_path / "two"])


def test_a_foreign_models_folder_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert built_in_folder() != tmp_path / "models"
    assert (built_in_folder() / "atlas" / "card.toml").is_file()


def test_ad_hoc_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    variant = Registry(working_dir=tmp_path).find("net.py:build")
    assert variant.build(resolution=64, num_classes=3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_ad_hoc_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="does not exist"):
        Registry(working_dir=tmp_path).find("gone.py:build")


def test_arguments_in_brackets_override_the_card(tmp_path: Path) -> None:
    write_card(tmp_path / "models" / "own")
    variant = Registry(working_dir=tmp_path).find("own-s[dim=6]")
    assert variant.arguments == {"dim": 6}
    model = variant.build(resolution=32, num_classes=2)
    assert model[0].weight.shape[0] == 6  # type: ignore[index]


def test_an_argument_the_factory_does_not_take(tmp_path: Path) -> None:
    write_card(tmp_path / "models" / "own")
    with pytest.raises(CardError, match=r"cannot be called.*it takes resolution, num_classes, in_chans, dim"):
        Registry(working_dir=tmp_path).find("own-s[depth=6]").build(resolution=32, num_classes=2)


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("gone.py:build", "does not exist"),
        ("own.py:gone", "no callable named 'gone'"),
        ("no_such_module_here:build", "cannot be found"),
    ],
)
def test_a_missing_factory(tmp_path: Path, factory: str, sentence: str) -> None:
    write_card(tmp_path / "models" / "own", factory=factory)
    with pytest.raises(CardError, match=sentence):
        Registry(working_dir=tmp_path).find("own-s").build(resolution=32, num_classes=2)


def test_a_factory_that_returns_no_module(tmp_path: Path) -> None:
    write_card(tmp_path / "models" / "own")
    (tmp_path / "models" / "own" / "own.py").write_text(
        "def build(*, resolution, num_classes, in_chans=3, dim=4): return 7"
    )
    with pytest.raises(CardError, match=r"returned int, not a torch\.nn\.Module"):
        Registry(working_dir=tmp_path).find("own-s").build(resolution=32, num_classes=2)


def test_a_package_that_is_not_installed(tmp_path: Path) -> None:
    extra = 'requires = [{ module = "no_such_package", install = "python -m pip install no-such-package" }]'
    write_card(tmp_path / "models" / "own", extra=extra)
    with pytest.raises(MissingDependency, match="python -m pip install no-such-package"):
        Registry(working_dir=tmp_path).find("own-s").build(resolution=32, num_classes=2)


def test_size_rule_of_a_users_card(tmp_path: Path) -> None:
    write_card(
        tmp_path / "models" / "own", extra="resolution = { multiple_of = 32, minimum = 64, maximum = 512 }"
    )
    variant = Registry(working_dir=tmp_path).find("own-s")
    for size, legal in ((100, (96, 128)), (32, (64,)), (1024, (512,))):
        with pytest.raises(IllegalSize) as caught:
            variant.plan(size)
        assert caught.value.legal == legal
    assert variant.plan(256).reach


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("hue = 'red'", "hue: unknown field"),
        ("colour = 'red'\nmarker = 'o'", "colour: String should match"),
        ("colour = '#0072B2'", "both a colour and a marker"),
        ("default_cuda = 'own-xl'", "'own-xl' is not one of the card's variants"),
        (
            "weights = [{ variant = 'own-s', dataset = 'd', resolution = 8, num_classes = 2, file = '../x'}]",
            "plain",
        ),
        (
            "weights = [{ variant = 'own-s', dataset = 'd', resolution = 8, num_classes = 2 }]",
            "either a file",
        ),
    ],
)
def test_a_card_that_breaks_the_schema(tmp_path: Path, extra: str, sentence: str) -> None:
    path = write_card(tmp_path / "own", extra=extra)
    with pytest.raises(CardError, match=sentence):
        read_card(path)


@pytest.mark.parametrize("factory", ["build", "../x.py:build", "x:1y", ":build"])
def test_a_factory_reference_that_is_none(tmp_path: Path, factory: str) -> None:
    path = write_card(tmp_path / "own", factory=factory)
    with pytest.raises(CardError, match="factory"):
        read_card(path)


def test_a_card_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text("= nothing")
    with pytest.raises(CardError, match="not valid TOML"):
        read_card(path)


def test_unknown_implementation() -> None:
    with pytest.raises(UnknownName, match="implementation of vit-s"):
        Registry().find("vit-s@upstream")


def test_names_split_outside_brackets() -> None:
    assert split_names("a[x=1,y=(2,3)], b,c ") == ["a[x=1,y=(2,3)]", "b", "c"]


def test_a_plug_in_joins_through_its_entry_point(tmp_path: Path) -> None:
    """A real package, built, installed into a folder of its own and found by a fresh interpreter."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", target, HERE / "plugin"], check=True, capture_output=True)
    code = (
        "import sys; from longvis_bench.registry import Registry; r = Registry(); v = r.find('pluggy-s');"
        "assert 'longvis_plugin_example' not in sys.modules; print(v.origin);"
        "print(tuple(v.build(resolution=32, num_classes=4)[3].weight.shape))"
    )
    environment = {"PYTHONPATH": f"{target}:{HERE.parent}", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split("\n")[:2] == ["plug-in example", "(4, 8)"]


def test_scaffold_refuses_a_taken_name(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="taken"):
        write_model("atlas", tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("instance", r"is a model \(Linear\), not a factory; write a function"),
        ("scripted", r"is a model \(\w*TracedModule\), not a factory"),
        ("module", "is a module, not a factory; name a function or class"),
        ("weights", "is a OrderedDict, not a factory"),
        ("forgotten", r"returned None \(is its return statement missing\?\)"),
        ("unmade", "returned the class Linear itself"),
        ("several", "returned tuple, not a torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_no_factory_is_called_by_its_name(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "net.py").write_text(
        "import math as module\n"
        "import torch\n"
        "instance = torch.nn.Linear(2, 2)\n"
        "scripted = torch.jit.trace(instance, torch.zeros(1, 2))\n"
        "weights = instance.state_dict()\n"
        "def forgotten(resolution, num_classes, in_chans=3): torch.nn.Linear(2, 2)\n"
        "def unmade(resolution, num_classes, in_chans=3): return torch.nn.Linear\n"
        "def several(resolution, num_classes, in_chans=3): return torch.nn.Linear(2, 2), 7\n"
    )
    variant = Registry(working_dir=tmp_path).find(f"net.py:{name}")
    with pytest.raises(CardError, match=sentence):
        variant.build(resolution=32, num_classes=2)


@pytest.mark.parametrize("line", ["import math as net", "import net.deep", "import net"])
def test_a_module_is_no_factory_before_anything_is_measured(tmp_path: Path, line: str) -> None:
    (tmp_path / "file.py").write_text(f"{line}\n")
    variant = Registry(working_dir=tmp_path).find("file.py:net")
    with pytest.raises(CardError, match=r"file\.py:net is a module, not a factory"):
        variant.check_factory()
