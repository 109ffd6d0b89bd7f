"""What a device could do at most: FLOP/s by name and dtype, from its maker's data sheet.

Dense figures of the tensor cores, without sparsity, accumulating in float32.  fp32 is left out, because what
it may use (TF32 or not) is a setting, and so are processors: there a peak depends on clocks under load.
An unknown device has no peak rather than a guess.
"""

from __future__ import annotations

import re

_BOTH = ("bf16", "fp16")
PEAK_FLOPS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    (r"B200", _BOTH, 2250e12),
    (r"H200", _BOTH, 989.4e12),
    (r"H100 PCIe", _BOTH, 756e12),
    (r"H100 NVL", _BOTH, 835e12),
    (r"H100", _BOTH, 989.4e12),
    (r"A100", _BOTH, 312e12),
    (r"V100-PCIE", ("fp16",), 112e12),
    (r"V100", ("fp16",), 125e12),
    (r"L40S", _BOTH, 362e12),
    (r"L4\b", _BOTH, 121e12),
    (r"A10G", _BOTH, 70e12),
    (r"A10\b", _BOTH, 125e12),
    (r"T4\b", ("fp16",), 65e12),
    (r"RTX 4090\b", _BOTH, 165.2e12),
    (r"RTX 3090\b", _BOTH, 71e12),
)
"""Pattern of the name that the driver gives, dtypes, FLOP/s; the first pattern that fits counts."""


def peak_flops(device: str, dtype: str) -> float | None:
    """Peak FLOP/s of a device in a dtype, or None where it is not known; a MIG slice has none.

    Arguments:
        device: name as the driver gives it, e.g. "NVIDIA H100 80GB HBM3".
        dtype: "fp32", "bf16" or "fp16".
    """
    if "MIG" in device:
        return None
    found = next((entry for entry in PEAK_FLOPS if re.search(entry[0], device)), None)
    return found[2] if found is not None and dtype in found[1] else None
