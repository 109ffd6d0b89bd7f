"""What an adapter must do: the checks of `longvis check`, for the author of a new one and for our own tests.

Every check builds what it needs and either returns a detail worth showing or raises `Failed` with what is
wrong and what to change.  They run at a small legal size, so that a check of a large variant stays short.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longvis_bench.cards import Growth
from longvis_bench.errors import IllegalSize, LongvisError
from longvis_bench.measure.flops import Count, count_variant
from longvis_bench.measure.iteration import DTYPES
from longvis_bench.measure.validity import TOLERANCE, check_logits
from longvis_bench.registry import Variant
from longvis_bench.sizes import SizePlan

SIZES = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
"""Sizes tried, smallest first, where none is asked for."""
NUM_CLASSES = 7
BATCH_TOLERANCE = 1e-3
STEEPEST = 4.2
"""Attention over all tokens grows with the fourth power of the resolution; nothing should grow faster."""
LARGEST_COUNTED = 4096
"""Up to here a claimed growth is checked: the larger, the less do terms of lower order count."""
GROWTH: dict[Growth, tuple[float, float]] = {
    "linear": (0.9, 1.1),
    "n log n": (0.9, 1.2),
    "quadratic": (1.5, 2.05),
}
"""Accepted exponents of the number of tokens between two such sizes.

A quadratic model has a linear part too.  n log n is n^1.09 between 16,384 and 65,536 tokens.
"""


class Failed(Exception):
    """A check that did not hold: one sentence with what would be right."""


class Result(NamedTuple):
    """What one check gave."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Subject:
    """The model under check, at one size."""

    variant: Variant
    resolution: int

    def model(self) -> nn.Module:
        """A fresh model on the CPU, the same weights each time."""
        torch.manual_seed(0)
        return self.variant.build(resolution=self.resolution, num_classes=NUM_CLASSES)

    def images(self, batch: int) -> Tensor:
        """Random images (batch, 3, resolution, resolution), the same each time."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, 3, self.resolution, self.resolution, generator=generator)

    def count(self, resolution: int) -> Count:
        """Operations at a size."""
        return count_variant(self.variant, resolution, NUM_CLASSES)


def check_model(variant: Variant, resolution: int | None = None) -> list[Result]:
    """Run every check.

    Arguments:
        variant: from the registry.
        resolution: pixels per side; by default the smallest of `SIZES` it takes.

    Raises:
        IllegalSize: the model takes none of the sizes.
    """
    subject = Subject(variant, resolution or smallest_size(variant))
    return [_run(check, subject) for check in CHECKS]


def smallest_size(variant: Variant) -> int:
    """The smallest of `SIZES` that the model takes."""
    refusal: IllegalSize | None = None
    for size in SIZES:
        try:
            variant.plan(size)
        except IllegalSize as error:
            refusal = error
        else:
            return size
    assert refusal is not None
    raise refusal


def _run(check: Callable[[Subject], str], subject: Subject) -> Result:
    name = check.__name__.replace("_", " ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Result(name, True, check(subject))
    except (Failed, LongvisError) as error:
        return Result(name, False, str(error))
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        return Result(name, False, f"{type(error).__name__}: {text}")


def builds_on_meta(subject: Subject) -> str:
    """Counting needs a model without memory."""
    with torch.device("meta"):
        model = subject.variant.build(resolution=subject.resolution, num_classes=NUM_CLASSES)
    real = [name for name, tensor in model.state_dict().items() if tensor.device.type != "meta"]
    if real:
        raise Failed(
            f"{real[0]} is made outside the default device; leave out device arguments when building."
        )
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def gives_finite_logits(subject: Subject) -> str:
    """(batch, 3, R, R) -> (batch, num_classes), without NaN."""
    with torch.inference_mode():
        logits = subject.model().eval()(subject.images(2))
    check_logits(logits, 2, NUM_CLASSES)
    return f"(2, 3, {subject.resolution}, {subject.resolution}) -> (2, {NUM_CLASSES})"


def does_not_mix_images(subject: Subject) -> str:
    """An image's logits do not depend on what else is in the batch."""
    model, images = subject.model().eval(), subject.images(2)
    with torch.inference_mode():
        difference = _difference(model(images[:1]), model(images)[:1])
    if difference > BATCH_TOLERANCE:
        raise Failed(
            f"an image's logits change by {difference:.1e} in a batch; look for reshapes that mix the batch "
            f"and for batch statistics in eval mode."
        )
    return f"difference {difference:.0e}"


def is_deterministic_in_eval(subject: Subject) -> str:
    """The same image twice gives the same logits: no dropout, no state kept between calls."""
    model, images = subject.model().eval(), subject.images(1)
    with torch.inference_mode():
        difference = _difference(model(images), model(images))
    if difference:
        raise Failed(f"two calls differ by {difference:.1e}; is dropout off in eval mode?")
    return "two calls agree"


def trains(subject: Subject) -> str:
    """Gradients are finite and reach the parameters; those they do not reach are named."""
    model = subject.model().train()
    model(subject.images(2)).square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    broken = [
        name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    if broken:
        raise Failed(f"the gradient of {broken[0]} is NaN or infinite.")
    if len(dead) == len(list(model.parameters())):
        raise Failed("no gradient reaches any parameter; is something detached?")
    return f"{len(dead)} parameters get no gradient: {', '.join(dead[:3])}" if dead else "every parameter"


def refuses_illegal_sizes(subject: Subject) -> str:
    """A size it cannot take is refused with legal ones named, or does work."""
    odd = subject.resolution + 1
    try:
        subject.variant.plan(odd)
        model = subject.variant.build(resolution=odd, num_classes=NUM_CLASSES).eval()
    except IllegalSize as error:
        if not error.legal:
            raise Failed(f"{odd} px is refused without naming legal sizes.") from error
        return f"{odd} px: legal are {', '.join(map(str, error.legal))}"
    try:
        with torch.inference_mode():
            check_logits(model(torch.zeros(1, 3, odd, odd)), 1, NUM_CLASSES)
    except Exception as error:
        raise Failed(
            f"{odd} px is planned as legal and fails ({type(error).__name__}); "
            f"state the rule in the card: [resolution] multiple_of = ..."
        ) from error
    return f"{odd} px works too"


def runs_in_its_dtypes(subject: Subject) -> str:
    """Every dtype the card names gives finite logits near those of float32."""
    named = subject.variant.card.dtypes if subject.variant.card else ("fp32", "bf16")
    model, images = subject.model().eval(), subject.images(1)
    with torch.inference_mode():
        reference = model(images)
        for name in sorted(set(named) - {"fp32"}):
            dtype = DTYPES[name]
            lower = copy.deepcopy(model).to(dtype)
            difference = _difference(check_logits(lower(images.to(dtype)), 1, NUM_CLASSES).float(), reference)
            if difference > 5 * TOLERANCE[dtype]:
                raise Failed(
                    f"{name} logits differ from fp32 by {difference:.0%}; remove it from the card's dtypes."
                )
    return ", ".join(named)


def loads_what_it_saves(subject: Subject) -> str:
    """A state dict round trip gives the same logits."""
    first, images = subject.model().eval(), subject.images(1)
    torch.manual_seed(99)
    second = subject.variant.build(resolution=subject.resolution, num_classes=NUM_CLASSES).eval()
    second.load_state_dict(first.state_dict())
    with torch.inference_mode():
        difference = _difference(second(images), first(images))
    if difference:
        raise Failed(
            f"logits differ by {difference:.1e} after loading; is a tensor neither parameter nor buffer?"
        )
    return f"{len(first.state_dict())} tensors"


def is_counted_completely(subject: Subject) -> str:
    """Every operator has a formula or is known to need none."""
    count = subject.count(subject.resolution)
    unknown = count.ledger.unknown
    if unknown:
        raise Failed(f"operators without a formula: {', '.join(sorted(unknown))}.")
    if not count.macs:
        raise Failed("no multiply-adds were counted; does the forward use its parameters?")
    return f"{count.macs:,} MACs, coverage 100 %"


def costs_more_at_larger_sizes(subject: Subject) -> str:
    """Operations grow with the resolution, not faster than full attention, and as the card claims."""
    claimed = subject.variant.card.growth if subject.variant.card else None
    pair = _comparable(subject.variant) if claimed else _larger(subject)
    if pair is None:
        return "takes one size only"
    small, large = pair
    exponent = _exponent(large / small, _cost(subject, large) / _cost(subject, small))
    if not 0 < exponent < STEEPEST:
        raise Failed(f"operations grow as R^{exponent:.1f} from {small} to {large} px.")
    if claimed and not GROWTH[claimed][0] <= exponent / 2 <= GROWTH[claimed][1]:
        raise Failed(
            f"operations grow as n^{exponent / 2:.2f} of n tokens from {small} to {large} px, which is not "
            f"{claimed}; correct `growth` in the card, or find what else is computed."
        )
    claim = f", {claimed} as claimed" if claimed else ""
    return f"R^{exponent:.1f} from {small} to {large} px{claim}"


CHECKS: tuple[Callable[[Subject], str], ...] = (
    builds_on_meta,
    gives_finite_logits,
    does_not_mix_images,
    is_deterministic_in_eval,
    trains,
    refuses_illegal_sizes,
    runs_in_its_dtypes,
    loads_what_it_saves,
    is_counted_completely,
    costs_more_at_larger_sizes,
)


def _cost(subject: Subject, resolution: int) -> int:
    count = subject.count(resolution)
    return count.flops + count.scan_flops


def _larger(subject: Subject) -> tuple[int, int] | None:
    """The size and four, or else two, times it where the model takes that."""
    small = subject.resolution
    return next(((small, k * small) for k in (4, 2) if _plan(subject.variant, k * small)), None)


def _comparable(variant: Variant) -> tuple[int, int] | None:
    """The largest size and its half at which the model is the same, with the same windows and segments."""
    large = LARGEST_COUNTED
    while large >= 2 * SIZES[0]:
        plans = [_plan(variant, size) for size in (large // 2, large)]
        if plans[0] and plans[1] and plans[0].arguments == plans[1].arguments:
            return large // 2, large
        large //= 2
    return None


def _plan(variant: Variant, resolution: int) -> SizePlan | None:
    try:
        return variant.plan(resolution)
    except IllegalSize:
        return None


def _exponent(sizes: float, values: float) -> float:
    from math import log

    return log(values) / log(sizes)


def _difference(value: Tensor, reference: Tensor) -> float:
    """Max |a - b| / max |b|."""
    scale = reference.abs().max().clamp_min(1e-12)
    return float((value - reference).abs().max() / scale)
