from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longvis_bench.ops import kernel_trace as observed
from longvis_bench.ops.dilated_attention import dilated_attention
from longvis_bench.ops.kernel_trace import observe
from longvis_bench.ops.selective_scan.operator import selective_scan, use_backend
from longvis_bench.registry.registry import Registry

FUSED = ("atlas-n", "fastervit-n", "longvit-n", "mambavision-n", "vit-n")
UNFUSED = ("swin-n",)


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


def profiled(call: Callable[[], object]) -> set[str]:
    """The attention kernel that torch's profiler shows."""
    with torch.profiler.profile() as profile:
        call()
    names = {event.key.removeprefix("aten::") for event in profile.key_averages()}
    return {observed.KERNELS[name] for name in names & set(observed.KERNELS)} or {"math"}


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_grad_shows_the_kernel_that_inference_mode_runs(backend: SDPBackend, dtype: torch.dtype) -> None:
    q = heads().to(dtype)

    def attend() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, q, q)

    with torch.no_grad(), observe() as kernels:
        attend()
    with torch.inference_mode():
        assert kernels == {"attention": profiled(attend)}
    with torch.no_grad():
        assert kernels == {"attention": profiled(attend)}


def test_dilated_attention_is_seen_though_it_calls_kernels_itself() -> None:
    q = torch.randn(1, 8, 2, 4)
    with observe() as kernels:
        dilated_attention(q, q, q, [4, 8], [1, 2])
    assert kernels == {"attention": {"flash"}}


@pytest.mark.parametrize("name", FUSED)
def test_every_family_with_fused_attention_shows_the_profilers_kernel(name: str) -> None:
    model = Registry().find(name).build(resolution=256, num_classes=2).eval()
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad(), observe() as kernels:
        model(images)
    with torch.inference_mode():
        assert kernels["attention"] == profiled(lambda: model(images)) == {"flash"}
    assert ("scan" in kernels) == (name == "mambavision-n")


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", UNFUSED)
def test_attention_that_a_model_multiplies_itself_is_unfused(name: str, train: bool) -> None:
    model = Registry().find(name).build(resolution=256, num_classes=2).train(train)
    half = torch.autocast("cpu", torch.bfloat16, enabled=train)
    with half, torch.set_grad_enabled(train), observe() as kernels:
        model(torch.randn(2, 3, 256, 256))
    assert kernels == {"attention": {"unfused"}}


def test_a_softmax_whose_output_is_never_multiplied_with_a_matrix_is_no_attention() -> None:
    with observe() as kernels:
        weights = heads().softmax(-1) * 2
        weights.sum()
        heads() @ heads().mT
        torch.einsum("bhqc,bhkc->bhqk", heads(), heads()).softmax(-1)
    assert kernels == {}


def test_a_model_without_attention_shows_none() -> None:
    model = Registry().find("convnext-n").build(resolution=256, num_classes=2).eval()
    with torch.no_grad(), observe() as kernels:
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
