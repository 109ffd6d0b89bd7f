"""A second opinion on MACs: fvcore's counter, at a size it can run, and why it differs.

fvcore traces on the CPU, so it runs at the size asked for or, halving it, at the first legal one below 200
GMACs; it cannot see fused attention or custom operators, and says which it skipped.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from longvis_bench import units
from longvis_bench.errors import IllegalSize
from longvis_bench.measure.flops.counter import Count, count_variant
from longvis_bench.registry.registry import Variant

MOST_MACS = 200e9
INSTALL = "python -m pip install fvcore"


MATMUL_KIND = ("conv", "linear", "matmul", "addmm", "bmm", "einsum", "mm")
"""fvcore's names of matrix products and convolutions; it also counts normalisation and interpolation."""


class Opinion(NamedTuple):
    """What fvcore counted for one image."""

    macs: int
    """Matrix products and convolutions (its "flops" are multiply-adds)."""
    others: dict[str, int]
    """What else it counted, by its operator names."""
    skipped: dict[str, int]
    """Operators it did not count -> calls."""


def compare(variant: Variant, resolution: int, num_classes: int) -> str:
    """One paragraph: both counts at one size, and where the difference lies.

    Arguments:
        variant: the model.
        resolution: the size asked for; the comparison is made there or at a smaller legal one.
        num_classes: width of the logits.
    """
    if importlib.util.find_spec("fvcore") is None:
        return f"Second opinion: fvcore is not installed; add it with: {INSTALL}"
    for size in _sizes(resolution):
        ours = _count(variant, size, num_classes)
        if ours is not None and ours.macs <= MOST_MACS:
            try:
                opinion = fvcore_count(variant, size, num_classes)
            except Exception as error:  # whatever a user's model meets in a trace
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                return f"Second opinion: fvcore cannot trace this model at {size} px: {why}"
            return _sentence(size, ours, opinion)
    return "Second opinion: no legal size is small enough for fvcore."


def _sizes(resolution: int) -> Iterator[int]:
    size = resolution
    while size >= 32:
        yield size
        size //= 2


def _count(variant: Variant, size: int, num_classes: int) -> Count | None:
    try:
        return count_variant(variant, size, num_classes)
    except IllegalSize:
        return None


def fvcore_count(variant: Variant, resolution: int, num_classes: int) -> Opinion:
    """What fvcore counts for one image through a registered model."""
    return fvcore_trace(variant.build(resolution=resolution, num_classes=num_classes), resolution)


def fvcore_trace(model: nn.Module, resolution: int) -> Opinion:
    """What fvcore counts for one image in eval mode on the CPU."""
    image = torch.zeros(1, 3, resolution, resolution)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # fvcore is unmaintained and uses what torch has deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model.eval(), image)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted = {str(name): int(value) for name, value in analysis.by_operator().items()}
        skipped = {str(name): int(calls) for name, calls in analysis.unsupported_ops().items()}
    products = {name: value for name, value in counted.items() if name in MATMUL_KIND}
    others = {name: value for name, value in counted.items() if name not in MATMUL_KIND and value}
    return Opinion(sum(products.values()), others, skipped)


def _sentence(size: int, ours: Count, opinion: Opinion) -> str:
    difference = ours.macs - opinion.macs
    told = (
        f"Second opinion at {size} px: fvcore counts {units.count(opinion.macs)} MACs, "
        f"this counts {units.count(ours.macs)}"
    )
    if abs(difference) <= 0.01 * ours.macs:
        others = ", ".join(f"{units.count(value)} for {name}" for name, value in opinion.others.items())
        added = f"; it adds {others}, which are no matrix products" if others else ""
        return f"{told}: they agree within 1 %{added}."
    unseen = {name: calls for name, calls in opinion.skipped.items() if _does_arithmetic(name)}
    if difference > 0 and unseen:
        names = ", ".join(f"{calls} {name} calls" for name, calls in sorted(unseen.items()))
        return f"{told}. fvcore does not see {names}."
    return f"{told}, and none of the operators it skipped explains it: {opinion.skipped}."


def _does_arithmetic(name: str) -> bool:
    return any(
        word in name for word in ("attention", "scan", "mm", "linear", "conv", "einsum", "lstm", "gru", "rnn")
    )
