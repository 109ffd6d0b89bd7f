"""Validity: planted faults are found, honest models pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.errors import InvalidOutput
from longvis_bench.measure.validity import check_logits, check_validity


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


def test_without_a_reference_nothing_is_claimed(images: Tensor) -> None:
    record = check_validity(Net().eval(), images, 5, skip_reference="no memory")
    assert record.verdict == "not checked"
    assert record.reference == "no memory"
    assert record.reference_error is None


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
