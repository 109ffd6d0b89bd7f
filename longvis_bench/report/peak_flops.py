"""What a GPU could do at most: FLOP/s by name and dtype, from its maker's data sheet.

Dense figures, without sparsity.  bf16, fp16 and tf32 are those of the tensor cores that accumulate in
float32; fp32 is strict, on the ordinary cores.  Sources, by NVIDIA: the data sheets of HGX
B200, GB200 NVL72, H200, GH200, H100, A100, A40, A30, A10, L4, L40, L40S, V100 and T4; the whitepapers "NVIDIA
Ampere GA102", "Ada" and "RTX Blackwell" for the RTX cards, whose figures are at boost clock.  Where a sheet
gives a figure with sparsity, half of it stands here.  Names are matched whole: a variant (laptop, Ti, D, MIG,
a custom part) has other figures, and an unknown device has no peak rather than a guess.  Processors have
none: there a peak depends on clocks under load.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from longvis_bench.records import Row
from longvis_bench.stats import median


class _Peak(NamedTuple):
    """TFLOP/s; None where the GPU does not compute in that dtype, or the sheet does not tell."""

    half: float
    tf32: float | None
    fp32: float | None
    bf16: bool = True
    """Whether `half` is bf16's too."""


_H100_SXM = _Peak(989.4, 494.7, 67)
_A100 = _Peak(312, 156, 19.5)
_RTX = r"(?:NVIDIA )?(?:GeForce )?RTX"
PEAKS: tuple[tuple[str, _Peak], ...] = (
    (r"NVIDIA GB200", _Peak(2500, 1250, 80)),
    (r"NVIDIA B200", _Peak(2250, 1125, 75)),
    (r"NVIDIA H200", _H100_SXM),
    (r"NVIDIA GH200 (?:480GB|144G HBM3e)", _H100_SXM),
    (r"NVIDIA H100 80GB HBM3", _H100_SXM),
    (r"NVIDIA H100 NVL", _Peak(835.5, 417.5, 60)),
    (r"NVIDIA H200 NVL", _Peak(835.5, 417.5, 60)),
    (r"NVIDIA H100 PCIe", _Peak(756, 378, 51)),
    (r"(?:NVIDIA )?A100-(?:SXM4|PCIE)-[48]0GB", _A100),
    (r"NVIDIA A100 80GB PCIe", _A100),
    (r"NVIDIA A40", _Peak(149.7, 74.8, 37.4)),
    (r"NVIDIA A30", _Peak(165, 82, 10.3)),
    (r"NVIDIA A10G", _Peak(70, 35, None)),
    (r"NVIDIA A10", _Peak(125, 62.5, 31.2)),
    (r"NVIDIA L40S", _Peak(362, 183, 91.6)),
    (r"NVIDIA L40", _Peak(181, 90.5, 90.5)),
    (r"NVIDIA L4", _Peak(121, 60, 30.3)),
    (rf"{_RTX} 5090", _Peak(209.5, 104.8, 104.8)),
    (rf"{_RTX} 4090", _Peak(165.2, 82.6, 82.6)),
    (rf"{_RTX} 3090", _Peak(71, 35.6, 35.6)),
    (r"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", _Peak(503.8, 251.9, 126)),
    (r"NVIDIA RTX 6000 Ada Generation", _Peak(364.2, 182.1, 91.1)),
    (r"NVIDIA RTX A6000", _Peak(154.8, 77.4, 38.7)),
    (r"(?:Tesla|NVIDIA) V100-SXM2-(?:16|32)GB(?:-LS)?", _Peak(125, None, 15.7, bf16=False)),
    (r"(?:Tesla|NVIDIA) V100-PCIE-(?:16|32)GB", _Peak(112, None, 14, bf16=False)),
    (r"(?:Tesla|NVIDIA) T4", _Peak(65, None, 8.1, bf16=False)),
)
"""Pattern of the whole name that the driver gives, and the peak."""


def peak_flops(device: str, dtype: str) -> float | None:
    """Peak FLOP/s of a device in a dtype, or None where it is not known; a MIG slice has none.

    Arguments:
        device: name as the driver gives it, e.g. "NVIDIA H100 80GB HBM3".
        dtype: "fp32", "tf32", "bf16" or "fp16".
    """
    peak = next((found for pattern, found in PEAKS if re.fullmatch(pattern, device)), None)
    if peak is None or (dtype == "bf16" and not peak.bf16):
        return None
    tera = {"bf16": peak.half, "fp16": peak.half, "tf32": peak.tf32, "fp32": peak.fp32}.get(dtype)
    return None if tera is None else tera * 1e12


def peak_of(row: Row) -> float | None:
    """The peak of the device and dtype that a row was measured with.

    In older rows, which do not record torch's settings, fp32 mixed strict products with TF32 convolutions.
    """
    if row.cell.dtype == "fp32" and not row.numerics:
        return None
    return peak_flops(row.backends.get("device", ""), row.cell.dtype)


def mfu(row: Row) -> float | None:
    """FLOP/s of the model's arithmetic / the device's peak; a train step counts as three forwards."""
    peak, latency = peak_of(row), median(row.timing.samples_s) if row.timing else None
    if row.count is None or peak is None or not latency:
        return None
    passes = 3 if row.cell.mode == "train" else 1
    return passes * row.count.flops * row.cell.batch_size / latency / peak
