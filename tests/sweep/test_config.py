"""Configurations: text with units, names of flags in messages, and the default of threads."""

from __future__ import annotations

from typing import Any

import pytest

from longvis_bench.environment import default_threads, usable_cores
from longvis_bench.errors import LongvisError
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.config import SweepConfig, read_config


def test_text_with_units_is_read() -> None:
    config = read_config(
        {
            "resolutions": ["1k", 512, "2048 px"],
            "budget_s": "1m 30s",
            "timeout_s": "1h",
            "precision": "5%",
            "memory_limit_bytes": "8GiB",
            "modes": ["both"],
        }
    )
    assert config.resolutions == (1024, 512, 2048)
    assert (config.budget_s, config.timeout_s, config.precision) == (90.0, 3600.0, 0.05)
    assert config.memory_limit_bytes == 8 << 30
    assert config.modes == ("infer", "train")


def test_numbers_mean_what_their_names_say() -> None:
    config = read_config({"budget_s": 20, "precision": 0.01, "memory_limit_bytes": 2**30})
    assert (config.budget_s, config.precision, config.memory_limit_bytes) == (20.0, 0.01, 2**30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"precision": 2.0},
            "precision (--precision) cannot be '2.0': it must be less than 1, which is 100%.",
        ),
        ({"modes": "train"}, "modes (--mode) cannot be 'train': it must be a list, like [\"...\"]."),
        ({"images": "1k"}, "images (--images) cannot be '1k': it must be a whole number."),
        ({"budget_s": "soon"}, "budget_s (--budget) cannot be 'soon': it takes a time like 90s, 2m or 1h."),
        ({"memory_limit_bytes": 24}, "memory_limit_bytes (--memory-limit) cannot be '24'"),
        ({"memory_limit_bytes": "24"}, "24 what? 24GiB, for example."),
        ({"resolutions": ["big"]}, "resolutions (--res) cannot be 'big': it takes whole numbers from 1 up"),
        ({"device": 3}, "device (--device) cannot be '3'"),
        ({"model": ["vit-n"]}, "unknown field 'model' of a configuration: did you mean models? The fields"),
        ({"batch": 3}, "did you mean batch_sizes?"),
        ({"modles": ["vit-n"]}, "did you mean modes or models?"),
        ({"presicion": 0.1}, "did you mean precision?"),
        ({"memory-limit": "8GiB"}, "did you mean memory_limit_bytes?"),
        (
            {"xyzzy": 3},
            "unknown field 'xyzzy' of a configuration: The fields are preset, models, resolutions,",
        ),
    ],
)
def test_a_fault_names_the_field_and_its_flag(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LongvisError) as caught:
        read_config(options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "threads"), [("3", 3), ("3,2", 3), (None, None), ("", None), ("0", None), ("many", None)]
)
def test_omp_num_threads_is_the_default_for_threads(
    value: str | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == (threads or usable_cores())
    config = SweepConfig(models=("vit-n",), resolutions=(64,), device="cpu").resolve(Registry())
    assert config.threads == (threads or usable_cores())


def test_threads_that_are_asked_for_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (
        SweepConfig(models=("vit-n",), resolutions=(64,), device="cpu", threads=1).resolve(Registry()).threads
        == 1
    )


def test_every_field_is_described() -> None:
    assert all(field.description for field in SweepConfig.model_fields.values())
