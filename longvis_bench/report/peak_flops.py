"""Peak FLOP/s of GPUs by name and dtype, from their makers' documents.

Dense figures, without sparsity.  bf16, fp16 and tf32 are those of the tensor cores that accumulate in
float32; fp32 is strict, on the ordinary cores.  Each GPU names the document and the table that state its
figures; where a document states a figure with sparsity only, half of it stands here.  They were checked
against quotations and tables of these documents in public repositories, not against the documents.  No
quotation was found for GH200, A10G, the tf32 of H100 PCIe, RTX 3090 and RTX 5090, and the fp32 of RTX 5090:
these rest on tables of others.  A figure that was found nowhere is None.

Names are matched whole: a variant (laptop, Ti, D, Max-Q, MIG, a custom part) has other figures, and an
unknown device has no peak rather than a guess.  Processors have none: there a peak depends on clocks under
load.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from longvis_bench.records import Row
from longvis_bench.stats import median


class Peak(NamedTuple):
    """Peak in TFLOP/s; None if the GPU does not support the dtype, or no document confirms a number."""

    half: float
    tf32: float | None
    fp32: float | None
    source: str
    """Document of the GPU's maker, and its table."""
    bf16: bool = True
    """Whether `half` holds for bf16, too."""


_SHEET = "specifications, with sparsity"
_BLACKWELL = 'data sheet "NVIDIA Blackwell", individual GPU specifications, with sparsity'
_HOPPER = 'whitepaper "NVIDIA H100 Tensor Core GPU Architecture", table "H100 SXM5", dense'
_GEFORCE = r"(?:NVIDIA )?GeForce RTX"
PEAKS: tuple[tuple[str, Peak], ...] = (
    (r"NVIDIA GB200", Peak(2500, 1250, 80, _BLACKWELL)),
    (r"NVIDIA B200", Peak(2250, 1125, 75, f"page of HGX B200, {_SHEET}, of eight GPUs")),
    (r"NVIDIA H200", Peak(989.5, 494.5, 67, f"data sheet of H200, {_SHEET}, SXM")),
    (r"NVIDIA H200 NVL", Peak(835.5, 417.5, 60, f"data sheet of H200, {_SHEET}, NVL")),
    (
        r"NVIDIA GH200 (?:480GB|144G HBM3e)",
        Peak(989.5, 494.5, 67, f"data sheet of GH200 Grace Hopper, {_SHEET}"),
    ),
    (r"NVIDIA H100 80GB HBM3", Peak(989.4, 494.7, 66.9, _HOPPER)),
    (r"NVIDIA H100 NVL", Peak(835.5, 417.5, 60, f"data sheet of H100, {_SHEET}, NVL")),
    (r"NVIDIA H100 PCIe", Peak(756.5, 378, 51, f"data sheet of H100, {_SHEET}, PCIe")),
    (
        r"(?:NVIDIA )?A100-(?:SXM4-[48]0GB|PCIE-40GB)|NVIDIA A100 80GB PCIe",
        Peak(312, 156, 19.5, "data sheet of A100, specifications, dense"),
    ),
    (r"NVIDIA A40", Peak(149.7, 74.8, 37.4, "data sheet of A40, specifications, dense")),
    (r"NVIDIA A30", Peak(165, 82, 10.3, "data sheet of A30, specifications, dense")),
    (r"NVIDIA A10G", Peak(70, 35, 35, "data sheet of A10G by NVIDIA and AWS, specifications, dense")),
    (r"NVIDIA A10", Peak(125, 62.5, 31.2, "data sheet of A10, specifications, dense")),
    (r"NVIDIA L40S", Peak(362.05, 183, 91.6, "data sheet of L40S, specifications, dense")),
    (r"NVIDIA L40", Peak(181.05, 90.5, 90.5, "data sheet of L40, specifications, dense")),
    (r"NVIDIA L4", Peak(121, 60, 30.3, f"data sheet of L4, {_SHEET}")),
    (
        rf"{_GEFORCE} 5090",
        Peak(209.5, 104.8, 104.8, 'whitepaper "NVIDIA RTX Blackwell GPU Architecture", appendix A, dense'),
    ),
    (
        rf"{_GEFORCE} 4090",
        Peak(165.2, 82.6, 82.6, 'whitepaper "NVIDIA Ada GPU Architecture", appendix A, dense'),
    ),
    (
        rf"{_GEFORCE} 3090",
        Peak(71, 35.6, 35.6, 'whitepaper "NVIDIA Ampere GA102 GPU Architecture", appendix A, dense'),
    ),
    (
        r"NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        Peak(503.8, None, None, 'whitepaper "NVIDIA RTX Blackwell PRO", appendix A, dense'),
    ),
    (
        r"NVIDIA RTX 6000 Ada Generation",
        Peak(364.2, None, 91.1, "whitepaper of Ada for professional GPUs (bf16, dense); data sheet (fp32)"),
    ),
    (
        r"NVIDIA RTX A6000",
        Peak(
            154.8, None, 38.7, 'whitepaper "NVIDIA Ampere GA102 GPU Architecture" (bf16); data sheet (fp32)'
        ),
    ),
    (
        r"(?:Tesla|NVIDIA) V100-SXM2-(?:16|32)GB",
        Peak(125, None, 15.7, "data sheet of V100, specifications, SXM2", bf16=False),
    ),
    (
        r"(?:Tesla|NVIDIA) V100-PCIE-(?:16|32)GB",
        Peak(112, None, 14, "data sheet of V100, specifications, PCIe", bf16=False),
    ),
    (r"(?:Tesla|NVIDIA) T4", Peak(65, None, 8.1, "data sheet of T4, specifications", bf16=False)),
)
"""Pattern of the full name from the driver, and the peak."""


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
