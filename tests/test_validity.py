"""Validity: planted faults are found, honest models pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from longvis_bench.errors import InvalidOutput
from longvis_bench.measure import sampling
from longvis_bench.measure.sampling import sample_kernels
from longvis_bench.measure.validity import TOLERANCE, check_logits, check_validity
from longvis_bench.registry import Registry


class Net(nn.Module):
    """A small honest model with attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.head = nn.Linear(16, 5)

    def tokens(self, x: Tensor) -> Tensor:
        return self.stem(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        t = self.tokens(x)
        mixed = nn.functional.scaled_dot_product_attention(t, t, t)
        return self.head(mixed.mean(dim=1))  # type: ignore[no-any-return]


class WrongInSinglePrecision(Net):
    """A planted kernel fault: float32 gives other logits than float64."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 0.5 if x.dtype == torch.float32 else logits


class Mixing(Net):
    """Images of a batch reach each other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + x.mean(dim=0, keepdim=True))


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 32, 32)


def test_an_honest_model_is_ok(images: Tensor) -> None:
    record = check_validity(Net().eval(), images, 5)
    assert record.verdict == "ok"
    assert record.reference == "float64, unfused attention"
    assert record.reference_error is not None
    assert record.reference_error < 1e-5


def test_bf16_is_compared_with_fp32(images: Tensor) -> None:
    record = check_validity(Net().eval().bfloat16(), images.bfloat16(), 5)
    assert record.verdict == "ok"
    assert record.reference == "float32, unfused attention"


@pytest.mark.parametrize("wrong", [WrongInSinglePrecision, Mixing])
def test_a_planted_fault_is_found(wrong: type[Net], images: Tensor) -> None:
    assert check_validity(wrong().eval(), images, 5).verdict == "invalid"


class NotFiniteInDouble(Net):
    """The reference itself overflows."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits * float("nan") if x.dtype == torch.float64 else logits


def test_a_reference_that_is_not_finite_proves_nothing(images: Tensor) -> None:
    record = check_validity(NotFiniteInDouble().eval(), images, 5)
    assert (record.verdict, record.reference_error) == ("not checked", None)
    assert "not finite" in record.reference


class Pooling(nn.Module):
    """Nothing that can be sampled."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)).unsqueeze(1).expand(-1, 5)


def test_without_a_reference_nothing_is_claimed(images: Tensor) -> None:
    record = check_validity(Pooling().eval(), images, 5, skip_reference="not run: no memory")
    assert record.verdict == "not checked"
    assert record.reference == "whole model not run: no memory; it has no kernels that can be sampled"
    assert record.reference_error is None


def test_without_a_reference_the_kernels_are_sampled(images: Tensor) -> None:
    record = check_validity(Net().eval(), images, 5, skip_reference="not run: no memory")
    assert record.verdict == "ok"
    assert record.reference == (
        "float64 at sampled rows and windows of 1 convolutions, 3 matrix products; "
        "whole model not run: no memory"
    )
    assert record.reference_error is not None
    assert 0 < record.reference_error < 1e-5


class Wrong(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A planted fault: an operator's last elements, from a flat index on, are those at the start."""

    def __init__(self, name: str, start: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.start = name, start

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket._qualified_op_name == self.name:
            out = result[0] if isinstance(result, tuple) else result
            flat = out.contiguous().flatten()
            past = flat.numel() - self.start
            flat[self.start :] = flat[:past].clone()
            out.copy_(flat.view(out.shape))
        return result


@pytest.mark.parametrize(
    ("name", "operator", "start"),
    [
        ("vit-n", "aten::convolution", 4000),
        ("vit-n", "aten::addmm", 4000),
        ("vit-n", "aten::_scaled_dot_product_flash_attention_for_cpu", 4000),
        ("swin-n", "aten::bmm", 100),
        ("mambavision-n", "longvis::selective_scan", 100),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_wrong_kernel_is_found_by_samples(
    name: str, operator: str, start: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = Registry().find(name).build(resolution=128, num_classes=5).eval().to(dtype)
    images = torch.randn(1, 3, 128, 128, dtype=dtype)
    higher = torch.float64 if dtype == torch.float32 else torch.float32
    assert sample_kernels(model, images, higher).error < TOLERANCE[dtype]
    with Wrong(operator, start):
        samples = sample_kernels(model, images, higher)
    assert samples.error > TOLERANCE[dtype]
    assert samples.worst == operator


def test_indices_that_overflow_are_found(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    """The limit is brought down, so that no gigabytes are needed: past it, an index starts again at 0."""
    monkeypatch.setattr(sampling, "INT32_ELEMENTS", 200)
    model = Net().eval()
    fine = check_validity(model, images, 5, skip_reference="not run")
    assert fine.verdict == "not checked"  # other operators than kernels see tensors of that size too
    assert "3 past 2^31 elements" in fine.reference
    with Wrong("aten::convolution", 200):
        record = check_validity(model, images, 5, skip_reference="not run")
    assert record.verdict == "invalid"


def test_huge_tensors_of_other_operators_are_not_called_checked(
    monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    monkeypatch.setattr(sampling, "INT32_ELEMENTS", 2000)

    class Elementwise(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sigmoid())

    record = check_validity(Elementwise().eval(), images, 5, sample=True)
    assert record.verdict == "not checked"
    assert "not checked: tensors past 2^31 elements in aten::sigmoid" in record.reference


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1, stride=2, groups=2),
        nn.Conv2d(6, 6, 3, dilation=3, padding="same", groups=6),
        nn.Conv2d(6, 8, (1, 5), bias=False),
        nn.Conv1d(6, 8, 4, padding=2),
        nn.Conv3d(6, 8, 2),
    ],
)
def test_samples_of_convolutions_are_right(layer: nn.Module) -> None:
    dims = 2 if isinstance(layer, nn.Conv2d) else 1 if isinstance(layer, nn.Conv1d) else 3
    samples = sample_kernels(layer, torch.randn(2, 6, *[9] * dims), torch.float64)
    assert samples.kinds == {"convolutions": 1}
    assert 0 < samples.error < 1e-5


def test_samples_of_masked_and_grouped_attention_are_right() -> None:
    q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.randn(2, 1, 7, 7)

    class Attentions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True, is_causal=True)
            return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask, scale=0.3)

    samples = sample_kernels(Attentions(), q, torch.float64)
    assert sum(samples.kinds.values()) >= 2
    assert 0 < samples.error < 1e-5


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        (torch.zeros(2, 4), "not \\(2, 5\\)"),
        (torch.full((2, 5), torch.nan), "100% of the logits are NaN"),
        ({"logit": torch.zeros(2, 5)}, "returned dict"),
    ],
)
def test_logits_that_are_none(logits: object, sentence: str) -> None:
    with pytest.raises(InvalidOutput, match=sentence):
        check_logits(logits, 2, 5)
