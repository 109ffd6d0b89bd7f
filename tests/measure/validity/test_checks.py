"""Validity: planted faults are found, honest models pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.errors import InvalidOutput, Unsupported
from longvis_bench.measure.validity.checks import TOLERANCE, canary, check_validity
from longvis_bench.measure.validity.outputs import Logits, check_logits

Plant = Callable[[str, int], "AbstractContextManager[object]"]


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
    record = check_validity(Net().eval(), images, Logits(5)).record
    assert record.verdict == "ok"
    assert record.reference == "float64, unfused attention"
    assert record.reference_error is not None
    assert record.reference_error < 1e-5


def test_bf16_is_compared_with_fp32(images: Tensor) -> None:
    record = check_validity(Net().eval().bfloat16(), images.bfloat16(), Logits(5)).record
    assert record.verdict == "ok"
    assert record.reference == "float32, unfused attention"


def test_a_planted_wrong_kernel_is_found_by_the_reference(images: Tensor) -> None:
    record = check_validity(WrongInSinglePrecision().eval(), images, Logits(5)).record
    assert record.verdict == "invalid"
    assert record.reference_error is not None
    assert record.batch_error is not None
    assert record.batch_error < TOLERANCE[torch.float32] < record.reference_error


def test_a_model_that_mixes_images_is_found_by_the_batch(images: Tensor) -> None:
    record = check_validity(Mixing().eval(), images, Logits(5)).record
    assert record.verdict == "invalid"
    assert record.reference_error is not None
    assert record.batch_error is not None
    assert record.reference_error < TOLERANCE[torch.float32] < record.batch_error


@pytest.mark.parametrize("skip", [None, "not run: no memory"])
def test_a_single_measured_image_is_compared_in_a_batch_of_two(skip: str | None, images: Tensor) -> None:
    for kind, verdict in (Net, "ok"), (Mixing, "invalid"):
        model = kind().eval()
        record = check_validity(model, images[:1], Logits(5), other=images[1:], skip_reference=skip).record
        assert record.verdict == verdict
        assert record.batch_error is not None
        assert check_validity(model, images[:1], Logits(5), skip_reference=skip).record.batch_error is None


@pytest.mark.parametrize("skip", [None, "not run: no memory"])
def test_a_model_that_gives_nan_is_found(skip: str | None, images: Tensor) -> None:
    model = Net().eval()
    torch.nn.init.constant_(model.head.bias, torch.nan)
    with pytest.raises(InvalidOutput, match="100% of the logits are NaN"):
        check_validity(model, images, Logits(5), skip_reference=skip)


def test_logits_that_were_measured_must_be_those_of_the_operators_seen(images: Tensor) -> None:
    """A compiled model's kernels cannot be sampled; its logits are held against those that were."""
    model = Net().eval()
    with torch.inference_mode():
        logits = model(images)
    for measured, verdict in (logits, "ok"), (logits + 0.5, "invalid"):
        checked = check_validity(model, images, Logits(5), measured=measured, skip_reference="not run")
        assert checked.record.verdict == verdict


class NotFiniteInDouble(Net):
    """The reference itself overflows."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits * float("nan") if x.dtype == torch.float64 else logits


def test_a_reference_that_is_not_finite_proves_nothing(images: Tensor) -> None:
    record = check_validity(NotFiniteInDouble().eval(), images, Logits(5)).record
    assert (record.verdict, record.reference_error) == ("not checked", None)
    assert "not finite" in record.reference


class Sorting(nn.Module):
    """Nothing that can be sampled."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sort().values[:, :5]


def test_without_a_reference_nothing_is_claimed(images: Tensor) -> None:
    record = check_validity(Sorting().eval(), images, Logits(5), skip_reference="not run: no memory").record
    assert record.verdict == "not checked"
    assert record.reference == "no operator can be sampled; whole model not run: no memory"
    assert record.reference_error is None


def test_without_a_reference_the_operators_are_sampled(images: Tensor) -> None:
    record = check_validity(Net().eval(), images, Logits(5), skip_reference="not run: no memory").record
    assert record.verdict == "ok"
    assert record.reference == (
        "float64 at sampled rows and windows of 1 convolutions, 3 matrix products, 4 other operators; "
        "whole model not run: no memory"
    )
    assert record.reference_error is not None
    assert 0 < record.reference_error < 1e-5


class Squashing(Net):
    """An elementwise operator on the whole image."""

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(x.sigmoid())


def test_an_operator_wrong_only_past_an_index_is_found(images: Tensor, plant: Plant) -> None:
    """Past the limit, which is brought down so that no gigabytes are needed, an index starts again at 0."""
    model = Squashing().eval()
    fine = check_validity(model, images, Logits(5), sample=True, limit=4000)
    assert fine.record.verdict == "ok"
    assert ", 2 past 2^31 elements; whole model float64" in fine.record.reference
    with plant("aten::sigmoid", 4000):
        blind = check_validity(model, images, Logits(5))  # the fault is in the reference too
        wrong = check_validity(model, images, Logits(5), sample=True, limit=4000)
    assert (blind.record.verdict, wrong.record.verdict) == ("ok", "invalid")
    with pytest.raises(InvalidOutput, match=r"logits differ by .* from float64 at sampled rows"):
        wrong.require("late")


class Sorts(Net):
    """An operator that cannot be sampled, on the whole image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sort().values)


def test_gigantic_tensors_that_nobody_can_look_at_make_the_cell_unsupported(images: Tensor) -> None:
    model = Sorts().eval()
    checked = check_validity(model, images, Logits(5), sample=True, limit=images.numel())
    assert checked.record.verdict == "not checked"
    assert checked.record.reference.endswith("not checked past 2^31 elements: aten::sort (2, 3, 32, 32)")
    with pytest.raises(
        Unsupported, match=r"2\^31 elements.*: aten::sort \(2, 3, 32, 32\); try a smaller batch"
    ):
        checked.require("sorts")
    check_validity(model, images, Logits(5), sample=True, limit=2 * images.numel()).require("sorts")


def test_gigantic_tensors_of_a_model_that_cannot_be_watched_make_the_cell_unsupported(images: Tensor) -> None:
    class Shy(Net):
        def forward(self, x: Tensor) -> Tensor:
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise RuntimeError("not here")
            return super().forward(x)

    checked = check_validity(Shy().eval(), images, Logits(5), sample=True)
    assert checked.unchecked == ("all of the model (operators cannot be sampled: not here)",)
    assert check_validity(Shy().eval(), images, Logits(5)).record.verdict == "ok"


def test_a_training_step_has_a_canary(images: Tensor, plant: Plant) -> None:
    model = Net()

    def step() -> None:
        model(images).square().mean().backward()

    with canary(torch.float32, limit=10**6):
        step()
    with pytest.raises(Unsupported, match="convolution_backward"), canary(torch.float32, limit=4000):
        step()
    wrong = pytest.raises(InvalidOutput, match=r"aten::sigmoid is wrong by .* past 2\^31 elements")
    with wrong, plant("aten::sigmoid", 4000), canary(torch.float32, limit=4000):
        images.sigmoid()


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
