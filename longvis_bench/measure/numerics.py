"""Settings of torch that change a number: set as the cell's dtype says, and read for the row.

`fp32` is float32 throughout, in matrix products and in convolutions alike; `tf32` lets both round their
inputs to TF32 on the tensor cores.  torch's own default mixes the two, TF32 in convolutions only, which
favours convolutional families.  float32 work inside other dtypes (the reference of a bf16 cell) is strict.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from longvis_bench.devices import BF16_CAPABILITY, TF32_CAPABILITY
from longvis_bench.errors import Unsupported
from longvis_bench.records import Cell


def set_numerics(cell: Cell) -> None:
    """Allow TF32 in a `tf32` cell and forbid it in every other.

    Raises:
        Unsupported: the device has no TF32.
    """
    allowed = cell.dtype == "tf32"
    if allowed:
        require_tf32(torch.device(cell.device), "use --dtype fp32")
    _allow_tf32(allowed)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside, in products and convolutions alike; the caller's settings are restored."""
    before, older = _precisions(), _legacy()
    _allow_tf32(allowed)
    try:
        yield
    finally:
        _allow_tf32(False)
        for (holder, name), value in {**older, **before}.items():
            setattr(_HOLDERS[holder], name, value)


def _allow_tf32(allowed: bool) -> None:
    """Set torch's older switches, which Inductor reads, and clear what stands above them.

    `torch.backends.fp32_precision` holds wherever an operator's own precision is `none`, as it is where
    cuDNN's switch is off.
    """
    for holder in ("all", "cudnn"):
        _HOLDERS[holder].fp32_precision = "none"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


_HOLDERS: dict[str, Any] = {
    "all": torch.backends,
    "cudnn": torch.backends.cudnn,
    "matmul": torch.backends.cuda.matmul,
    "conv": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    "rnn": torch.backends.cudnn.rnn,
}
"""What has a float32 precision of its own; the first holds where the others say `none`."""


def _precisions() -> dict[tuple[str, str], str]:
    return {(name, "fp32_precision"): holder.fp32_precision for name, holder in _HOLDERS.items()}


def _legacy() -> dict[tuple[str, str], bool]:
    """The older switches of torch; reading one raises where it contradicts the newer precision."""
    found = {}
    for name in ("matmul", "cudnn"):
        with suppress(RuntimeError):
            found[name, "allow_tf32"] = bool(_HOLDERS[name].allow_tf32)
    return found


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY


def require_tf32(device: torch.device, advice: str) -> None:
    """Raise unless a device multiplies in TF32.

    Raises:
        Unsupported: it does not; the message ends with the advice.
    """
    if not has_tf32(device):
        raise Unsupported(
            f"{device} has no TF32 tensor cores (NVIDIA GPUs of compute capability 8.0 or newer do); "
            f"{advice}."
        )


def rounds_to_tf32(tensor: torch.Tensor) -> bool:
    """Whether matrix products of this tensor now run in TF32."""
    return tensor.is_cuda and tensor.dtype == torch.float32 and _rounds("matmul")


def _rounds(holder: str) -> bool:
    return bool(_HOLDERS[holder].fp32_precision == "tf32")


def read_numerics(device: torch.device) -> dict[str, str]:
    """Settings that can change a number, as they are now: a model's own code may have set them."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    found: dict[str, object] = {"deterministic_algorithms": deterministic}
    if device.type == "cuda":
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        capability = torch.cuda.get_device_capability(device)
        found |= {
            "matmul_allow_tf32": _rounds("matmul"),
            "cudnn_allow_tf32": _rounds("conv"),
            "fp16_reduced_precision_reduction": matmul.allow_fp16_reduced_precision_reduction,
            "bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
            "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_enabled": cudnn.enabled,
            "cudnn_benchmark": cudnn.benchmark,
            "cudnn_deterministic": cudnn.deterministic,
            "cuda": torch.version.cuda,
            "capability": "{}.{}".format(*capability),
            "native_bf16": capability >= BF16_CAPABILITY,
        }
        with suppress(RuntimeError):  # torch refuses to tell where code has set its newer precisions only
            found["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    return {name: str(value).lower() for name, value in found.items()}
