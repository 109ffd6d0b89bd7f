"""Compare this package's count of MACs with fvcore's, at a size that fvcore can run, and explain differences.

fvcore traces on the CPU, so the comparison uses the requested size or, halving it, the first legal one below
200 GMACs.  fvcore does not count fused attention or custom operators, and lists those it skipped.  The counts
are reported to agree only where neither skipped an operator that multiplies.
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
from longvis_bench.measure.flops.formulas import formula_for, is_free
from longvis_bench.records import Output
from longvis_bench.registry.output import build_output
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution, resolution_of, sides
from longvis_bench.text import message_of

MOST_MACS = 200e9
AGREEMENT = 0.01
"""Two counts agree if their difference is at most this share of this package's count."""
INSTALL = "python -m pip install fvcore"


MATMUL_KIND = ("conv", "linear", "matmul", "addmm", "bmm", "einsum", "mm")
"""fvcore's names of matrix products and convolutions; fvcore counts normalisation, too."""


class FvcoreCount(NamedTuple):
    """fvcore's count for one image."""

    macs: int
    """Multiply-adds of matrix products and convolutions, which fvcore calls flops."""
    others: dict[str, int]
    """Other operations that fvcore counted, by its names of operators."""
    skipped: dict[str, int]
    """Operators that fvcore did not count -> calls."""


def compare(variant: Variant, resolution: Resolution, num_classes: int, output: Output = "logits") -> str:
    """A paragraph with both counts at one size, and the cause of a difference.

    Arguments:
        variant: the model.
        resolution: the requested size; the comparison is made there or at a smaller legal one.
        num_classes: width of the logits.
        output: "features" leaves the head out.
    """
    if importlib.util.find_spec("fvcore") is None:
        return f"fvcore check: fvcore is not installed; add it with: {INSTALL}"
    for size in _sizes(resolution):
        ours = _count(variant, size, num_classes, output)
        if ours is not None and ours.macs <= MOST_MACS:
            try:
                fvcore = fvcore_count(variant, size, num_classes, output)
            except Exception as error:  # a user's model can raise anything while it is traced
                return f"fvcore check: fvcore cannot trace this model at {size} px: {message_of(error)}"
            return _sentence(size, ours, fvcore)
    return "fvcore check: no legal size is small enough for fvcore."


def _sizes(resolution: Resolution) -> Iterator[Resolution]:
    height, width = sides(resolution)
    while min(height, width) >= 32:
        yield resolution_of((height, width))
        height, width = height // 2, width // 2


def _count(variant: Variant, size: Resolution, num_classes: int, output: Output) -> Count | None:
    try:
        return count_variant(variant, size, num_classes, output)
    except IllegalSize:
        return None


def fvcore_count(
    variant: Variant, resolution: Resolution, num_classes: int, output: Output = "logits"
) -> FvcoreCount:
    """The count of fvcore for one image through a registered model."""
    model = build_output(variant, output, resolution=resolution, num_classes=num_classes)
    return fvcore_trace(model, resolution)


def fvcore_trace(model: nn.Module, resolution: Resolution) -> FvcoreCount:
    """The count of fvcore for one image in eval mode on the CPU."""
    image = torch.zeros(1, 3, *sides(resolution))
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # fvcore is unmaintained and uses deprecated functions of torch
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model.eval(), image)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted = {str(name): int(value) for name, value in analysis.by_operator().items()}
        skipped = {str(name): int(calls) for name, calls in analysis.unsupported_ops().items()}
    products = {name: value for name, value in counted.items() if name in MATMUL_KIND}
    others = {name: value for name, value in counted.items() if name not in MATMUL_KIND and value}
    return FvcoreCount(sum(products.values()), others, skipped)


def _sentence(size: Resolution, ours: Count, fvcore: FvcoreCount) -> str:
    """Both counts, and whether they agree on every operator that multiplies."""
    told = (
        f"fvcore check at {size} px: fvcore counts {units.count(fvcore.macs)} MACs, "
        f"longvis counts {units.count(ours.macs)}"
    )
    difference = ours.macs - fvcore.macs
    agree = abs(difference) <= AGREEMENT * max(ours.macs, 1)
    unseen = {name: calls for name, calls in fvcore.skipped.items() if _does_arithmetic(name)}
    unknown = ours.ledger.unknown
    neither = sorted(name for name in unknown if _is_skipped(name, fvcore))
    blind = _blind(ours, fvcore, unseen, neither)
    if agree and not unknown and not unseen:
        return f"{told}: they agree within 1 %{_others(fvcore)}."
    if agree:
        return f"{told}: on operators that both count they agree within 1 %{_others(fvcore)}. {blind}"
    if blind:
        return f"{told}. {blind}"
    if any("complex" in name for name in fvcore.skipped):
        return f"{told}. fvcore counts a product of two complex numbers as one MAC, this as four real ones."
    skipped = ", ".join(f"{calls} {name}" for name, calls in sorted(fvcore.skipped.items())) or "none"
    return f"{told}, and none of the operators it skipped explains it: {skipped}."


def _others(fvcore: FvcoreCount) -> str:
    names = ", ".join(f"{units.count(value)} for {name}" for name, value in fvcore.others.items())
    return f"; fvcore adds {names}, which are not matrix products" if names else ""


def _blind(ours: Count, fvcore: FvcoreCount, unseen: dict[str, int], neither: list[str]) -> str:
    """Sentences about the operators that only one of the two counts, or neither."""
    sentences = []
    only_ours = {name: calls for name, calls in unseen.items() if name not in neither}
    if only_ours:
        calls = ", ".join(f"{calls} {name} calls" for name, calls in sorted(only_ours.items()))
        sentences.append(f"fvcore does not count {calls}.")
    ours_unknown = sorted(set(ours.ledger.unknown) - set(neither))
    if neither:
        sentences.append(f"Neither counts {', '.join(neither)}.")
    if ours_unknown:
        sentences.append(f"longvis does not count {', '.join(ours_unknown)}.")
    return " ".join(sentences)


def _is_skipped(name: str, fvcore: FvcoreCount) -> bool:
    """Whether fvcore skipped an operator; its trace drops a leading underscore of the name."""
    plain = name.replace("::_", "::")
    return any(skipped.replace("::_", "::") == plain for skipped in fvcore.skipped)


def _does_arithmetic(name: str) -> bool:
    """Whether an operator that fvcore skipped multiplies: it has a formula, or its name shows it."""
    if is_free(name):
        return False
    return formula_for(name) is not None or any(
        word in name
        for word in ("attention", "scan", "mm", "linear", "conv", "einsum", "lstm", "gru", "rnn", "fft")
    )
