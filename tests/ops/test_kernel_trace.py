import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longvis_bench.ops import kernel_trace as observed
from longvis_bench.ops.dilated_attention import dilated_attention
from longvis_bench.ops.kernel_trace import observe, observing_once
from longvis_bench.ops.selective_scan.operator import selective_scan, use_backend
from longvis_bench.registry.registry import Registry

NANO = ("atlas-n", "longvit-n", "mambavision-n", "vit-n")


def heads() -> torch.Tensor:
    return torch.randn(1, 2, 8, 4)


def test_the_fused_kernel_is_seen() -> None:
    with observe() as kernels:
        F.scaled_dot_product_attention(heads(), heads(), heads())
    assert kernels == {"attention": {"flash"}}


def test_products_and_a_softmax_are_called_math() -> None:
    with observe() as kernels, sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(heads(), heads(), heads())
    assert kernels == {"attention": {"math"}}


def test_every_kernel_of_a_model_is_named() -> None:
    with observe() as kernels:
        F.scaled_dot_product_attention(heads(), heads(), heads())
        with sdpa_kernel(SDPBackend.MATH):
            F.scaled_dot_product_attention(heads(), heads(), heads())
    assert kernels == {"attention": {"flash", "math"}}


def test_what_runs_outside_is_not_heard() -> None:
    with observe() as kernels:
        pass
    F.scaled_dot_product_attention(heads(), heads(), heads())
    observed.note(observed.SCAN, "numba")
    assert kernels == {}


def test_kernels_of_cuda_are_told_apart() -> None:
    """On the meta device, where their operators run without a GPU."""
    q = torch.empty(1, 2, 8, 16, device="meta", dtype=torch.float16)
    with observe() as kernels:
        torch.ops.aten._scaled_dot_product_flash_attention(q, q, q)
        torch.ops.aten._scaled_dot_product_efficient_attention(q, q, q, None, False)
        torch.ops.aten._scaled_dot_product_cudnn_attention(q, q, q, None, False)
    assert kernels == {"attention": {"flash", "efficient", "cudnn"}}


def test_the_scan_says_what_ran() -> None:
    inputs = [-torch.ones(s) for s in ((1, 2, 3), (1, 2, 3), (2, 4), (1, 4, 3), (1, 4, 3), (2,), (2,))]
    with observe() as kernels, use_backend("torch"):
        selective_scan(*inputs)
    assert kernels == {"scan": {"torch"}}


def test_only_the_first_call_is_observed() -> None:
    backends = iter([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])

    def call() -> torch.Tensor:
        with sdpa_kernel(next(backends)):
            return F.scaled_dot_product_attention(heads(), heads(), heads())

    run, kernels = observing_once(call)
    assert kernels == {}
    first, second = run(), run()
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert first.shape == second.shape
    assert kernels == {"attention": {"flash"}}


def test_dilated_attention_is_seen_though_it_calls_kernels_itself() -> None:
    q = torch.randn(1, 8, 2, 4)
    with observe() as kernels:
        dilated_attention(q, q, q, [4, 8], [1, 2])
    assert kernels == {"attention": {"flash"}}


@pytest.mark.parametrize("name", NANO)
def test_every_family_with_attention_shows_it(name: str) -> None:
    model = Registry().find(name).build(resolution=256, num_classes=2).eval()
    with torch.inference_mode(), observe() as kernels:
        model(torch.randn(1, 3, 256, 256))
    assert kernels["attention"] <= {"flash", "math"}
    assert kernels["attention"]
    assert ("scan" in kernels) == (name == "mambavision-n")


def test_attention_that_a_model_multiplies_itself_has_no_kernel() -> None:
    model = Registry().find("swin-n").build(resolution=256, num_classes=2).eval()
    with torch.inference_mode(), observe() as kernels:
        model(torch.randn(1, 3, 256, 256))
    assert kernels == {}


def test_a_compiled_model_is_seen_too() -> None:
    def attend(q: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, q, q)

    compiled = torch.compile(attend, backend="eager")
    compiled(heads())
    with observe() as kernels:
        compiled(heads())
    assert kernels == {"attention": {"flash"}}
