"""`mambavision@upstream`: the authors' package where it is installed, one sentence where it is not.

A stand-in package with the same first lines proves the import everywhere; the real one is compared with our
native code where it is installed, as in CI: `python -m pip install --no-deps mambavision einops` is enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from longvis_bench.backbones import mambavision
from longvis_bench.backbones import mambavision_upstream as upstream
from longvis_bench.cli.app import app
from longvis_bench.errors import IllegalArgument, MissingDependency
from longvis_bench.ops.selective_scan.operator import backend_for, selective_scan
from longvis_bench.registry.registry import Registry
from longvis_bench.weights.matching import load_weights

NANO = Registry().find("mambavision-n").arguments
HAS_PACKAGE = all(importlib.util.find_spec(name) is not None for name in ("mambavision", "einops"))

PACKAGE = """
import torch
from einops import rearrange
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

class MambaVision(torch.nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments
        self.rates = [x.item() for x in torch.linspace(0, arguments["drop_path_rate"], 3)]
        self.A = torch.nn.Parameter(-torch.ones(3, 2))

    def forward(self, x):
        b, d, length = x.shape
        B = x.new_ones(b, 2, length)
        return selective_scan_fn(x, x, self.A, B, B, x.new_ones(d), z=None, delta_bias=x.new_zeros(d),
                                 delta_softplus=True, return_last_state=None)
"""
KERNEL = "def selective_scan_fn(u, *rest): return u + 1000"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what earlier tests imported, and what this one did."""

    def ours(name: str) -> bool:
        return name.split(".")[0] in ("mambavision", "mamba_ssm", "einops")

    kept = {name: module for name, module in sys.modules.items() if ours(name)}
    for name in kept:
        del sys.modules[name]
    upstream.mambavision_package.cache_clear()
    yield
    for name in [name for name in sys.modules if ours(name)]:
        del sys.modules[name]
    sys.modules.update(kept)
    upstream.mambavision_package.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def install(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Put packages of these files first on the path."""

    def put(files: dict[str, str]) -> None:
        write(tmp_path / "site", files)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        importlib.invalidate_caches()

    return put


STAND_IN = {
    "mambavision/__init__.py": "",
    "mambavision/models/__init__.py": "",
    "mambavision/models/mamba_vision.py": PACKAGE,
    "einops.py": "def rearrange(): ...",
}


def scan(model: torch.nn.Module, x: Tensor) -> Tensor:
    """What the stand-in's forward ought to give."""
    one = x.new_ones(1, 2, x.shape[2])
    return selective_scan(x, x, -torch.ones(3, 2), one, one, x.new_ones(3), x.new_zeros(3))


@pytest.mark.parametrize("missing", ["mambavision", "einops"])
def test_a_missing_package_names_the_command(
    fresh: None, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        there = {"mambavision", "einops"} - {missing}
        return find("json") if name in there else None if name == missing else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingDependency) as caught:
        upstream.mambavision(resolution=256, num_classes=2, **NANO)
    assert caught.value.install == "python -m pip install mambavision"
    assert str(caught.value) == (
        f"mambavision@upstream needs the package {missing}; install it with:"
        " python -m pip install mambavision"
    )
    if missing == "mambavision":
        with pytest.raises(
            MissingDependency, match=r"^mambavision-n@upstream needs .* pip install mambavision$"
        ):
            Registry().find("mambavision-n@upstream").build(resolution=256, num_classes=2)


def test_our_scan_stands_in_while_importing(install: Callable[[dict[str, str]], None]) -> None:
    install(STAND_IN)
    model: Any = upstream.mambavision(resolution=256, num_classes=2, **NANO)
    assert not [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]
    assert model.scan_backend("cpu") == backend_for("cpu")
    assert model.scan_backend("cuda") == backend_for("cuda")
    x = torch.randn(1, 3, 5)
    assert torch.equal(model(x), scan(model, x))
    assert model.arguments["depths"] == NANO["depths"]
    assert model.arguments["num_classes"] == 2
    assert upstream.mambavision(resolution=64, num_classes=2, **NANO) is not model


def test_a_working_kernel_runs_on_cuda_only(install: Callable[[dict[str, str]], None]) -> None:
    kernel = {"mamba_ssm/ops/selective_scan_interface.py": KERNEL}
    install({**STAND_IN, "mamba_ssm/__init__.py": "", "mamba_ssm/ops/__init__.py": "", **kernel})
    model: Any = upstream.mambavision(resolution=256, num_classes=2, **NANO)
    assert model.scan_backend("cuda:0") == "mamba-ssm"
    assert model.scan_backend("cpu") != "mamba-ssm"
    x = torch.randn(1, 3, 5)
    assert torch.equal(model(x), scan(model, x))
    assert "mamba_ssm" in sys.modules


def test_a_kernel_of_another_machine_is_left_alone(install: Callable[[dict[str, str]], None]) -> None:
    install({**STAND_IN, "mamba_ssm/__init__.py": "raise ImportError('libcudart.so.12')"})
    model: Any = upstream.mambavision(resolution=256, num_classes=2, **NANO)
    assert model.scan_backend("cuda") != "mamba-ssm"


def test_it_builds_on_meta(install: Callable[[dict[str, str]], None]) -> None:
    install(STAND_IN)
    with torch.device("meta"):
        model: Any = upstream.mambavision(resolution=256, num_classes=2, drop_path=0.2, **NANO)
        assert model(torch.empty(1, 3, 5)).is_meta
    assert model.rates == pytest.approx([0.0, 0.1, 0.2])


def test_an_illegal_argument_comes_before_the_package(fresh: None) -> None:
    with pytest.raises(IllegalArgument):
        upstream.mambavision(resolution=64, num_classes=2, drop_path=2, **NANO)


NEEDS_PACKAGE = pytest.mark.skipif(
    not HAS_PACKAGE, reason="needs: python -m pip install --no-deps mambavision einops"
)


def pair(size: int, **arguments: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The authors' model and ours, with the same weights, loaded under the authors' names."""
    torch.manual_seed(0)
    settings = {**NANO, **arguments}
    theirs = upstream.mambavision(resolution=size, num_classes=10, **settings)
    ours = mambavision.MambaVision(resolution=size, num_classes=10, **settings)
    report = load_weights(ours, theirs.state_dict())
    assert (report.unused, report.missing, report.reshaped) == ((), (), {})
    return theirs, ours


PAIRS: list[tuple[int, dict[str, Any]]] = [
    (224, {}),
    (256, {"layer_scale": 0.1}),
    (320, {"window_size": [8, 8, 14, 7]}),
]


@NEEDS_PACKAGE
@pytest.mark.parametrize(("size", "arguments"), PAIRS)
def test_the_authors_model_equals_ours(size: int, arguments: dict[str, Any]) -> None:
    theirs, ours = pair(size, **arguments)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-6)


@NEEDS_PACKAGE
@pytest.mark.parametrize(("size", "arguments"), PAIRS)
def test_the_authors_gradients_equal_ours_in_train_mode(size: int, arguments: dict[str, Any]) -> None:
    theirs, ours = pair(size, **arguments)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    for model in (theirs, ours):
        model.double().train()(images).square().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = mambavision.checkpoint_filter_fn(gradients)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "name", ["mambavision-n", pytest.param("mambavision-n@upstream", marks=NEEDS_PACKAGE)]
)
def test_the_row_says_which_scan_ran(name: str) -> None:
    """Also where nothing was counted."""
    words = ("--metrics", "time", "--budget", "0.2", "--images", "1", "--quick", "--json")
    done = CliRunner().invoke(app, ["bench", "--models", name, "--res", "64", "--device", "cpu", *words])
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["status"] == "ok", row["reason"]
    assert row["cell"]["implementation"] == ("upstream" if "@" in name else "native")
    assert row["backends"]["scan"] == backend_for("cpu")
