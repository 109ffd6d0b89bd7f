"""Attention as a named GPU would run it, without the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from longvis_bench.ops.kernel_trace import ATTENTION, observe
from longvis_bench.ops.planned_gpu import plan_for, planned_kernel

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TURING, AMPERE, ADA, HOPPER, BLACKWELL = (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)


def kernels(capability: tuple[int, int], dtype: torch.dtype, channels: int = 64, **options: Any) -> set[str]:
    """What attention of 2 x 4 heads x 96 tokens dispatches."""
    with FakeTensorMode(), plan_for(capability), observe() as found:
        q = torch.empty(2, 4, 96, channels, dtype=dtype, device="cuda")
        out = F.scaled_dot_product_attention(q, q, q, **options)
        assert out.shape == q.shape
        assert out.dtype == dtype
    return found[ATTENTION]


@pytest.mark.parametrize(
    ("capability", "dtype", "channels", "kernel"),
    [
        (TURING, FP16, 64, "efficient"),
        (TURING, BF16, 64, "math"),
        (TURING, FP32, 64, "efficient"),
        (AMPERE, BF16, 64, "flash"),
        (AMPERE, FP32, 64, "efficient"),
        (AMPERE, FP32, 6, "math"),
        (AMPERE, BF16, 20, "flash"),
        (AMPERE, BF16, 264, "efficient"),
        (ADA, FP16, 64, "flash"),
        (HOPPER, BF16, 64, "cudnn"),
        (HOPPER, BF16, 20, "flash"),
        (HOPPER, BF16, 256, "flash"),
        (HOPPER, FP32, 64, "efficient"),
        (BLACKWELL, BF16, 64, "flash"),
    ],
)
def test_each_generation_takes_the_kernel_that_torch_prefers_there(
    capability: tuple[int, int], dtype: torch.dtype, channels: int, kernel: str
) -> None:
    assert kernels(capability, dtype, channels) == {kernel}


@pytest.mark.parametrize("dtype", [torch.bool, BF16])
def test_a_mask_rules_out_flash(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        mask = torch.empty(96, 96, dtype=dtype, device="cuda")
    assert kernels(AMPERE, BF16, attn_mask=None) == {"flash"}
    with FakeTensorMode() as mode, plan_for(AMPERE), observe() as found:
        q = torch.empty(2, 4, 96, 64, dtype=BF16, device="cuda")
        mask = torch.empty(96, 96, dtype=dtype, device="cuda")
        F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert mode is not None
    assert found[ATTENTION] == {"efficient"}


@pytest.mark.parametrize(("channels", "kernel"), [(192, "flash"), (200, "efficient"), (232, "flash")])
def test_training_on_ada_leaves_out_heads_that_its_shared_memory_cannot_hold(
    channels: int, kernel: str
) -> None:
    with FakeTensorMode(), plan_for(ADA):
        q = torch.empty(1, 1, 32, channels, dtype=BF16, device="cuda", requires_grad=True)
        assert planned_kernel(q, q, q) == kernel
        with torch.no_grad():
            assert planned_kernel(q, q, q) == "flash"


def test_outside_nothing_is_planned_and_other_devices_are_left_alone() -> None:
    q = torch.randn(1, 2, 8, 16)
    assert planned_kernel(q, q, q) is None
    expected = F.scaled_dot_product_attention(q, q, q)
    with plan_for(HOPPER):
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), expected)


def test_autocast_reaches_attention() -> None:
    with FakeTensorMode(), plan_for(AMPERE), observe() as found:
        q = torch.empty(2, 4, 96, 64, device="cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", BF16)
        try:
            assert F.scaled_dot_product_attention(q, q, q).dtype == BF16
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert found[ATTENTION] == {"flash"}
