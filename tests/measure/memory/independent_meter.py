"""Print the peak memory of an iteration on the CPU in bytes, read without the package's own meter.

A process of its own, in which glibc is told by its environment to map every block of 128 KiB and more (see
`test_independent_meter.py`): nothing else ran before, so no history has to be undone but MKL's buffers.

    python independent_meter.py MODEL RESOLUTION BATCH infer|train THREADS
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longvis_bench.ops.selective_scan.operator import warm_up_scan
from longvis_bench.registry.registry import Registry, Variant


def free_mkl() -> None:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    for name in ("mkl_serv_free_buffers", "MKL_Free_Buffers"):
        if hasattr(library, name):
            getattr(library, name)()
            return


def status(*names: str) -> list[int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {words[0]: int(words[1]) * 1024 for words in map(str.split, lines) if words[-1:] == ["kB"]}
    return [sizes[name] for name in names]


def settle() -> int:
    """Free what is left over, reset the kernel's peak, and give what is held now."""
    gc.collect()
    free_mkl()
    ctypes.CDLL(None).malloc_trim(0)
    return reset()


def reset() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    resident, files = status("VmRSS:", "RssFile:")
    return resident - files


def iteration_of(variant: Variant, images: Tensor, mode: str) -> Callable[[], None]:
    model = variant.build(resolution=images.shape[-1], num_classes=10).train(mode == "train")
    model = model.to(memory_format=torch.channels_last)
    if mode == "infer":

        def infer() -> None:
            with torch.inference_mode():
                model(images)

        return infer
    optimizer, labels = torch.optim.AdamW(model.parameters(), lr=1e-6), torch.randint(10, (len(images),))

    def train() -> None:
        loss: Any = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def main(name: str, resolution: int, batch: int, mode: str, threads: int) -> int:
    torch.set_num_threads(threads)
    variant = Registry().find(name)
    variant.load_factory()
    warm_up_scan(torch.device("cpu"))
    images = torch.rand(batch, 3, resolution, resolution).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        F.linear(F.conv2d(images[:1, :, :256, :256], torch.ones(8, 3, 3, 3)), torch.ones(8, 254))
    before = settle()
    run = iteration_of(variant, images, mode)
    run()
    run()
    settle()
    run()
    reset()
    run()
    peak, files = status("VmHWM:", "RssFile:")
    return peak - files - before + images.untyped_storage().nbytes()


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
