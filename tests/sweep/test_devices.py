"""`--devices`: what it takes, what it refuses, and what each device gets."""

from __future__ import annotations

from pathlib import Path

import pytest

import longvis_bench.sweep.devices as module
from longvis_bench.devices import Gpu
from longvis_bench.errors import DeviceError
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.sweep.devices import Slot, choose_devices, share_processors, slots

TWO_KINDS = {
    "cuda:0": Gpu(0, "NVIDIA GeForce RTX 4090", "aaaa", (8, 9)),
    "cuda:1": Gpu(1, "NVIDIA GeForce RTX 4090", "bbbb", (8, 9)),
    "cuda:2": Gpu(2, "NVIDIA RTX A6000", "cccc", (8, 6)),
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores and no GPU."""
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    monkeypatch.setattr(module, "usable_processors", lambda: list(range(8)))
    monkeypatch.setattr(module, "default_threads", lambda: 8)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Gpu]:
    """Two GPUs of one kind and one of another."""

    def resolve(asked: str) -> str:
        if asked not in ("cuda", "cpu", *TWO_KINDS):
            raise DeviceError(f"this machine has no {asked} device for torch.")
        return asked

    there = dict(TWO_KINDS)
    monkeypatch.setattr(module, "resolve_device", resolve)
    monkeypatch.setattr(module, "available_devices", lambda: ["cuda", *there, "cpu"])
    monkeypatch.setattr(module, "gpu_of", there.get)
    return there


def test_shares_of_the_cores() -> None:
    chosen = choose_devices("cpu:2x3")
    assert (chosen.names, chosen.cores, chosen.threads, chosen.text) == (("cpu", "cpu"), 3, 3, "cpu:2x3")
    assert slots(chosen) == [
        Slot("cpu 1 of 2", "cpu", "cpu", processors=(0, 1, 2)),
        Slot("cpu 2 of 2", "cpu", "cpu", processors=(3, 4, 5)),
    ]


def test_each_gpu_has_its_uuid_and_its_share_of_the_cores(gpus: dict[str, Gpu]) -> None:
    chosen = choose_devices("cuda:1,cuda:0")
    assert (chosen.names, chosen.cores, chosen.text) == (("cuda:1", "cuda:0"), 4, "cuda:1,cuda:0")
    first, second = slots(chosen)
    assert first.variables == {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}
    assert (first.name, first.device, first.here, first.gpu_index) == ("cuda:1", "cuda", "cuda:1", 1)
    assert second.variables == {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}
    assert set(first.processors).isdisjoint(second.processors)


def test_all_is_every_gpu_and_without_one_the_processor(
    gpus: dict[str, Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    del gpus["cuda:2"]
    assert choose_devices("all").text == "cuda:0,cuda:1"
    monkeypatch.setattr(module, "available_devices", lambda: ["cpu"])
    assert choose_devices("all").text == "cpu:1x8"
    assert slots(choose_devices("cuda:0")) == [Slot("cuda:0", "cuda:0", "cuda:0")]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("cuda:0,cuda:0", "names cuda:0 twice"),
        ("cuda,cuda:0", "names cuda:0 twice"),
        ("cuda:7", "no cuda:7 device"),
        ("cuda:0,cuda:2", r"several kinds.*cuda:0 \(NVIDIA GeForce RTX 4090\); cuda:2 \(NVIDIA RTX A6000\)"),
        ("all", "several kinds of devices"),
        ("cuda:0,cpu", "several kinds of devices"),
        ("cpu:3x4", "cpu:3x4 needs 12 cores, and this process may use 8; cpu:3x2 fits"),
        ("cpu:9x1", "cpu:8x1 is the most"),
        ("cpu:0x4", "takes numbers from 1 up"),
        ("cpu:2", "takes all, names like cuda:0,cuda:3, or cpu:NxM alone, not 'cpu:2'"),
        ("cpu:2x4,cuda:0", "cpu:NxM alone, not 'cpu:2x4'"),
        ("cuda:0,,cuda:1", "not ''"),
    ],
)
def test_what_cannot_be_is_one_sentence(asked: str, words: str, gpus: dict[str, Gpu]) -> None:
    with pytest.raises(DeviceError, match=words):
        choose_devices(asked)


def test_more_devices_than_cores(gpus: dict[str, Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    with pytest.raises(DeviceError, match="2 devices, and 1 core cannot serve them"):
        choose_devices("cuda:0,cuda:1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": "cpu:2x2", "device": "cuda"}, "give one of them"),
        ({"devices": "cpu:2x2", "threads": 3}, "--threads 3 is more than the 2 cores that each"),
        ({"overlap": True}, "--overlap is for several CPU devices"),
        ({"overlap": True, "devices": "cpu:1x2"}, "--overlap is for several CPU devices"),
    ],
)
def test_options_that_contradict(options: dict[str, object], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        SweepConfig.model_validate(options).chosen_devices()


def test_devices_do_not_change_the_name_of_a_run() -> None:
    one = SweepConfig(models=("vit-n",), device="cpu", threads=2)
    assert one.name == SweepConfig(models=("vit-n",), device="cpu", threads=2, devices="cpu:2x2").name


def test_hardware_threads_of_a_core_stay_together(tmp_path: Path) -> None:
    for processor in range(4):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{processor % 2},{processor % 2 + 2}\n")
    assert share_processors([0, 1, 2, 3], 2, 2, tmp_path) == [(0, 2), (1, 3)]
    assert share_processors([0, 1, 2, 3], 4, 1, tmp_path) == [(0,), (2,), (1,), (3,)]
    assert share_processors([0, 1], 2, 2, tmp_path) == [(), ()]
    assert share_processors([0, 1, 2], 3, 1, tmp_path / "gone") == [(0,), (1,), (2,)]
