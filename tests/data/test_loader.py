"""Epochs of batches: order, continuing, ranks, workers, augmentation, broken files, waiting."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from longvis_bench.data.digits import Digits
from longvis_bench.data.folder import Folder
from longvis_bench.data.loader import Batch, Loader
from longvis_bench.data.pairs import Pairs
from longvis_bench.data.protocol import LoadableData, Split, open_data
from longvis_bench.errors import DataError
from longvis_bench.resolution import Resolution

Pictures = Callable[..., Path]


def _epoch(data: LoadableData, split: Split = "train", number: int = 0, **options: object) -> list[Batch]:
    usual = {"resolution": 16, "batch_size": 3}
    return list(Loader(data, split, **{**usual, **options}).epoch(number))  # type: ignore[arg-type]


def _indices(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.indices]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_data(workers: int, pictures: Pictures) -> None:
    data = Folder(str(pictures(size=(20, 13))))
    batches = _epoch(data, workers=workers)
    assert [len(batch.indices) for batch in batches] == [3, 3, 1]
    assert sorted(_indices(batches)) == list(range(7))
    for batch in batches:
        images, labels = data.batch("train", batch.indices, 16)
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shared_memory_that_fills_up_meanwhile_stops_no_epoch(
    device: str, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch raises in a thread that drops the batch; images that grow on a device come as a list."""

    def full(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file: No space left on device (28)")

    def too_long(*_: object) -> None:
        raise AssertionError("the consumer waits for a batch that never comes")

    data = Folder(str(pictures(size=(20, 13))))
    expected = _epoch(data, device=device)
    for name in ("_share_fd_cpu_", "_share_filename_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, name, full)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    try:
        batches = _epoch(data, workers=1, device=device)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _indices(batches) == _indices(expected)
    if device == "cpu":
        assert all(
            torch.equal(one.images, other.images) for one, other in zip(batches, expected, strict=True)
        )


@pytest.mark.parametrize(("name", "resolution"), [("digits", 32), ("pairs", 256)])
def test_shipped_data_load_alike(name: str, resolution: int) -> None:
    data = open_data(name)
    batch = next(Loader(data, "val", resolution=resolution, batch_size=4).epoch(0))
    images, labels = data.batch("val", batch.indices, resolution)
    assert batch.indices == (0, 1, 2, 3)
    assert torch.allclose(batch.images, images, atol=1e-5)
    assert torch.equal(batch.labels, labels)


def test_order_follows_seed_and_epoch_only(pictures: Pictures) -> None:
    data = Folder(str(pictures({"cat": 20, "dog": 20})))
    loader = Loader(data, "train", resolution=8, batch_size=7, seed=1)
    state = torch.get_rng_state()
    orders = {epoch: _indices(list(loader.epoch(epoch))) for epoch in (0, 1)}
    assert torch.equal(torch.get_rng_state(), state)
    assert orders[0] != orders[1]
    again = Loader(data, "train", resolution=8, batch_size=7, seed=1, workers=1)
    assert _indices(list(again.epoch(1))) == orders[1]
    assert _indices(_epoch(data, seed=2)) != orders[0]
    assert _indices(_epoch(data, "val")) == [0, 1, 2, 3]


def test_an_epoch_continues_at_a_batch(pictures: Pictures) -> None:
    data = Folder(str(pictures({"cat": 6, "dog": 5})))
    loader = Loader(data, "train", resolution=8, batch_size=3, augment=_noisy, workers=1)
    whole, rest = list(loader.epoch(4)), list(loader.epoch(4, start=2))
    assert len(loader) == len(whole) == 4
    assert [batch.indices for batch in rest] == [batch.indices for batch in whole[2:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole[2:], strict=True))


def test_an_epoch_may_be_left_early(pictures: Pictures) -> None:
    loader = Loader(Folder(str(pictures())), "train", resolution=8, batch_size=2, workers=1)
    first = next(loader.epoch(0))
    assert next(loader.epoch(0)).indices == first.indices


@pytest.mark.parametrize("train", [8, 9, 11])
def test_ranks_share_the_steps_of_one_process(train: int, pictures: Pictures) -> None:
    data = Folder(str(pictures({"cat": train - 1, "dog": 1})))
    together = _epoch(data, batch_size=4)
    ranks = [_epoch(data, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(together)
    for whole, first, second in zip(together, *ranks, strict=True):
        assert len(first.indices) == len(second.indices)
        parts = {*first.indices, *second.indices}
        assert parts >= set(whole.indices)
        filled = len(parts - set(whole.indices))
        assert filled == len(whole.indices) % 2
    held_out = [_indices(_epoch(data, "val", rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(index for part in held_out for index in part) == list(range(data.size("val")))


def test_the_last_step_may_be_left_out(pictures: Pictures) -> None:
    data = Folder(str(pictures()))
    assert [len(batch.indices) for batch in _epoch(data, drop_last=True)] == [3, 3]


def _noisy(picture: Image.Image) -> Image.Image:
    """Draws from all three sources of randomness."""
    assert (picture.mode, picture.size[0]) == ("RGB", picture.size[1])
    shift = random.randrange(50) + int(np.random.randint(50)) + int(torch.randint(50, ()))
    return picture.point(lambda value: value + shift)


def test_augmentation_follows_seed_epoch_and_index(pictures: Pictures) -> None:
    data = Folder(str(pictures()))

    def images(**options: object) -> dict[int, Tensor]:
        batches = _epoch(data, augment=_noisy, **options)  # type: ignore[arg-type]
        return {
            index: image
            for batch in batches
            for index, image in zip(batch.indices, batch.images, strict=True)
        }

    state = random.getstate()
    first = images()
    assert random.getstate() == state
    for same in (images(workers=2), images(batch_size=2), images(rank=0, world_size=1)):
        assert all(torch.equal(first[index], same[index]) for index in first)
    for other in (images(number=1), images(seed=1)):
        assert not all(torch.equal(first[index], other[index]) for index in first)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_files_are_replaced_in_training_and_skipped_in_val(workers: int, pictures: Pictures) -> None:
    root = pictures({"cat": 60, "dog": 60}, val=60)
    for split in ("train", "val"):
        (root / split / "cat" / "007.png").write_bytes(b"broken")
    data = Folder(str(root))
    trained = _epoch(data, batch_size=16, workers=workers)
    assert [len(batch.indices) for batch in trained] == [16] * 7 + [8]
    assert _indices(trained).count(8) == 2
    assert list(data.broken) == ["train/cat/007.png"]
    assert _indices(_epoch(data, "val", batch_size=16, workers=workers)) == [*range(7), *range(8, 120)]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_files_stop_the_epoch(workers: int, pictures: Pictures) -> None:
    root = pictures()
    for number in range(4):
        (root / "train" / "cat" / f"{number:03}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read, more than 1%"):
        _epoch(Folder(str(root)), workers=workers)


class _Slow(Digits):
    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        time.sleep(0.02)
        return super().load(split, index, resolution)


def test_waiting_is_measured() -> None:
    loader = Loader(_Slow(), "val", resolution=8, batch_size=2)
    batches = loader.epoch(0)
    for _ in range(3):
        next(batches)
    assert loader.waited_s >= 0.12
    waited = loader.waited_s
    time.sleep(0.3)  # the consumer's own time does not count
    next(batches)
    assert loader.waited_s - waited < 0.25


def test_ranks_are_checked() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Loader(Pairs(), "train", resolution=256, batch_size=2, rank=2, world_size=2)
