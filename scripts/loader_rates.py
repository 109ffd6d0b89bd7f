"""Images per second that the loader gives with several numbers of workers, and its decoders' times.

    python scripts/loader_rates.py [--px 4096] [--res 1024] [--workers 0 1 2] [--images 48] [--epochs 3]

It makes its own JPEGs (smooth colours with noise, quality 90) in a temporary folder and reads whole epochs of
them as `longvis train` does, without a model.  The rate is the median over the epochs; an epoch before them,
in which workers start, does not count.  Run it on an idle machine.  docs/training.md shows the table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from PIL import Image

from longvis_bench.data.decode import decode, torchvision_decoder
from longvis_bench.data.folder import Folder
from longvis_bench.data.loader import Loader

CLASSES = ("a", "b")
QUALITY = 90
COARSE = 64
"""Pixels of detail per colour patch: the files are about as large as photographs of that size."""
NOISE = 6.0


def main() -> None:
    """Print the rates as a table, and the decoders' times below it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--px", type=int, default=4096, help="pixels per side of the files")
    parser.add_argument("--res", type=int, default=1024, help="pixels per side that they are resized to")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=48, help="images per epoch")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = make_images(Path(made), given.px, given.images)
        print(f"JPEGs of {given.px} px to {given.res} px, {torch.get_num_threads()} threads\n")
        print("| workers | images per second |\n|---:|---:|")
        for workers in given.workers:
            found = rate(folder, given.res, given.batch, workers, given.epochs)
            print(f"| {workers} | {found:.3g} |", flush=True)
        print()
        for name, seconds in decoders(folder).items():
            print(f"{name}: {1e3 * seconds:.0f} ms per image")


def make_images(folder: Path, px: int, images: int) -> Path:
    """A data set of `images` training images in two classes."""
    random = np.random.default_rng(0)
    for number in range(images + len(CLASSES)):
        split = "train" if number < images else "val"
        path = folder / split / CLASSES[number % len(CLASSES)]
        path.mkdir(parents=True, exist_ok=True)
        picture(random, px).save(path / f"{number:04}.jpg", quality=QUALITY)
    return folder


def picture(random: np.random.Generator, px: int) -> Image.Image:
    """Smooth colours with the noise of a camera."""
    side = max(2, px // COARSE)
    colours = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((px, px), Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = smooth + NOISE * random.standard_normal(smooth.shape, dtype=np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def rate(folder: Path, resolution: int, batch: int, workers: int, epochs: int) -> float:
    """Images per second over whole epochs."""
    loader = Loader(
        Folder(str(folder)), "train", resolution=resolution, batch_size=batch, seed=0, workers=workers
    )
    if loader.note is not None:
        print(f"note: {loader.note}")
    rates = []
    for epoch in range(epochs + 1):
        begun = perf_counter()
        images = sum(len(found.labels) for found in loader.epoch(epoch))
        rates.append(images / (perf_counter() - begun))
    return median(rates[1:])


def decoders(folder: Path, most: int = 12) -> dict[str, float]:
    """Median seconds per image of `decode`, and of Pillow alone where torchvision has a decoder."""
    files = sorted(folder.glob("train/*/*.jpg"))[:most]
    torch.set_num_threads(1)
    found = {"decode": median(seconds(lambda path: decode(path, path.name), files))}
    if torchvision_decoder() is not None:
        found["Pillow alone"] = median(seconds(lambda path: np.array(Image.open(path)), files))
    return found


def seconds(read: Callable[[Path], object], files: list[Path]) -> list[float]:
    """Seconds per file, after one that does not count."""
    taken = []
    for path in [files[0], *files]:
        begun = perf_counter()
        read(path)
        taken.append(perf_counter() - begun)
    return taken[1:]


if __name__ == "__main__":
    main()
