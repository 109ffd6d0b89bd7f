"""Validity: whether a cell's logits can be believed.

Three questions: are the logits finite and of the promised shape; are an image's logits the same alone and in
a batch; and are they those of a reference, the same weights in higher precision (float32; float64 for
float32) with unfused attention.  Where the reference cannot be run, the model's kernels are recomputed at
sampled rows and windows instead (`sampling.py`), and the record says so; where not even that is possible the
verdict is `not checked`, with the reason, never `ok`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from longvis_bench.errors import InvalidOutput
from longvis_bench.measure.sampling import Samples, sample_kernels
from longvis_bench.records import ValidityRecord, Verdict

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""Largest accepted difference of logits, as a share of the reference's largest logit, by the cell's dtype."""


def check_shape(logits: object, batch: int, num_classes: int) -> Tensor:
    """The logits, if they are a tensor of the promised shape; costs nothing on the device.

    Raises:
        InvalidOutput: they are not; the message says what was promised and what came.
    """
    if not isinstance(logits, Tensor):
        raise InvalidOutput(
            f"the model returned {type(logits).__name__}, not a tensor of logits; return that alone."
        )
    if tuple(logits.shape) != (batch, num_classes):
        raise InvalidOutput(
            f"the model returned shape {tuple(logits.shape)}, not ({batch}, {num_classes}): "
            "one row of logits for each image, whatever ran before."
        )
    return logits


NOT_FINITE = "the reference itself is not finite"


def check_logits(logits: object, batch: int, num_classes: int) -> Tensor:
    """The logits, if they are finite and of the promised shape.

    Raises:
        InvalidOutput: they are not; the message says what was promised and what came.
    """
    logits = check_shape(logits, batch, num_classes)
    if not torch.isfinite(logits).all():
        share = 1 - torch.isfinite(logits).double().mean().item()
        raise InvalidOutput(
            f"{share:.0%} of the logits are NaN or infinite; try fp32 or bf16, or other weights."
        )
    return logits


@torch.inference_mode()
def check_validity(
    model: nn.Module,
    images: Tensor,
    num_classes: int,
    *,
    skip_reference: str | None = None,
    sample: bool = False,
) -> ValidityRecord:
    """Compare a model's logits with themselves in a batch and with a reference.

    Arguments:
        model: in eval mode, on the device and in the dtype that was measured.
        images: (2, channels, height, width) on the same device, in the same dtype; with one image the batch
            is not checked.
        num_classes: width of the logits.
        skip_reference: why the reference is not to be run, e.g. for want of memory; then its kernels are
            compared at sampled places.
        sample: sample the kernels even where the reference runs, because a tensor may be past 2^31 elements.

    Raises:
        InvalidOutput: logits are not finite or have another shape.
    """
    dtype = images.dtype
    alone = check_logits(model(images[:1]), 1, num_classes)
    batch_error = None
    if len(images) > 1:
        batch_error = _relative(alone, check_logits(model(images), len(images), num_classes)[:1])
    reference, error, tolerance = None, None, TOLERANCE[dtype]
    if skip_reference is None:
        try:
            reference = _reference_logits(model, images[:1], _higher(dtype))
            if not torch.isfinite(reference).all():
                reference, skip_reference = None, NOT_FINITE
        except (RuntimeError, NotImplementedError, TypeError) as problem:
            skip_reference = f"the reference does not run: {str(problem).splitlines()[0]}"
    compared = skip_reference or f"{_name(_higher(dtype))}, unfused attention"
    if reference is not None:
        error = _relative(alone, reference)
    if (reference is None and skip_reference != NOT_FINITE) or sample:
        samples = _samples(model, images[:1], _higher(dtype))
        compared, error = _with_samples(samples, compared, error, tolerance)
    wrong = max(batch_error or 0.0, error or 0.0) > tolerance
    verdict: Verdict = "invalid" if wrong else "ok" if error is not None else "not checked"
    return ValidityRecord(
        verdict=verdict,
        reference=compared,
        reference_error=error,
        batch_error=batch_error,
        tolerance=tolerance,
    )


def _samples(model: nn.Module, image: Tensor, dtype: torch.dtype) -> Samples | str:
    """What the model's kernels give at sampled places, or why that cannot be had."""
    try:
        return sample_kernels(model, image, dtype)
    except (RuntimeError, NotImplementedError, TypeError) as problem:
        return f"its kernels cannot be sampled: {str(problem).splitlines()[0]}"


def _with_samples(
    samples: Samples | str, compared: str, error: float | None, tolerance: float
) -> tuple[str, float | None]:
    """What was compared, and the largest error of model and kernels; None where something went unchecked."""
    whole = f"whole model {compared}"
    if isinstance(samples, str):
        return f"{whole}; {samples}", error
    if not samples.kinds:
        return f"{whole}; it has no kernels that can be sampled", error
    worst, told = max(samples.error, error or 0.0), f"{samples.describe()}; {whole}"
    if not samples.unsampled:
        return told, worst
    names = ", ".join(sorted(samples.unsampled))
    return f"{told}; not checked: tensors past 2^31 elements in {names}", worst if worst > tolerance else None


def _reference_logits(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    reference = copy.deepcopy(model).to(dtype)
    with sdpa_kernel(SDPBackend.MATH), _no_autocast(images.device.type):
        return reference(images.to(dtype))  # type: ignore[no-any-return]


def _no_autocast(device: str) -> Any:
    make: Callable[..., Any] = torch.autocast
    return make(device, enabled=False) if device in ("cpu", "cuda") else nullcontext()


def _higher(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _relative(value: Tensor, reference: Tensor) -> float:
    """Max |a - b| / max |b|, in float64."""
    value, reference = value.double(), reference.double()
    scale = reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((value - reference).abs().max() / scale).item()
