"""Requirements of an adapter: the checks of `longvis check`, which the tests of this package run, too.

Every check builds the model it needs, and returns a detail for the output or raises `Failed` with the problem
and a remedy.  A check does not run if a check that it depends on failed, so one fault fails one check.  The
checks use a small legal resolution, so they are quick for large variants, too; on the meta device only checks
that need no values run, at any size of the variant.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from longvis_bench.adapters.maps import gradient_fault, maps_fault
from longvis_bench.errors import IllegalSize, LongvisError
from longvis_bench.measure.flops.counter import Count, count_variant
from longvis_bench.measure.iteration import DTYPES
from longvis_bench.measure.validity.checks import TOLERANCE
from longvis_bench.measure.validity.outputs import check_logits, check_shape
from longvis_bench.ops.feature_maps import Backbone, offers_maps, without_head
from longvis_bench.ops.model_tensors import to_dtype
from longvis_bench.registry.card import Growth
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution, resolution_of, scaled, sides
from longvis_bench.sizes.plan import SizePlan
from longvis_bench.text import first_line

SIZES = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
"""Default resolutions, smallest first; the checks use the first that the model takes."""
NUM_CLASSES = 7
BATCH_TOLERANCE = 1e-3
STEEPEST = 4.2
"""Largest accepted exponent of the resolution: attention over all tokens grows with the fourth power."""
LARGEST_COUNTED = 4096
"""Largest resolution for the check of a stated growth; terms of lower order matter less at large ones."""
GROWTH: dict[Growth, tuple[float, float]] = {
    "linear": (0.9, 1.1),
    "n log n": (0.9, 1.2),
    "quadratic": (1.5, 2.05),
}
"""Accepted range of the exponent of the number of tokens, between two such resolutions.

A quadratic model has a linear part, too.  n log n is n^1.09 between 16,384 and 65,536 tokens.
"""


class Failed(Exception):
    """A failed check; the message says what is wrong and what would be right."""


class Result(NamedTuple):
    """The result of one check."""

    name: str
    passed: bool | None
    """Whether the check passed; None if it did not run."""
    detail: str


@dataclass(frozen=True)
class Subject:
    """The model under test, at one resolution."""

    variant: Variant
    resolution: Resolution
    device: Literal["cpu", "meta"] = "cpu"

    @property
    def has_values(self) -> bool:
        """Whether logits have values; on the meta device they have shapes only."""
        return self.device != "meta"

    def model(self, resolution: Resolution | None = None, seed: int = 0) -> nn.Module:
        """A new model; the same seed gives the same weights."""
        torch.manual_seed(seed)
        with torch.device(self.device):
            return self.variant.build(resolution=resolution or self.resolution, num_classes=NUM_CLASSES)

    def backbone(self, resolution: Resolution) -> Backbone:
        """A new model without its head.

        Raises:
            NoMaps: the model offers no maps.
        """
        return without_head(self.model(resolution), self.variant.name)

    def images(self, batch: int, resolution: Resolution | None = None) -> Tensor:
        """Random images (batch, 3, height, width), the same at each call."""
        generator = torch.Generator().manual_seed(1)
        height, width = sides(resolution or self.resolution)
        return torch.randn(batch, 3, height, width, generator=generator).to(self.device)

    def count(self, resolution: Resolution) -> Count:
        """Operation counts at a resolution."""
        return count_variant(self.variant, resolution, NUM_CLASSES)


def check_model(
    variant: Variant, resolution: Resolution | None = None, device: Literal["cpu", "meta"] = "cpu"
) -> list[Result]:
    """Run every check.

    Arguments:
        variant: the model, from the registry.
        resolution: pixels per side; by default the smallest of `SIZES` that the model takes.
        device: device of the build; on meta, checks that compare values do not run.

    Returns:
        One result per check, in the order of `CHECKS`.

    Raises:
        IllegalSize: the model takes none of the resolutions.
    """
    subject = Subject(variant, resolution or smallest_size(variant), device)
    results: list[Result] = []
    missing: set[str] = set()
    for check in CHECKS:
        needs = check.needs if subject.has_values else (_ON_META, *check.needs)
        first = next((name for name in needs if name in missing), None)
        if first is not None:
            result = Result(check.name, None, f"not run: it needs a model that {first}")
        elif check.values and not subject.has_values:
            results.append(Result(check.name, None, "not run: on meta there are no values"))
            continue
        else:
            result = _run(check, subject)
        if not result.passed:
            missing.add(check.name)
        results.append(result)
    return results


def smallest_size(variant: Variant) -> int:
    """The smallest resolution of `SIZES` that the model takes."""
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


def _run(check: Check, subject: Subject) -> Result:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Result(check.name, True, check.run(subject))
    except (Failed, LongvisError) as error:
        return Result(check.name, False, str(error))
    except Exception as error:
        text = first_line(str(error))
        return Result(check.name, False, f"{type(error).__name__}: {text}; {check.advice}.")


def builds_on_meta(subject: Subject) -> str:
    """The model builds on the meta device, which counting needs."""
    with torch.device("meta"):
        model = subject.variant.build(resolution=subject.resolution, num_classes=NUM_CLASSES)
    real = [name for name, tensor in model.state_dict().items() if tensor.device.type != "meta"]
    if real:
        raise Failed(
            f"{real[0]} is made outside the default device; leave out device arguments when building."
        )
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def builds_on_cpu(subject: Subject) -> str:
    """The model builds on the CPU in float32."""
    tensors = subject.model().state_dict()
    empty = [name for name, tensor in tensors.items() if tensor.device.type != "cpu"]
    if empty:
        raise Failed(f"{empty[0]} is not on the CPU; leave out device arguments when building.")
    other = [name for name, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32]
    if other:
        raise Failed(f"{other[0]} is {tensors[other[0]].dtype}; leave out dtype arguments when building.")
    return f"{len(tensors)} tensors"


def gives_logits(subject: Subject) -> str:
    """The output shape is (batch, num_classes) for an input of (batch, 3, R, R)."""
    with torch.no_grad():
        check_shape(subject.model().eval()(subject.images(2)), 2, NUM_CLASSES)
    height, width = sides(subject.resolution)
    return f"(2, 3, {height}, {width}) -> (2, {NUM_CLASSES})"


def gives_finite_logits(subject: Subject) -> str:
    """The logits are free of NaN and infinity."""
    with torch.inference_mode():
        logits = check_logits(subject.model().eval()(subject.images(2)), 2, NUM_CLASSES)
    return f"up to {logits.abs().max().item():.2g}"


def does_not_mix_images(subject: Subject) -> str:
    """An image's logits do not depend on the other images of the batch."""
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
    """Two calls with the same image give the same logits: no dropout, and no state between calls."""
    model, images = subject.model().eval(), subject.images(1)
    with torch.inference_mode():
        difference = _difference(model(images), model(images))
    if difference:
        raise Failed(f"two calls differ by {difference:.1e}; is dropout off in eval mode?")
    return "two calls agree"


def trains(subject: Subject) -> str:
    """Gradients are finite and reach the parameters; the result lists parameters without a gradient."""
    model = subject.model().train()
    loss = model(subject.images(2)).square().mean()
    if loss.requires_grad:
        loss.backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    dead = [name for name, gradient in wanted.items() if gradient is None]
    if len(dead) == len(wanted):
        raise Failed("no gradient reaches any parameter; is something detached?")
    for name, gradient in wanted.items():
        if subject.has_values and gradient is not None and not gradient.isfinite().all():
            raise Failed(f"the gradient of {name} is NaN or infinite; look for log, sqrt or division at 0.")
    return f"{len(dead)} parameters get no gradient: {', '.join(dead)}" if dead else "every parameter"


def gives_maps(subject: Subject) -> str:
    """The maps of `--output features`, where the model offers them, have their strides at two sizes.

    They are finite, an image's do not depend on the batch, every map takes part in training, and no parameter
    is left that only the logits need.
    """
    card = subject.variant.card
    native = card is not None and subject.variant.implementation == card.implementation
    claimed = card.features if card is not None and native else None
    if not offers_maps(subject.model()):
        if claimed:
            raise Failed(f"the card says features = {claimed!r}, and the model has no forward_maps.")
        return "offers none, which is optional"
    for resolution in (subject.resolution, *(_larger(subject) or ())[1:]):
        images = subject.images(2, resolution)
        _require(maps_fault(subject.backbone(resolution).eval(), images, values=subject.has_values))
    backbone = subject.backbone(subject.resolution)
    strides = backbone.strides
    if claimed == "one map" and len(strides) > 1:
        raise Failed(f"the card says one map, and there are {len(strides)}; correct `features`.")
    _require(gradient_fault(subject.model(), backbone, subject.images(2)))
    return f"{len(strides)} at stride {', '.join(map(str, strides))}"


def _require(fault: str | None) -> None:
    if fault is not None:
        raise Failed(fault)


def refuses_illegal_sizes(subject: Subject) -> str:
    """An odd resolution works, or raises IllegalSize with legal resolutions."""
    odd = _next(subject.resolution)
    try:
        subject.variant.plan(odd)
        model = subject.model(odd).eval()
    except IllegalSize as error:
        if not error.legal:
            raise Failed(f"{odd} px is refused without naming legal sizes; name some near it.") from error
        return f"{odd} px: legal are {', '.join(map(str, error.legal))}"
    try:
        with torch.no_grad():
            logits = check_shape(model(subject.images(1, odd)), 1, NUM_CLASSES)
            check_logits(logits if subject.has_values else torch.zeros(1, NUM_CLASSES), 1, NUM_CLASSES)
    except Exception as error:
        raise Failed(
            f"{odd} px is planned as legal and fails ({type(error).__name__}); "
            f"state the rule in the card: [resolution] multiple_of = ..."
        ) from error
    return f"{odd} px works too"


def takes_the_rectangles_it_states(subject: Subject) -> str:
    """Lying and standing rectangles give logits of their own, or are refused where the card states none."""
    if subject.variant.rectangles is None:
        return "squares only, as it states"
    shapes = _oblong(subject)
    if not shapes:
        raise Failed(
            f"it states rectangles, and its plan takes none of {min(sides(subject.resolution))} px by a size "
            "up to 1024 px; correct the plan, or leave `rectangles` out of the card."
        )
    for resolution in shapes:
        try:
            model = subject.model(resolution).eval()
        except IllegalSize as error:
            if subject.variant.card is None:
                return f"squares only: {error}"
            raise Failed(f"its plan takes {resolution} px, and its factory does not: {error}") from error
        with torch.no_grad():
            logits = check_shape(model(subject.images(2, resolution)), 2, NUM_CLASSES)
        if subject.has_values:
            check_logits(logits, 2, NUM_CLASSES)
    return f"{' and '.join(map(str, shapes))} px"


def runs_in_its_dtypes(subject: Subject) -> str:
    """Every dtype of the card gives finite logits close to those of float32."""
    named = subject.variant.card.dtypes if subject.variant.card else ("fp32", "bf16")
    model, images = subject.model().eval(), subject.images(1)
    with torch.no_grad():
        reference = model(images)
        for name in sorted(set(named) - {"fp32"}):
            dtype = DTYPES[name]
            lower = to_dtype(copy.deepcopy(model), dtype)
            logits = check_shape(lower(images.to(dtype)), 1, NUM_CLASSES)
            if not subject.has_values:
                continue
            difference = _difference(check_logits(logits, 1, NUM_CLASSES).float(), reference)
            if difference > 5 * TOLERANCE[dtype]:
                raise Failed(
                    f"{name} logits differ from fp32 by {difference:.0%}; remove it from the card's dtypes."
                )
    return ", ".join(named)


def loads_what_it_saves(subject: Subject) -> str:
    """Saving and loading the state dict gives the same logits."""
    first, images = subject.model().eval(), subject.images(1)
    second = subject.model(seed=99).eval()
    second.load_state_dict(first.state_dict())
    with torch.inference_mode():
        difference = _difference(second(images), first(images))
    if difference:
        raise Failed(
            f"logits differ by {difference:.1e} after loading; is a tensor neither parameter nor buffer?"
        )
    return f"{len(first.state_dict())} tensors"


def is_counted_completely(subject: Subject) -> str:
    """Every operator has a cost formula or is known to need none."""
    count = subject.count(subject.resolution)
    unknown = count.ledger.unknown
    if unknown:
        raise Failed(
            f"operators without a formula: {', '.join(sorted(unknown))}; write them with others, or read its "
            "MACs as lower bounds."
        )
    if not count.macs:
        raise Failed("no multiply-adds were counted; does the forward use its parameters?")
    return f"{count.macs:,} MACs, coverage 100 %"


def costs_more_at_larger_sizes(subject: Subject) -> str:
    """Operations grow with the resolution, at most like full attention, and as the card states."""
    claimed = subject.variant.card.growth if subject.variant.card else None
    pair = _comparable(subject.variant) if claimed else _larger(subject)
    if pair is None:
        return "takes one size only"
    small, large = pair
    exponent = _exponent(float(large) / float(small), _cost(subject, large) / _cost(subject, small))
    if not 0 < exponent < STEEPEST:
        raise Failed(
            f"operations grow as R^{exponent:.1f} from {small} to {large} px; does every pixel reach the "
            "model, and none meet all others more than once?"
        )
    if claimed and not GROWTH[claimed][0] <= exponent / 2 <= GROWTH[claimed][1]:
        raise Failed(
            f"operations grow as n^{exponent / 2:.2f} of n tokens from {small} to {large} px, which is not "
            f"{claimed}; correct `growth` in the card, or find what else is computed."
        )
    claim = f", {claimed} as claimed" if claimed else ""
    return f"R^{exponent:.1f} from {small} to {large} px{claim}"


class Check(NamedTuple):
    """A check with its advice and its dependencies."""

    run: Callable[[Subject], str]
    advice: str
    """Advice for the user if the model raises an exception of its own."""
    needs: tuple[str, ...] = ()
    """Checks that must pass first; otherwise this one does not run."""
    values: bool = False
    """Whether the check compares values, which tensors on the meta device lack."""

    @property
    def name(self) -> str:
        """Name of the check in the output."""
        return self.run.__name__.replace("_", " ")


_ON_META, _ON_CPU, _COUNTED = "builds on meta", "builds on cpu", "is counted completely"
_SHAPE, _FINITE, _SAME = "gives logits", "gives finite logits", "is deterministic in eval"
_NO_VALUES = "leave out .item(), numpy and branches on values, which the meta device does not have"

CHECKS: tuple[Check, ...] = (
    Check(builds_on_meta, _NO_VALUES),
    Check(
        builds_on_cpu,
        "a factory takes resolution, num_classes and in_chans and returns an nn.Module",
        values=True,
    ),
    Check(gives_logits, "forward takes (batch, 3, R, R) at the resolution it was built for", (_ON_CPU,)),
    Check(gives_finite_logits, "forward takes (batch, 3, R, R)", (_SHAPE,), values=True),
    Check(is_deterministic_in_eval, "a second call must work like the first", (_FINITE,), values=True),
    Check(does_not_mix_images, "forward must take any batch", (_SAME,), values=True),
    Check(trains, "forward must be differentiable, with nothing overwritten in place", (_FINITE,)),
    Check(gives_maps, "forward_maps takes what forward takes, and returns a list of maps", (_FINITE,)),
    Check(
        takes_the_rectangles_it_states,
        "a card that states `rectangles` has a factory and a plan that take (height, width)",
        (_FINITE,),
    ),
    Check(refuses_illegal_sizes, "a size it cannot take must raise IllegalSize", (_FINITE,)),
    Check(
        runs_in_its_dtypes,
        "make constants in the input's dtype, or remove it from the card's dtypes",
        (_SAME,),
    ),
    Check(loads_what_it_saves, "every build must have the same names and shapes", (_SAME,), values=True),
    Check(is_counted_completely, _NO_VALUES, (_ON_META, _SHAPE)),
    Check(costs_more_at_larger_sizes, _NO_VALUES, (_COUNTED,)),
)
"""All checks, in the order in which they run and are shown."""


def _cost(subject: Subject, resolution: Resolution) -> int:
    count = subject.count(resolution)
    return count.flops + count.scan_flops


def _larger(subject: Subject) -> tuple[Resolution, Resolution] | None:
    """The size and four, or else two, times its sides where the model takes that."""
    small = subject.resolution
    larger = (scaled(small, factor) for factor in (4, 2))
    return next(((small, large) for large in larger if _plan(subject.variant, large)), None)


def _next(resolution: Resolution) -> Resolution:
    """One pixel more per side; of a rectangle, one row more."""
    if isinstance(resolution, int):
        return resolution + 1
    return resolution_of((resolution.height + 1, resolution.width))


def _oblong(subject: Subject) -> list[Resolution]:
    """A lying and a standing rectangle that the model takes: its size and the next larger one that fits."""
    short = min(sides(subject.resolution))
    for long in (size for size in SIZES if size > short):
        found = [resolution_of(pair) for pair in ((short, long), (long, short))]
        if all(_plan(subject.variant, resolution) for resolution in found):
            return found
    return []


def _comparable(variant: Variant) -> tuple[Resolution, Resolution] | None:
    """The largest size and its half at which the model is the same, with the same windows and segments."""
    large = LARGEST_COUNTED
    while large >= 2 * SIZES[0]:
        plans = [_plan(variant, size) for size in (large // 2, large)]
        if plans[0] and plans[1] and plans[0].arguments == plans[1].arguments:
            return large // 2, large
        large //= 2
    return None


def _plan(variant: Variant, resolution: Resolution) -> SizePlan | None:
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
