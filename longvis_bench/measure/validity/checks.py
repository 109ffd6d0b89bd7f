"""Validity: whether a cell's logits, or the maps of its backbone, are correct.

Three checks: the logits are finite and of the declared shape; an image's logits are the same alone and in a
batch; and they equal those of a reference, which has the same weights in higher precision (float32; float64
for float32) and unfused attention.  Where the reference cannot run, the model's operators are recomputed at
sampled rows and windows instead (`operator_sampling.py`), and the record states that.  Where this is not
possible either, the verdict is `not checked`, with the reason, and never `ok`.  Maps are checked likewise,
each against its own size, and the worst one counts.

A fourth check always runs where a tensor may have more than 2^31 elements: whether 32-bit indices overflow
there.  A cell that cannot be checked for this is unsupported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from longvis_bench.errors import InvalidOutput, Unsupported
from longvis_bench.measure.numerics import rounds_to_tf32
from longvis_bench.measure.validity.operator_sampling import Samples, sample_operators
from longvis_bench.measure.validity.outputs import Form, Logits, Outputs, check_outputs, difference, first
from longvis_bench.measure.validity.sample_indices import INT32_ELEMENTS
from longvis_bench.ops.model_tensors import to_dtype
from longvis_bench.records import ValidityRecord, Verdict
from longvis_bench.text import message_of

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""Largest accepted difference of logits, as a share of the reference's largest logit, by dtype."""
TF32_TOLERANCE = TOLERANCE[torch.float16]
"""TF32 rounds inputs to a mantissa of 10 bits, as float16 has."""


NOT_FINITE = "the reference itself is not finite"


@dataclass(frozen=True)
class Checked:
    """The result of the validity checks."""

    record: ValidityRecord
    unchecked: tuple[str, ...] = ()
    """Operators with a tensor past 2^31 elements whose result was not checked, with that tensor's shape."""
    word: str = Logits.word
    """What was checked."""

    def require(self, model: str) -> None:
        """Raise for a result that is wrong, or that could not be checked past 2^31 elements.

        Raises:
            InvalidOutput: the result is wrong.
            Unsupported: an index may have overflowed.
        """
        record = self.record
        if record.verdict == "invalid":
            error = max(record.reference_error or 0.0, record.batch_error or 0.0)
            raise InvalidOutput(
                f"the {self.word} differ by {error:.1e} of their size from {record.reference} "
                f"or from the same image in a batch (accepted: {record.tolerance}); try fp32, "
                f"and `longvis check {model}` for the cause."
            )
        refuse_unchecked(self.unchecked)


def refuse_unchecked(operators: tuple[str, ...]) -> None:
    """Raise for unchecked operators, because the time may be that of a wrong result.

    Raises:
        Unsupported: there is such an operator.
    """
    if operators:
        raise Unsupported(
            f"tensors past 2^31 elements, where 32-bit indices overflow, meet operators whose results cannot "
            f"be checked: {', '.join(operators)}; try a smaller batch or resolution."
        )


@contextmanager
def canary(dtype: torch.dtype, limit: int = INT32_ELEMENTS) -> Iterator[None]:
    """Check the operators that run inside, but only those with a tensor past 2^31 elements.

    Arguments:
        dtype: of the operators that run inside.
        limit: number of elements above which an index may overflow.

    Raises:
        InvalidOutput: an operator's result is wrong.
        Unsupported: an operator cannot be checked.
    """
    samples = Samples(reference_dtype(dtype), limit=limit, everything=False)
    with samples:
        yield
    if samples.error > TOLERANCE[dtype]:
        raise InvalidOutput(
            f"{samples.worst} is wrong by {samples.error:.1e} of its size in a tensor past 2^31 elements; "
            "try a smaller batch or resolution."
        )
    refuse_unchecked(samples.unchecked)


@contextmanager
def no_recompiling() -> Iterator[None]:
    """Inside, a compiled model runs what was compiled for it, and eagerly where that would be compiled anew.

    A batch of another size, as checks and accuracy have, would cost minutes of compiling for nothing.
    """
    stance: Any = torch.compiler.set_stance("eager_on_recompile")
    with stance:
        yield


@torch.inference_mode()
@no_recompiling()
def check_validity(
    model: nn.Module,
    images: Tensor,
    form: Form,
    *,
    measured: object = None,
    other: Tensor | None = None,
    skip_reference: str | None = None,
    sample: bool = False,
    limit: int = INT32_ELEMENTS,
) -> Checked:
    """Compare a model's logits with those in a batch and with those of a reference.

    Arguments:
        model: in eval mode, on the device and in the dtype of the measurement.
        images: (batch, channels, height, width), the measured ones, on the same device, in the same dtype.
        form: of what the model returns.
        measured: what the measured iteration returned for these images; None to run the model again.
        other: (1, channels, height, width), for a batch of two where one image was measured; None to skip
            the comparison with a batch in that case.
        skip_reference: the reason for not running the reference, e.g. too little memory; the model's
            operators are sampled instead.
        sample: sample the operators even where the reference runs, because a tensor may be past the limit.
        limit: number of elements above which an index may overflow.

    Raises:
        InvalidOutput: logits are not finite or have another shape.
    """
    logits = check_outputs(model(images) if measured is None else measured, len(images), form)
    alone = logits if len(images) == 1 else check_outputs(model(images[:1]), 1, form)
    pair = None if other is None or len(images) > 1 else torch.cat([images, other])
    together = logits if len(images) > 1 else None
    compared, error = _with_reference(model, images[:1], alone, form, skip_reference)
    unchecked: tuple[str, ...] = ()
    if sample or (error is None and compared != NOT_FINITE):
        # one forward of the pair does both, unless the second image would push tensors past the limit
        batch = images if sample or pair is None else pair
        looked = _look(model, batch, limit)
        compared, unchecked = f"{looked.told}; whole model {compared}", looked.unchecked
        if looked.logits is not None:
            seen = check_outputs(looked.logits, len(batch), form)
            together = seen if batch is pair else together
            change = 0.0 if batch is pair else difference(logits, seen)
            error = None if looked.error is None else max(error or 0.0, looked.error, change)
        elif sample:
            unchecked = (f"all of the model ({looked.told})",)
    if pair is not None and together is None:
        together = check_outputs(model(pair), 2, form)
    batch_error = None if together is None else difference(alone, first(together))
    return Checked(_record(images, compared, error, batch_error, unchecked), unchecked, form.word)


def tolerance_for(images: Tensor) -> float:
    """The largest accepted difference of the logits of these images under torch's current settings."""
    return TF32_TOLERANCE if rounds_to_tf32(images) else TOLERANCE[images.dtype]


def _record(
    images: Tensor,
    compared: str,
    error: float | None,
    batch_error: float | None,
    unchecked: tuple[str, ...],
) -> ValidityRecord:
    """The record of the checks, with their verdict."""
    tolerance = tolerance_for(images)
    wrong = max(batch_error or 0.0, error or 0.0) > tolerance
    verdict: Verdict = "invalid" if wrong else "not checked" if error is None or unchecked else "ok"
    if unchecked:
        compared += f"; not checked past 2^31 elements: {', '.join(unchecked)}"
    return ValidityRecord(
        verdict=verdict,
        reference=compared,
        reference_error=error,
        batch_error=batch_error,
        tolerance=tolerance,
    )


def _with_reference(
    model: nn.Module, image: Tensor, alone: Outputs, form: Form, skip: str | None
) -> tuple[str, float | None]:
    """The reference, or why it did not run, as text; and the error of an image's logits against it."""
    dtype = reference_dtype(image.dtype)
    if skip is not None:
        return skip, None
    try:
        reference = form.parts(_reference_logits(model, image, dtype), 1)
    except (RuntimeError, NotImplementedError, TypeError) as problem:
        return f"the reference does not run: {message_of(problem)}", None
    if not all(torch.isfinite(part).all() for part in reference):
        return NOT_FINITE, None
    return f"{_name(dtype)}, unfused attention", difference(alone, reference)


class _Look(NamedTuple):
    """The result of a forward with sampled operators."""

    told: str
    """A description of the samples, or why there are none."""
    error: float | None = None
    """The largest error of an operator; None if none was sampled."""
    logits: object = None
    unchecked: tuple[str, ...] = ()


def _look(model: nn.Module, images: Tensor, limit: int) -> _Look:
    """Run a forward and compare its operators at sampled indices."""
    try:
        samples, logits = sample_operators(model, images, reference_dtype(images.dtype), limit=limit)
    except (RuntimeError, NotImplementedError, TypeError) as problem:
        return _Look(f"operators cannot be sampled: {message_of(problem)}")
    if not samples.kinds:
        return _Look("no operator can be sampled", None, logits, samples.unchecked)
    return _Look(samples.describe(), samples.error, logits, samples.unchecked)


def _reference_logits(model: nn.Module, images: Tensor, dtype: torch.dtype) -> object:
    reference = to_dtype(copy.deepcopy(model), dtype)
    eager: Any = torch.compiler.set_stance("force_eager")
    with eager, sdpa_kernel(SDPBackend.MATH), _no_autocast(images.device.type):
        return reference(images.to(dtype))


def _no_autocast(device: str) -> Any:
    make: Callable[..., Any] = torch.autocast
    return make(device, enabled=False) if device in ("cpu", "cuda") else nullcontext()


def reference_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the reference of a cell in this dtype."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
