"""Settings of torch that change a number: set as the cell's dtype says, and read for the row.

`fp32` is float32 throughout, in matrix products and in convolutions alike; `tf32` lets both round their
inputs to TF32 on the tensor cores.  torch's own default mixes the two, TF32 in convolutions only, which
favours convolutional families.  float32 work inside other dtypes (the reference of a bf16 cell) is strict.
"""

from __future__ import annotations

import torch

from longvis_bench.errors import Unsupported
from longvis_bench.records import Cell

TF32_CAPABILITY = (8, 0)
"""Compute capability from which on NVIDIA GPUs have TF32 tensor cores (Ampere)."""
BF16_CAPABILITY = (8, 0)
"""The same for bf16; older GPUs emulate it, slowly."""


def set_numerics(cell: Cell) -> None:
    """Allow TF32 in a `tf32` cell and forbid it in every other.

    Raises:
        Unsupported: the device has no TF32.
    """
    device = torch.device(cell.device)
    if cell.dtype == "tf32" and not has_tf32(device):
        raise Unsupported(
            f"{cell.device} has no TF32 tensor cores (NVIDIA GPUs of compute capability 8.0 or newer do); "
            "use --dtype fp32."
        )
    torch.backends.cuda.matmul.allow_tf32 = cell.dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = cell.dtype == "tf32"


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY


def rounds_to_tf32(tensor: torch.Tensor) -> bool:
    """Whether matrix products of this tensor now run in TF32."""
    return tensor.is_cuda and tensor.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


def read_numerics(device: torch.device) -> dict[str, str]:
    """Settings that can change a number, as they are now: a model's own code may have set them."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    found: dict[str, object] = {"deterministic_algorithms": deterministic}
    if device.type == "cuda":
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        found |= {
            "matmul_allow_tf32": matmul.allow_tf32,
            "cudnn_allow_tf32": cudnn.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "fp16_reduced_precision_reduction": matmul.allow_fp16_reduced_precision_reduction,
            "bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
            "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_enabled": cudnn.enabled,
            "cudnn_benchmark": cudnn.benchmark,
            "cudnn_deterministic": cudnn.deterministic,
            "cuda": torch.version.cuda,
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
        }
    return {name: str(value).lower() for name, value in found.items()}
