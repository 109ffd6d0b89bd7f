"""Recompute the operators of a forward in higher precision on a sample of their rows and windows.

Where a whole model in float64 would take too long or too much memory, its operators can still be checked.
Each is recomputed from its own inputs, at the first, the last and a random element of its output: products,
convolutions, attention and scans with plain products (`recompute_matmul.py`), all others on slices
(`recompute_elementwise.py`).  The record names operators that cannot be recomputed.

The same samples detect overflowing 32-bit indices: a tensor past 2^31 elements gets additional samples beyond
that element.  If an operator with such a tensor cannot be sampled, or was not seen to run, the cell is
unsupported, because its time may be that of a wrong result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longvis_bench.errors import InvalidOutput
from longvis_bench.measure.flops.formulas import by_name
from longvis_bench.measure.validity.recompute_elementwise import (
    SLICES,
    NotSampled,
    is_batch_norm_in_place,
    is_elementwise,
    prepare_batch_norm,
    prepare_elementwise,
)
from longvis_bench.measure.validity.recompute_matmul import KERNELS, Call, Pair
from longvis_bench.measure.validity.sample_indices import INT32_ELEMENTS, is_past
from longvis_bench.ops.model_tensors import storages

OTHER = "other operators"
SMALLEST_SCALE = 1e-30
"""Smallest denominator of a relative error: kernels may flush smaller numbers to zero."""
_MOVES_NOTHING = ("as_strided_", "_unsafe_view", "_reshape_alias", "resize_", "set_", "detach_", "lift_fresh")
"""Operators that return another view of the same elements, besides those that torch marks as views."""
_UNFILLED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_NORMALISATIONS = ("aten::native_layer_norm", "aten::native_group_norm")
_PROBLEMS = (NotSampled, RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""Errors of a recomputation that does not support a call."""


class Samples(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Recompute samples of every operator that runs while it is active.

    Arguments:
        dtype: of the recomputation.
        limit: number of elements above which an index may overflow; tests lower it.
        everything: sample all operators, not only those with a tensor past the limit.
    """

    def __init__(self, dtype: torch.dtype, *, limit: int = INT32_ELEMENTS, everything: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.limit, self.everything = dtype, limit, everything
        self.kinds: Counter[str] = Counter()
        """Sampled calls, by kind."""
        self.error = 0.0
        """Largest difference / largest element of the reference, over all calls."""
        self.worst = ""
        """The operator with the largest error."""
        self.unsampled: set[str] = set()
        """Operators that were not sampled."""
        self.past_limit = 0
        """Sampled calls with a tensor past the limit."""
        self._unchecked: dict[str, str] = {}
        self._unfilled: dict[int, str] = {}
        """Address -> description of new memory past the limit that no operator has filled yet."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        short = func._overloadpacket.__name__
        if func.is_view or short in _MOVES_NOTHING:
            return func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        # an operator in place destroys the inputs of its recomputation
        mutable = func._schema.is_mutable
        compare = self._prepare(func, args, kwargs, inputs) if mutable else None
        result = func(*args, **kwargs)
        past = any(is_past(t, self.limit) for t in (*inputs, *_tensors(result)))
        self._follow_unfilled(inputs if mutable else [], [] if mutable else _tensors(result))
        if short in _UNFILLED:
            for address in _addresses([result]) if past else ():
                self._unfilled[address] = _described(func, result)
        elif _tensors(result) and (past or (self.everything and inputs)):
            if not mutable:
                compare = self._prepare(func, args, kwargs, inputs)
            self._sample(func, compare, args, kwargs, result, past)
        return result

    def _follow_unfilled(self, written: list[Tensor], made: list[Tensor]) -> None:
        """Forget tensors that an operator filled; those whose memory is reused unfilled were not checked."""
        for address in _addresses(written):
            self._unfilled.pop(address, None)
        for address in _addresses(made):
            gone = self._unfilled.pop(address, None)
            if gone is not None:
                self._unchecked[gone] = gone

    def _prepare(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], inputs: list[Tensor]
    ) -> Callable[[Tensor], list[Pair]] | None:
        """Prepare the comparison of an operator that may overwrite its input; None for other operators."""
        if not inputs or not (is_elementwise(func) or is_batch_norm_in_place(func)):
            return None
        if (
            not self.everything
            and not any(is_past(t, self.limit) for t in inputs)
            and func._schema.is_mutable
        ):
            return None
        try:
            if is_batch_norm_in_place(func):
                named = by_name(func, args, kwargs)
                return prepare_batch_norm(Call(func, named, named["out"], self.dtype, self.limit))
            return prepare_elementwise(func, args, kwargs, self.dtype, self.limit)
        except _PROBLEMS:
            return None

    def _sample(
        self,
        func: Any,
        compare: Callable[[Tensor], list[Pair]] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        past: bool,
    ) -> None:
        name = func._overloadpacket._qualified_op_name
        out = result[0] if isinstance(result, tuple | list) else result
        kind, recompute = KERNELS.get(name) or (OTHER, SLICES.get(name))
        try:
            if compare is not None:
                pairs = compare(out)
            elif recompute is not None and not func._schema.is_mutable:
                pairs = recompute(Call(func, by_name(func, args, kwargs), out, self.dtype, self.limit))
            else:
                raise NotSampled
            self._compare(name, pairs, name in KERNELS, _unit(name, func, args, kwargs))
        except _PROBLEMS:
            self.unsampled.add(name)
            if past:
                self._unchecked[name] = _described(func, (args, kwargs, result))
            return
        self.kinds[kind] += 1
        self.past_limit += past

    def _compare(self, name: str, pairs: list[Pair], is_kernel: bool, unit: float) -> None:
        """A kernel's error is booked sample by sample, others' relative to all samples or the `unit`."""
        found = [self._difference(name, given, right, is_kernel) for given, right in pairs if right.numel()]
        if not is_kernel and found:
            found = [(max(found)[0], max(unit, *(scale for _, scale in found)))]
        error = max((difference / scale for difference, scale in found), default=0.0)
        if error > self.error:
            self.error, self.worst = error, name

    def _difference(self, name: str, given: Tensor, right: Tensor, is_kernel: bool) -> tuple[float, float]:
        """Largest difference and largest value, over the elements with a finite reference.

        The reference is not finite in masked rows, nor (except in kernels) beyond the range of the dtype.
        """
        shown = right.isfinite() if is_kernel else right.to(given.dtype).isfinite()
        if (is_kernel and not shown.all()) or not shown.any():
            return 0.0, 1.0
        given, right = given[shown], right[shown].double()
        if not given.isfinite().all():
            raise InvalidOutput(
                f"{name} gave NaN or infinity where {_name(self.dtype)} gives numbers; try fp32 or bf16."
            )
        floor = max(torch.finfo(given.dtype).tiny, SMALLEST_SCALE) if given.is_floating_point() else 1.0
        return float((given.double() - right).abs().max()), max(float(right.abs().max()), floor)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Operators with a tensor past the limit whose result was not checked, with that tensor's shape."""
        return tuple(sorted({*self._unchecked.values(), *self._unfilled.values()}))

    def describe(self) -> str:
        """A description of the samples, for `validity_reference`."""
        kinds = ", ".join(f"{calls} {kind}" for kind, calls in sorted(self.kinds.items(), key=_is_other))
        canary = f", {self.past_limit} past 2^31 elements" if self.past_limit else ""
        left = f"; not sampled: {', '.join(sorted(self.unsampled))}" if self.unsampled else ""
        return f"{_name(self.dtype)} at sampled rows and windows of {kinds or 'no operators'}{canary}{left}"


def sample_operators(
    model: nn.Module,
    images: Tensor,
    dtype: torch.dtype,
    *,
    limit: int = INT32_ELEMENTS,
    everything: bool = True,
) -> tuple[Samples, Tensor]:
    """Run one forward and compare its operators at sampled indices.

    Arguments:
        model: in eval mode, on the device and in the dtype of the measurement; a compiled model runs its
            Python code, whose operators are dispatched one by one.
        images: (batch, channels, height, width) on the same device, in the same dtype.
        dtype: of the recomputation.
        limit: number of elements above which an index may overflow.
        everything: sample all operators, not only those with a tensor past the limit.

    Returns:
        The samples, and the logits of that forward.

    Raises:
        InvalidOutput: an operator gave NaN or infinity where the recomputation gives numbers.
    """
    samples = Samples(dtype, limit=limit, everything=everything)
    eager: Any = torch.compiler.set_stance("force_eager")
    # not in inference mode, in which composite operators hide the kernels that run
    with eager, torch.inference_mode(False), torch.no_grad(), samples:
        logits = model(images)
    return samples, logits


def _unit(name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Size of a normalisation's values before the shift, which counts where they cancel; else 0.

    Of one value per group, exactly 0 is right, and kernels give rounding errors of what was subtracted.
    """
    if name not in _NORMALISATIONS:
        return 0.0
    weight = by_name(func, args, kwargs).get("weight")
    return 1.0 if weight is None else float(weight.detach().abs().max())


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [storage.data_ptr() for tensor in tensors for storage in storages(tensor)]


def _described(func: Any, tree: object) -> str:
    """The name of an operator and the shape of the largest tensor in its call."""
    largest = max(_tensors(tree), key=lambda t: t.numel())
    return f"{func._overloadpacket._qualified_op_name} {tuple(largest.shape)}"


def _is_other(item: tuple[str, int]) -> bool:
    return item[0] == OTHER


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
