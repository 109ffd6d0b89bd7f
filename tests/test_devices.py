"""The GPU that is used is torch's, and NVML is asked about that one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longvis_bench import devices, environment
from longvis_bench.devices import Gpu, gpu_details, gpu_of, half_dtype, torch_gpus
from longvis_bench.environment import read_environment
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.gpu_turns import note_on_kinds
from longvis_bench.sweep.plan import make_plan

H100, A6000, T4 = "NVIDIA H100 80GB HBM3", "NVIDIA RTX A6000", "Tesla T4"
SLICE = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
NAMES = {"GPU-a": A6000, "GPU-b": H100, "GPU-c": A6000, "MIG-s": SLICE}
"""In NVML's order, which is that of the PCI bus."""


class FakeNvml:
    """As much of pynvml as is asked for, of a machine with two kinds of GPU and a slice of one."""

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"580.65"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return list(NAMES)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in NAMES:
            raise LookupError(uuid)
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return NAMES[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(total=(10 if handle.startswith("MIG") else 80) << 30)

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:  # noqa: N802
        assert handle.startswith("GPU-")  # a slice has no limit of its own
        return 700_000 if NAMES[handle] == H100 else 300_000

    def nvmlDeviceGetEccMode(self, handle: str) -> list[int]:  # noqa: N802
        raise NotImplementedError

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return [int(NAMES[handle] == H100), 0]

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> bool:  # noqa: N802
        return handle.startswith("MIG")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        return "GPU-b"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    for answer in (torch_gpus, devices.machine_gpus):
        answer.cache_clear()
    yield
    for answer in (torch_gpus, devices.machine_gpus):
        answer.cache_clear()


def seen_by_torch(
    monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, str], capability: tuple[int, int] = (9, 0)
) -> None:
    """Make torch see GPUs of these names and UUIDs, in this order, and let NVML answer."""
    found = [SimpleNamespace(name=n, uuid=u, major=capability[0], minor=capability[1]) for n, u in gpus]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found[index])
    monkeypatch.setattr(devices, "may_have_accelerator", lambda: True)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())


def test_a_gpu_is_described_by_its_uuid_whatever_its_index_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (H100, "b"), (A6000, "c"))
    assert gpu_details("cuda:0") == {
        "name": H100,
        "driver": "580.65",
        "memory": "81920 MiB",
        "power_limit": "700.00 W",
        "mig": "Enabled",
    }
    assert gpu_details("cuda:1")["name"] == A6000
    first, second = read_environment(device="cuda"), read_environment(device="cuda:1")
    assert (first.gpu, second.gpu) == (H100, A6000)
    assert first.driver == "580.65"
    assert first.hash != second.hash


def test_gpus_of_one_kind_are_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (A6000, "a"), (A6000, "c"))
    both = [read_environment(device=device) for device in ("cuda:0", "cuda:1")]
    assert both[0] == both[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    torch_gpus.cache_clear()
    seen_by_torch(monkeypatch, (A6000, "c"))
    assert read_environment(device="cuda") == both[0]


def test_a_slice_is_named_as_such_and_has_the_limits_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (SLICE, "s"))
    found = gpu_details("cuda")
    assert (found["name"], found["memory"], found["power_limit"]) == (SLICE, "10240 MiB", "700.00 W")


def test_a_run_on_the_cpu_names_the_machines_gpu_only_if_there_is_one_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert read_environment(device="cpu").gpu is None
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetCount", lambda self: 1)
    devices.machine_gpus.cache_clear()
    assert read_environment(device="cpu").gpu == A6000


def test_without_package_or_driver_nvml_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (A6000, "a"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_details("cuda") == {"name": A6000}
    assert devices.machine_gpus() == ()
    assert environment.read_environment(device="cpu").gpus == ()


def test_another_interpreter_answers_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (A6000, "a"), capability=(8, 6))
    assert json.loads(devices.gpus_as_json()) == [[0, A6000, "a", [8, 6]]]


def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (A6000, "a"))

    def fail(index: int) -> Any:
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    assert torch_gpus() == ()
    assert gpu_of("cuda") is None


def test_a_driver_that_ends_the_process_or_never_answers_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (A6000, "a"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: os._exit(1))
    assert torch_gpus() == ()
    torch_gpus.cache_clear()
    monkeypatch.setattr(devices, "ASK_LIMIT_S", 0.2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: time.sleep(60))
    start = time.monotonic()
    assert torch_gpus() == ()
    assert time.monotonic() - start < 30


def test_another_interpreter_is_asked_where_a_fork_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has asked the driver without NVML leaves its forks without CUDA."""
    seen_by_torch(monkeypatch, (A6000, "a"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: os._exit(1))
    fake = 'def gpus_as_json():\n    return \'[[0, "Tesla T4", "c", [7, 5]]]\'\n'
    (tmp_path / "longvis_bench").mkdir()
    (tmp_path / "longvis_bench" / "__init__.py").touch()
    (tmp_path / "longvis_bench" / "devices.py").write_text(fake)
    monkeypatch.chdir(tmp_path)
    assert torch_gpus() == (Gpu(0, T4, "c", (7, 5)),)


@pytest.mark.parametrize(("capability", "half"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_the_default_dtype_is_one_that_the_gpu_computes_natively(
    capability: tuple[int, int], half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_by_torch(monkeypatch, (T4, "a"), capability=capability)
    assert half_dtype("cuda:0") == half
    config = SweepConfig(device="cuda", models=("vit-n",), resolutions=(64,)).resolve(Registry())
    assert config.dtypes == (half,)
    assert half_dtype("cuda:7") == "bf16"  # nothing is known of it


def test_the_index_is_no_part_of_a_cell_its_key_or_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (A6000, "a"), (A6000, "c"))
    plans = [
        make_plan(
            SweepConfig(device=device, models=("vit-n",), resolutions=(64,)), read_environment(device=device)
        )
        for device in ("cuda:0", "cuda:1")
    ]
    requests = [plan.cells[0].request for plan in plans]
    assert [request.device for request in requests] == ["cuda:0", "cuda:1"]
    assert requests[0].cell == requests[1].cell
    assert requests[0].cell.device == "cuda"
    assert requests[0].key == requests[1].key
    assert plans[0].config.name == plans[1].config.name


def test_a_run_that_sees_two_kinds_says_which_one_it_measures_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_torch(monkeypatch, (H100, "b"), (A6000, "c"), (H100, "d"))
    note = note_on_kinds("cuda:1")
    assert note is not None
    assert note.startswith(f"This run measures on {A6000} (cuda:1) alone; {H100} in this machine")
    assert note_on_kinds("cpu") is None
    torch_gpus.cache_clear()
    seen_by_torch(monkeypatch, (H100, "b"), (H100, "d"))
    assert note_on_kinds("cuda") is None


def test_the_quick_tour_on_cuda_has_models_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights ship for the large variants: without the nano ones its accuracy column is empty."""
    seen_by_torch(monkeypatch, (H100, "b"))
    registry = Registry()
    models = SweepConfig(device="cuda").resolve(registry).models
    cards = [found.card for found in registry.cards if found.origin == "built-in" and found.card.tour]
    weighted = {entry.variant for card in cards for entry in card.weights}
    assert set(models) == {card.default_cuda for card in cards} | {card.nano for card in cards} & weighted
    assert set(models) & weighted
    assert len(models) == len(set(models))
