"""Epochs of batches, decoded ahead by worker processes, for training and long evaluations.

    loader = Loader(data, "train", resolution=1024, batch_size=16, seed=0, workers=4, device="cuda")
    for images, labels, indices in loader.epoch(3, start=0): ...

**Order.**  `seed` and the number of the epoch alone determine the order of "train"; "val" keeps its order.
The number of workers, the device and earlier epochs do not affect any image, and torch's global random state
is not changed.

**Resuming.**  `epoch(number, start=k)` yields the batches of `epoch(number)` from batch k on (0-based);
earlier batches are not decoded.

**Several processes.**  Each makes a Loader with its `rank` and the `world_size`.  `batch_size` is per rank: a
step takes the next `batch_size * world_size` images of the common order, and each rank its part of them, so
that all ranks together see the images of a single process with that batch.  In training, if the last step of
an epoch does not divide by the ranks, it is filled up with the epoch's first images, so that all ranks have
batches of one size; in "val" no image is repeated, and ranks may differ by one image or have an empty batch.

**Augmentation.**  `augment` takes and returns an RGB PIL image of the resolution, 8 bits per
channel, before normalisation.  It may draw from `random`, `numpy.random` and torch: the loader seeds them per
image from seed, epoch and index, and restores them.  With workers it must be picklable on macOS and Windows.

**Resizing.**  Images smaller than the resolution are copied to the device and enlarged there; larger ones are
shrunk by the worker, so that less data is sent and no device memory is needed.  On the CPU, and with
`augment`, the workers do all resizing.

**Shared memory.**  Workers return batches through shared memory, through pipes if shared memory is too small,
and no worker is started if there is none.  `note` has a sentence about it (`shared_memory.py`).
If it fills up while workers run, single batches go through pipes.

**Fresh images.**  Where the data has new images in every epoch (`LoadableData.fresh`), epoch e of "train"
consists of the indices e * size to (e + 1) * size - 1, in a random order.

**Broken files.**  In training the next readable image of the split replaces a broken one, so that batches
keep their size; in "val" the batch is shorter, possibly empty.  `data.broken` has the names, and more than
1 % of a split raises DataError.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, prod
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from longvis_bench.data.protocol import BrokenImage, LoadableData, Split
from longvis_bench.data.shared_memory import plan_handover
from longvis_bench.errors import DataError, LongvisError, MissingDependency
from longvis_bench.resolution import Resolution, sides
from longvis_bench.text import first_line

Augment = Callable[[Image.Image], Image.Image]
PREFETCH = 2
"""Batches that each worker decodes ahead."""


class Batch(NamedTuple):
    """One batch of an epoch."""

    images: Tensor
    """(batch, 3, height, width), normalised, on the device."""
    labels: Tensor
    """(batch), int64, on the device."""
    indices: tuple[int, ...]
    """Indices of the images in the split."""


class Loader:
    """Epochs over one split; see the module's docstring.

    Arguments:
        data: the images.
        split: "train" is shuffled, "val" is not.
        resolution: pixels per side.
        batch_size: images per batch and rank; the last batch of an epoch has the remaining ones.
        seed: of the order and of the augmentation.
        workers: processes that decode ahead; 0 for none.
        device: of the batches.
        dtype: of the images; float32 unless given.
        augment: applied to each image; see the module's docstring.
        rank: of this process, from 0.
        world_size: number of processes that share an epoch.
        drop_last: leave out the last step of an epoch if it is not full.

    Raises:
        ValueError: rank or batch size is out of range.
    """

    waited_s: float
    """Seconds that the consumer waited for batches in the current epoch, copying and resizing included.
    Without workers this is the whole loading time; close to the epoch's duration, the loader is the limit."""
    note: str | None
    """A sentence for the user if the requested workers could not be used as such; else None."""

    def __init__(
        self,
        data: LoadableData,
        split: Split,
        *,
        resolution: Resolution,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < world_size or batch_size < 1:
            raise ValueError(f"rank {rank} of {world_size} with batches of {batch_size} is not possible.")
        self._data, self._split, self._resolution = data, split, resolution
        self._device, self._dtype = torch.device(device), dtype
        self._steps = _Steps(data, split, batch_size, seed, rank, world_size, drop_last)
        grows_there = self._device.type != "cpu"
        items = _Items(data, split, resolution, seed, augment, grows_there)
        handover = plan_handover(workers, items.batch_bytes(batch_size), PREFETCH * workers + 1)
        workers, self.note = handover.workers, handover.note
        items.by_pipe = handover.way == "pipes"
        self._batches: DataLoader[_Loaded] = DataLoader(
            items,
            sampler=self._steps,
            batch_size=None,
            num_workers=workers,
            pin_memory=self._device.type == "cuda",
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            collate_fn=_unchanged,  # torch's default would convert the arrays for pipes to tensors
            generator=torch.Generator(),  # else every epoch would draw from the global generator
        )
        self.waited_s = 0.0

    def __len__(self) -> int:
        """Batches per epoch and rank."""
        return self._steps.count

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on.

        Raises:
            DataError: more than 1 % of the split's files are broken.
        """
        self._steps.number, self._steps.start = number, start
        self.waited_s = 0.0
        begun = perf_counter()
        for loaded in _started(self._batches):
            batch = self._ready(loaded.as_tensors())
            self.waited_s += perf_counter() - begun
            yield batch
            begun = perf_counter()

    def _ready(self, loaded: _Loaded) -> Batch:
        """A loaded batch on the device."""
        if loaded.broken:
            self._data.note_broken(self._split, loaded.broken)
        images = self._data.finish(loaded.images, self._resolution, device=self._device, dtype=self._dtype)
        labels = torch.tensor(loaded.labels, dtype=torch.int64)
        return Batch(images, labels.to(self._device, non_blocking=True), tuple(loaded.indices))


@contextmanager
def named_worker_deaths() -> Iterator[None]:
    """Turn torch's error for a killed worker, which can appear at any line, into one with advice.

    Raises:
        LongvisError: a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LongvisError(
            f"a process that loads images was killed ({first_line(str(error))}), most "
            "likely because memory or shared memory ran out; give fewer --workers, or 0."
        ) from error


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """The shuffled indices 0 to `size` - 1 of an epoch."""
    generator = torch.Generator().manual_seed(_seed(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()


class _Loaded(NamedTuple):
    """A batch as a worker sends it."""

    images: list[Tensor] | Tensor
    """NumPy arrays if they are sent through a pipe, because torch would move tensors into shared memory."""
    labels: list[int]
    indices: list[int]
    broken: dict[str, str]

    def as_arrays(self) -> _Loaded:
        """The same with NumPy arrays, which are pickled by value."""
        images = self.images.numpy() if isinstance(self.images, Tensor) else [i.numpy() for i in self.images]
        return self._replace(images=images)  # type: ignore[arg-type]

    def as_tensors(self) -> _Loaded:
        """The same with tensors."""
        if isinstance(self.images, list):
            return self._replace(images=[torch.as_tensor(image) for image in self.images])
        return self._replace(images=torch.as_tensor(self.images))


def _unchanged(loaded: Any) -> Any:
    return loaded


class _Steps(Sampler[tuple[int, list[int]]]):
    """Yields the epoch's number and the indices of each step of one rank."""

    def __init__(
        self,
        data: LoadableData,
        split: Split,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        drop_last: bool,
    ) -> None:
        size = data.size(split)
        self._size, self._shuffled, self._seed = size, split == "train", seed
        self._fresh = data.fresh and self._shuffled
        self._rank, self._world_size, self._step = rank, world_size, batch_size * world_size
        self.count = size // self._step if drop_last else ceil(size / self._step)
        self.number = self.start = 0

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        order = epoch_order(self._size, self._seed, self.number) if self._shuffled else range(self._size)
        first = self.number * self._size if self._fresh else 0
        for step in range(self.start, self.count):
            yield self.number, [first + index for index in self._part(order, step)]

    def _part(self, order: list[int] | range, step: int) -> list[int]:
        """This rank's images of a step: every `world_size`-th, so that ranks differ by at most one image."""
        images = list(order[step * self._step : (step + 1) * self._step])
        if self._shuffled:
            missing = -len(images) % self._world_size
            images += [order[extra % self._size] for extra in range(missing)]
        return images[self._rank :: self._world_size]

    def __len__(self) -> int:
        return self.count - self.start


class _Items(Dataset[_Loaded]):
    """Loads whole batches in the workers."""

    def __init__(
        self,
        data: LoadableData,
        split: Split,
        resolution: Resolution,
        seed: int,
        augment: Augment | None,
        grows_there: bool,
    ) -> None:
        self._data, self._split, self._resolution = data, split, resolution
        self._seed, self._augment, self._grows_there = seed, augment, grows_there
        self.by_pipe = False

    def batch_bytes(self, batch_size: int) -> int:
        """Bytes of a batch of three channels, with the dtype of the split's first image."""
        try:
            image, _ = self._data.load(self._split, 0, self._resolution)
        except (BrokenImage, DataError):
            return batch_size * 3 * prod(sides(self._resolution)) * torch.float32.itemsize
        bytes_each = 1 if self._augment is not None else image.element_size()
        return batch_size * 3 * prod(sides(self._resolution)) * bytes_each

    def __getitem__(self, key: tuple[int, list[int]]) -> _Loaded:
        epoch, indices = key
        loaded = _Loaded([], [], [], {})
        for index in indices:
            found = self._readable(index, loaded.broken)
            if found is None:
                continue
            used, image, label = found
            loaded.images.append(self._prepared(image, epoch, used))  # type: ignore[union-attr]
            loaded.labels.append(label)
            loaded.indices.append(used)
        if len({image.shape for image in loaded.images} | {None}) == 2:
            loaded = loaded._replace(images=torch.stack(list(loaded.images)))
        return _handed_over(loaded, by_pipe=self.by_pipe)

    def _readable(self, index: int, broken: dict[str, str]) -> tuple[int, Tensor, int] | None:
        """The image with its index and label; in training the next readable one if it is broken."""
        size = self._data.size(self._split)
        first = index - index % size  # not 0 in later epochs of fresh images
        for candidate in (first + (index + step) % size for step in range(size)):
            try:
                return candidate, *self._data.load(self._split, candidate, self._resolution)
            except MissingDependency as error:
                if get_worker_info() is None:
                    raise
                raise DataError(str(error)) from error  # torch makes a worker's error anew from its text
            except BrokenImage as error:
                broken[error.name] = error.why
                if self._split == "val":
                    return None
        raise DataError(f"no image of {self._split}/ can be read.")

    def _prepared(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """The image resized and augmented, unless it is to be enlarged on the device."""
        if self._augment is not None:
            fitted = self._data.fit(image, self._resolution)
            with _seeded(_seed(self._seed, epoch, index)):
                return _from_picture(self._augment(_as_picture(fitted)))
        if self._grows_there and _grows(image, self._resolution):
            return image
        return self._data.fit(image, self._resolution)


def _grows(image: Tensor, resolution: Resolution) -> bool:
    """Whether a side of the image is shorter than the resolution's."""
    return any(have < want for have, want in zip(image.shape[-2:], sides(resolution), strict=True))


def _handed_over(loaded: _Loaded, *, by_pipe: bool) -> _Loaded:
    """A batch in the form it leaves a worker in: in shared memory, or as arrays for the pipe.

    The memory is taken here: where it has become full since it was measured, torch's own attempt fails in a
    thread that drops the batch, and the consumer waits for it for ever.
    """
    if by_pipe:
        return loaded.as_arrays()
    if get_worker_info() is None:
        return loaded
    try:
        for images in loaded.images if isinstance(loaded.images, list) else [loaded.images]:
            images.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError):
        return loaded.as_arrays()
    return loaded


def _seed(*parts: int) -> int:
    """One seed from several numbers; adjacent numbers give independent seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every source of randomness that an augmentation may use, and restore it afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def _as_picture(image: Tensor) -> Image.Image:
    """(1 or 3, side, side), uint8 or float in 0-1 -> RGB."""
    if image.is_floating_point():
        image = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)


def _from_picture(picture: Image.Image) -> Tensor:
    pixels: NDArray[Any] = np.array(picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _started(batches: DataLoader[_Loaded]) -> Iterator[_Loaded]:
    """An iterator over batches, with the workers started.

    Python's warning about forking a process with threads is ignored: torch gives each worker one thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        return iter(batches)
