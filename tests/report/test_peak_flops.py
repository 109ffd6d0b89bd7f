"""Peak FLOP/s by the name of a GPU: the table as its sources state it, and nothing for other parts."""

from __future__ import annotations

import re

import pytest

from longvis_bench.report.peak_flops import PEAKS, peak_flops

STATED = {
    # name of the driver: TFLOP/s in bf16, fp16, tf32, fp32
    "NVIDIA GB200": (2500, 2500, 1250, 80),
    "NVIDIA B200": (2250, 2250, 1125, 75),
    "NVIDIA H200": (989.5, 989.5, 494.5, 67),
    "NVIDIA H200 NVL": (835.5, 835.5, 417.5, 60),
    "NVIDIA GH200 480GB": (989.5, 989.5, 494.5, 67),
    "NVIDIA GH200 144G HBM3e": (989.5, 989.5, 494.5, 67),
    "NVIDIA H100 80GB HBM3": (989.4, 989.4, 494.7, 66.9),
    "NVIDIA H100 NVL": (835.5, 835.5, 417.5, 60),
    "NVIDIA H100 PCIe": (756.5, 756.5, 378, 51),
    "NVIDIA A100-SXM4-40GB": (312, 312, 156, 19.5),
    "NVIDIA A100-SXM4-80GB": (312, 312, 156, 19.5),
    "A100-PCIE-40GB": (312, 312, 156, 19.5),
    "NVIDIA A100 80GB PCIe": (312, 312, 156, 19.5),
    "NVIDIA A40": (149.7, 149.7, 74.8, 37.4),
    "NVIDIA A30": (165, 165, 82, 10.3),
    "NVIDIA A10G": (70, 70, 35, 35),
    "NVIDIA A10": (125, 125, 62.5, 31.2),
    "NVIDIA L40S": (362.05, 362.05, 183, 91.6),
    "NVIDIA L40": (181.05, 181.05, 90.5, 90.5),
    "NVIDIA L4": (121, 121, 60, 30.3),
    "NVIDIA GeForce RTX 5090": (209.5, 209.5, 104.8, 104.8),
    "NVIDIA GeForce RTX 4090": (165.2, 165.2, 82.6, 82.6),
    "GeForce RTX 3090": (71, 71, 35.6, 35.6),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (503.8, 503.8, None, None),
    "NVIDIA RTX 6000 Ada Generation": (364.2, 364.2, None, 91.1),
    "NVIDIA RTX A6000": (154.8, 154.8, None, 38.7),
    "Tesla V100-SXM2-16GB": (None, 125, None, 15.7),
    "Tesla V100-PCIE-32GB": (None, 112, None, 14),
    "Tesla T4": (None, 65, None, 8.1),
}


@pytest.mark.parametrize("device", STATED)
def test_the_table_is_what_the_documents_state(device: str) -> None:
    found = [peak_flops(device, dtype) for dtype in ("bf16", "fp16", "tf32", "fp32")]
    assert found == [None if tera is None else tera * 1e12 for tera in STATED[device]]


def test_every_gpu_has_a_source_and_a_test() -> None:
    for pattern, peak in PEAKS:
        assert re.search(r"data sheet|whitepaper|page of", peak.source), pattern
        assert [name for name in STATED if re.fullmatch(pattern, name)], pattern


@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize(
    "more", [" Laptop GPU", " Ti", " D", " SUPER", " MIG 1g.10gb", "-LS", "X", " with Max-Q"]
)
def test_a_name_that_goes_on_is_another_part(name: str, more: str) -> None:
    assert [peak_flops(name + more, dtype) for dtype in ("bf16", "fp16", "tf32", "fp32")] == [None] * 4


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX 5000 Ada Generation Laptop GPU",
        "NVIDIA A100-SXM-64GB",
        "Tesla V100S-PCIE-32GB",
        "Tesla V100-SXM2-32GB-LS",  # lower clocks than the data sheet's V100
        "NVIDIA H800",
        "NVIDIA H20",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Intel Xeon",
        "",
    ],
)
def test_a_part_without_a_stated_figure_has_no_peak(device: str) -> None:
    assert {peak_flops(device, dtype) for dtype in ("bf16", "fp16", "tf32", "fp32")} == {None}


def test_other_dtypes_have_no_peak() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp8") is None
