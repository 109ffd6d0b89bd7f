"""Global settings that a user's code changes: all are restored, and what cannot be is named."""

from __future__ import annotations

import gc
import logging
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from longvis_bench.registry.global_state import Snapshot, preserved
from longvis_bench.registry.registry import Registry


@pytest.fixture(autouse=True)
def _whole() -> Iterator[None]:
    """No test leaves a change behind, whether the code under test works or not."""
    before = torch.get_num_threads(), Path.cwd(), dict(os.environ), torch.get_default_dtype()
    yield
    torch.set_default_device(None)
    torch.set_num_threads(before[0])
    os.chdir(before[1])
    os.environ.clear()
    os.environ.update(before[2])
    torch.set_default_dtype(before[3])
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)


def disable_attention() -> None:
    torch.backends.cuda.enable_flash_sdp(False)


def enter_autocast() -> None:
    context: Any = torch.autocast("cpu", torch.bfloat16)
    context.__enter__()


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    # what changes it, what reads it
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads),
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "folder": (lambda: os.chdir("/"), os.getcwd),
    "a variable": (lambda: os.environ.update(PLANTED="1"), lambda: dict(os.environ)),
    "a variable gone": (lambda: os.environ.pop("PATH"), lambda: dict(os.environ)),
    "determinism": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "cudnn.benchmark": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.cudnn.benchmark,
    ),
    "cudnn.deterministic": (
        lambda: setattr(torch.backends.cudnn, "deterministic", True),
        lambda: torch.backends.cudnn.deterministic,
    ),
    "mkldnn": (
        lambda: setattr(torch.backends.mkldnn, "enabled", False),
        lambda: torch.backends.mkldnn.enabled,
    ),
    "matmul precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "flash attention": (disable_attention, torch.backends.cuda.flash_sdp_enabled),
    "autocast": (enter_autocast, lambda: torch.is_autocast_enabled("cpu")),
    "anomaly detection": (lambda: torch.set_anomaly_enabled(True), torch.is_anomaly_enabled),
    "denormals": (
        lambda: torch.set_flush_denormal(True),
        lambda: (torch.full((1,), 1e-39, dtype=torch.float32) * 1.0).item(),
    ),
    "warnings": (lambda: warnings.simplefilter("always"), lambda: list(warnings.filters)),
    "logging": (lambda: logging.disable(logging.CRITICAL), lambda: logging.getLogger().manager.disable),
    "garbage collection": (gc.disable, gc.isenabled),
    "recursion limit": (lambda: sys.setrecursionlimit(12345), sys.getrecursionlimit),
    "standard output": (lambda: setattr(sys, "stdout", sys.__stderr__), lambda: sys.stdout),
    "mask of new files": (lambda: os.umask(0o077), lambda: (mask := os.umask(0o22), os.umask(mask))[0]),
    "numpy's errors": (lambda: numpy.seterr(all="ignore"), numpy.geterr),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_is_restored(name: str) -> None:
    change, read = CHANGES[name]
    before = read()
    with preserved():
        change()
        assert read() != before
    assert read() == before


@pytest.mark.parametrize("name", CHANGES)
def test_also_where_the_code_fails(name: str) -> None:
    change, read = CHANGES[name]
    before = read()

    def build() -> None:
        with preserved():
            change()
            raise SystemExit("no licence")

    with pytest.raises(SystemExit):
        build()
    assert read() == before


def test_a_default_device_is_restored_inside_another() -> None:
    with torch.device("meta"):
        with preserved():
            torch.set_default_device("cpu")
        assert torch.zeros(1).is_meta
    assert torch.zeros(1).device.type == "cpu"


def test_seeds_are_restored_where_that_is_asked_for() -> None:
    snapshot = Snapshot(seeds=True)
    first = torch.rand(1).item(), random.random(), numpy.random.random()
    torch.manual_seed(7)
    random.seed(7)
    numpy.random.seed(7)
    assert snapshot.restore() == ()
    assert (torch.rand(1).item(), random.random(), numpy.random.random()) == first


def test_what_cannot_be_changed_back_is_named() -> None:
    """torch takes a number of inter-op threads once in a process's life."""
    program = (
        "import torch\n"
        "from longvis_bench.registry.global_state import Snapshot\n"
        "before = Snapshot()\n"
        "torch.set_num_interop_threads(torch.get_num_interop_threads() + 3)\n"
        "torch.set_num_threads(1)\n"
        "print(*before.restore(), sep='|')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("inter-op threads (")
    assert "|" not in done.stdout


def test_a_model_is_built_without_changing_the_process(tmp_path: Path) -> None:
    (tmp_path / "moved.py").write_text(
        "import os, torch\n"
        "torch.set_num_threads(torch.get_num_threads() + 1)\n"
        "def build(resolution, num_classes, in_chans=3):\n"
        "    os.chdir('/')\n"
        "    torch.set_default_dtype(torch.float64)\n"
        "    return torch.nn.Linear(1, 1)\n"
    )
    before = torch.get_num_threads(), Path.cwd(), torch.get_default_dtype()
    Registry(working_dir=tmp_path).find("moved.py:build").build(resolution=32, num_classes=2)
    assert (torch.get_num_threads(), Path.cwd(), torch.get_default_dtype()) == before


def test_a_card_s_rule_of_sizes_changes_nothing_either(tmp_path: Path) -> None:
    folder = tmp_path / "cards" / "rules"
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(
        "import os\nimport torch\nfrom longvis_bench.sizes.plan import SizePlan\n"
        "torch.set_num_threads(torch.get_num_threads() + 1)\n"
        "def build(**_): ...\n"
        "def plan(resolution):\n    torch.set_default_dtype(torch.float64)\n    os.chdir('/')\n"
        "    return SizePlan(reach='built for the size')\n"
    )
    (folder / "card.toml").write_text(
        'schema = 1\nfamily = "rules"\ntitle = "t"\nsummary = "s"\nfactory = "net.py:build"\n'
        'implementation = "user"\n[licences]\ncode = "Apache-2.0"\n[resolution]\nplan = "net.py:plan"\n'
        "[variants]\nrules-n = {}\n"
    )
    before = torch.get_num_threads(), Path.cwd()
    assert Registry([tmp_path / "cards"]).find("rules-n").plan(64).reach == "built for the size"
    assert (torch.get_num_threads(), Path.cwd()) == before
    assert torch.get_default_dtype() == torch.float32
