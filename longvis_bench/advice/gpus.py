"""GPUs by short name: their memory and compute capability.

The memory is `memory.total` of nvidia-smi, which is what a process could have at most: less than the number
in the product's name where error correction takes its share.  Unless a source says otherwise it was looked
up in listings of nvidia-smi in public repositories in November 2026, for some products in one listing only.
Compute capabilities are those of NVIDIA's list, https://developer.nvidia.com/cuda-gpus.  FLOP/s are in
`report/peak_flops.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from longvis_bench.errors import UnknownName

MIB = 1 << 20
_LISTINGS = "nvidia-smi, memory.total"
_ONE_SOURCE = "nvidia-smi, memory.total; not looked up again: from memory of listings"


class Gpu(NamedTuple):
    """One product."""

    device: str
    """Name that the driver gives, as in rows."""
    memory_mib: int
    capability: tuple[int, int]
    source: str = _LISTINGS

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return self.memory_mib * MIB


GPUS = {
    "t4": Gpu("Tesla T4", 15360, (7, 5)),
    "v100-16": Gpu("Tesla V100-SXM2-16GB", 16384, (7, 0), _ONE_SOURCE),
    "v100-32": Gpu("Tesla V100-SXM2-32GB", 32768, (7, 0), _ONE_SOURCE),
    "a100-40": Gpu("NVIDIA A100-SXM4-40GB", 40960, (8, 0), _ONE_SOURCE),
    "a100-80": Gpu("NVIDIA A100-SXM4-80GB", 81920, (8, 0), _ONE_SOURCE),
    "a10g": Gpu("NVIDIA A10G", 23028, (8, 6), _ONE_SOURCE),
    "a40": Gpu("NVIDIA A40", 46068, (8, 6)),
    "a6000": Gpu("NVIDIA RTX A6000", 49140, (8, 6)),
    "rtx3090": Gpu("NVIDIA GeForce RTX 3090", 24576, (8, 6), _ONE_SOURCE),
    "l4": Gpu("NVIDIA L4", 23034, (8, 9)),
    "l40s": Gpu("NVIDIA L40S", 46068, (8, 9)),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 24564, (8, 9)),
    "rtx6000-ada": Gpu("NVIDIA RTX 6000 Ada Generation", 49140, (8, 9)),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 81559, (9, 0)),
    "h200": Gpu("NVIDIA H200", 143771, (9, 0)),
    "b200": Gpu("NVIDIA B200", 183359, (10, 0)),
    "rtx5090": Gpu("NVIDIA GeForce RTX 5090", 32607, (12, 0)),
}
DEFAULT_CAPABILITY = (8, 0)
"""Compute capability where only a memory is named: the oldest with all kernels of 16-bit attention."""


def find_gpu(name: str) -> Gpu:
    """The GPU of a short name, however it is spelled: "RTX 4090", "rtx-4090", "rtx4090".

    Raises:
        UnknownName: there is none; near misses are named.
    """
    wanted = _plain(name)
    found = [gpu for key, gpu in GPUS.items() if wanted in (_plain(key), _plain(gpu.device))]
    if not found:
        raise UnknownName("GPU", name.strip()[:80], GPUS, f"known: {', '.join(GPUS)}; or give --memory.")
    return found[0]


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower().removeprefix("nvidia").strip() if sign.isalnum())
