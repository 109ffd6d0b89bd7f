from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from longvis_bench.ops import dilated_attention as da
from longvis_bench.ops.dilated_attention import (
    Branch,
    attend,
    attend_backward,
    dilated_attention,
    kernel_for,
    reference,
)

Case = tuple[int, int, list[int], list[int]]
"""Tokens, heads, segment lengths, dilation ratios."""
CASES: dict[str, Case] = {
    "fills its segments": (16, 4, [4, 8, 16], [1, 2, 4]),
    "segments past the end": (8, 4, [4, 64, 256], [1, 2, 4]),
    "ragged tail": (13, 4, [4, 8], [1, 2]),
    "ratio does not divide the segment": (18, 4, [6, 9], [4, 2]),
    "ratio does not divide the heads": (16, 3, [4, 8, 16], [1, 2, 4]),
    "more residues than heads": (16, 2, [8, 16], [1, 8]),
    "some tokens in no branch": (12, 4, [4, 12], [2, 4]),
    "a padded branch, then whole ones": (12, 2, [5, 4, 6], [1, 1, 2]),
    "one head, ragged": (11, 1, [3, 5], [1, 3]),
    "several segments that their ratio does not divide": (30, 4, [7, 30, 11], [3, 1, 5]),
    "a padded query that sees nothing but itself": (14, 4, [3, 7], [4, 2]),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def random_qkv(tokens: int, heads: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens * 10 + heads)
    q, k, v = (torch.randn(2, tokens, heads, 5, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v


def gradients(
    function: Callable[..., Tensor], qkv: Sequence[Tensor], *arguments: list[int], **options: bool
) -> list[Tensor]:
    out = function(*qkv, *arguments, **options)
    weights = torch.linspace(-1, 2, out.numel(), device=out.device).to(out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), qkv)]


@cases
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("differentiable_mixing", [False, True])
def test_output_and_gradients_equal_the_reference(
    case: Case, mask_padding: bool, differentiable_mixing: bool
) -> None:
    tokens, heads, segments, ratios = case
    options = {"mask_padding": mask_padding, "differentiable_mixing": differentiable_mixing}
    qkv = random_qkv(tokens, heads)
    expected = gradients(reference, qkv, segments, ratios, **options)
    actual = gradients(dilated_attention, qkv, segments, ratios, **options)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def random_case(seed: int) -> Case:
    draw = Random(seed)
    tokens, branches = draw.randint(2, 26), range(draw.randint(1, 4))
    segments = [draw.randint(1, tokens + 3) for _ in branches]
    return tokens, draw.randint(1, 6), segments, [draw.randint(1, 7) for _ in branches]


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_equal_the_reference(seed: int, mask_padding: bool) -> None:
    tokens, heads, segments, ratios = random_case(seed)
    qkv = random_qkv(tokens, heads)
    options = {"mask_padding": mask_padding, "differentiable_mixing": seed % 2 == 1}
    expected = gradients(reference, qkv, segments, ratios, **options)
    actual = gradients(dilated_attention, qkv, segments, ratios, **options)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_outputs_land_where_padding_moves_them() -> None:
    """Two segments of 4 with ratio 3 are joined as if they were of 6; the last output falls off the end."""
    value = torch.arange(1.0, 9.0).view(1, 8, 1, 1)
    same = torch.zeros_like(value)
    moved = dilated_attention(same, same, value, [4], [3])
    assert moved.flatten().tolist() == [2.5, 0, 0, 2.5, 0, 0, 6.5, 0]
    in_place = dilated_attention(same, same, value, [4], [3], mask_padding=True)
    assert in_place.flatten().tolist() == [2.5, 0, 0, 2.5, 6.5, 0, 0, 6.5]


@cases
def test_padding_matters_only_where_there_is_some(case: Case) -> None:
    tokens, heads, segments, ratios = case
    qkv = random_qkv(tokens, heads)
    padded = any(
        Branch.of(tokens, heads, s, r).is_padded(tokens) for s, r in zip(segments, ratios, strict=True)
    )
    plain = dilated_attention(*qkv, segments, ratios)
    masked = dilated_attention(*qkv, segments, ratios, mask_padding=True)
    assert torch.allclose(plain, masked) is not padded


def test_one_branch_that_spans_all_is_ordinary_attention() -> None:
    qkv = random_qkv(10, 3)
    q, k, v = (t.transpose(1, 2) for t in qkv)
    ordinary = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(dilated_attention(*qkv, [10], [1]), ordinary)


def test_two_equal_branches_are_one() -> None:
    qkv = random_qkv(12, 2)
    once = dilated_attention(*qkv, [4], [1])
    torch.testing.assert_close(dilated_attention(*qkv, [4, 4], [1, 1]), once)


@pytest.mark.parametrize("ratio", [4, 3], ids=["whole segments", "outputs that fall off the end"])
def test_large_logits_stay_finite(ratio: int) -> None:
    q, k, v = random_qkv(16, 4, torch.float32)
    for t in gradients(dilated_attention, [q * 1e3, k * 1e3, v], [4, 16], [ratio, 4]):
        assert t.isfinite().all()


def test_float32_is_near_float64() -> None:
    double = random_qkv(64, 4)
    single = [t.detach().float().requires_grad_() for t in double]
    exact = gradients(dilated_attention, double, [16, 32, 64], [1, 2, 4])
    for ours, theirs in zip(
        gradients(dilated_attention, single, [16, 32, 64], [1, 2, 4]), exact, strict=True
    ):
        assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


@pytest.mark.parametrize("with_bias", [False, True])
def test_plain_attention_equals_the_fused_one(monkeypatch: pytest.MonkeyPatch, with_bias: bool) -> None:
    """Devices without a fused kernel that tells its denominators take plain matrix products."""
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (6, 7, 7))
    masked = torch.zeros(2, 3, 1, 7, dtype=torch.float64)
    masked[..., 5:] = -torch.inf
    bias = masked if with_bias else None
    grad = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    fused = attend(q, k, v, bias)
    fused_gradients = attend_backward(grad, q, k, v, *fused, bias)
    monkeypatch.setattr(da, "kernel_for", lambda *_: "math")
    plain = attend(q, k, v, bias)
    for ours, theirs in zip(
        (*plain, *attend_backward(grad, q, k, v, *plain, bias)), (*fused, *fused_gradients), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_runs_on_meta() -> None:
    q, k, v = (t.detach().to("meta").requires_grad_() for t in random_qkv(13, 4))
    out = dilated_attention(q, k, v, [4, 8], [1, 2])
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert out.shape == (2, 13, 4, 5)
    assert q.grad is not None


def test_lists_of_unlike_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        dilated_attention(*random_qkv(8, 2), [4, 8], [1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("dtype", "kernel", "tolerance"),
    [(torch.bfloat16, "flash", 3e-2), (torch.float32, "efficient", 1e-4)],
    ids=str,
)
@pytest.mark.parametrize("differentiable_mixing", [False, True])
def test_kernels_of_a_gpu(
    dtype: torch.dtype, kernel: str, tolerance: float, differentiable_mixing: bool
) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 40, 4, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    ours = [t.detach().cuda().to(dtype).requires_grad_() for t in exact]
    assert da.kernel_for(*(t.transpose(1, 2) for t in ours)) == kernel
    arguments, options = ([8, 16, 40], [1, 2, 4]), {"differentiable_mixing": differentiable_mixing}
    expected = gradients(reference, exact, *arguments, **options)
    for actual, wanted in zip(
        gradients(dilated_attention, ours, *arguments, **options), expected, strict=True
    ):
        assert (actual.cpu().double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize(
    ("channels", "kernel"), [(64, "flash"), (24, "flash"), (20, "efficient"), (12, "efficient")]
)
def test_flash_takes_only_what_its_operator_takes(
    channels: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`can_use_flash_attention` says yes to any head size, because torch's own function pads it."""
    cuda = torch.backends.cuda
    monkeypatch.setattr(cuda, "SDPAParams", lambda *args: args)
    monkeypatch.setattr(cuda, "can_use_flash_attention", lambda params: True)
    monkeypatch.setattr(cuda, "can_use_efficient_attention", lambda params: True)
    query: Any = SimpleNamespace(device=torch.device("cuda"), shape=(1, 2, 16, channels))
    assert kernel_for(query, query, query) == kernel
