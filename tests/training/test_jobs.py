"""What `longvis train` prepares before the first model is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longvis_bench.environment import usable_cores
from longvis_bench.errors import LongvisError
from longvis_bench.registry.registry import Registry
from longvis_bench.training.jobs import Options, devices_to_lock, start_training
from longvis_bench.training.recipe import QUICK


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Leave the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads_used(tmp_path: Path, asked: int | None = None) -> int:
    options = Options(device="cpu", threads=asked, store=tmp_path)
    start_training([Registry().find("vit-n")], "digits", 32, QUICK, options)
    return torch.get_num_threads()


@pytest.mark.parametrize(
    ("omp", "processes", "asked", "wanted"),
    [
        ("3", None, None, 3),
        ("3,1", None, None, 3),
        ("3", None, 5, 5),
        ("3", "2", None, 3),
        ("1", None, None, 1),
        ("1", "2", None, max(1, usable_cores() // 2)),  # set by torchrun, not by the user
        (None, "2", None, max(1, usable_cores() // 2)),
        (None, None, None, usable_cores()),
    ],
)
def test_threads_are_those_asked_for_or_of_the_environment(
    omp: str | None,
    processes: str | None,
    asked: int | None,
    wanted: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"OMP_NUM_THREADS": omp, "LOCAL_WORLD_SIZE": processes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert threads_used(tmp_path, asked) == wanted


@pytest.mark.parametrize(
    ("device", "processes", "rank", "wanted"),
    [
        ("cuda:1", None, None, ("cuda:1",)),
        ("cpu", "2", "0", ("cpu",)),
        ("cuda", "2", "0", ("cuda:0", "cuda:1")),
        ("cuda", "2", "1", ()),
    ],
)
def test_one_process_of_a_machine_locks_all_gpus_of_a_training(
    device: str,
    processes: str | None,
    rank: str | None,
    wanted: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"LOCAL_WORLD_SIZE": processes, "LOCAL_RANK": rank}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert devices_to_lock(device) == wanted


def test_fresh_images_are_not_shifted(tmp_path: Path) -> None:
    """A shift by any number of pixels would take textures off the pixel grid; nothing else is changed."""
    variant, options = Registry().find("vit-n"), Options(device="cpu", store=tmp_path)
    (usual,) = start_training([variant], "digits", 64, QUICK, options)
    (job,) = start_training([variant], "lookup[clutter=1]", 64, QUICK, options)
    assert usual.recipe == QUICK
    assert QUICK.shift > 0
    assert job.recipe == QUICK.model_copy(update={"shift": 0.0})
    assert job.data.name == "lookup[clutter=1]"


@pytest.mark.parametrize("change", [{"flip": 0.5}, {"crop_scale": (0.5, 1.0)}, {"auto_augment": "rand-m9"}])
def test_a_recipe_that_changes_single_pixels_is_refused_for_them(
    change: dict[str, object], tmp_path: Path
) -> None:
    recipe, options = QUICK.model_copy(update=change), Options(device="cpu", store=tmp_path)
    with pytest.raises(
        LongvisError, match=r"crops, mirrors or distorts images, .* lookup is about; take quick"
    ):
        start_training([Registry().find("vit-n")], "lookup", 64, recipe, options)
    assert start_training([Registry().find("vit-n")], "digits", 64, recipe, options)[0].recipe == recipe
