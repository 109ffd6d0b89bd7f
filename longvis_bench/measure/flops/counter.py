"""MACs and FLOPs of one forward of one image, counted on the meta device by a dispatch mode.

Every operator that reaches the dispatcher is on one of three lists: it has a formula (matrix products and
convolutions, attention of every backend, selective scan), it is known to do no multiply-accumulate work, or
it is unknown and the ledger names it.  No operator is on the free list by default.

A MAC is one multiply-add; FLOPs = 2 x MACs.  The selective scan is not a matrix product and has a column of
its own: 9 x B x L x D x N (state-spaces/mamba, issue 110).  Meta tensors have shapes only, so nothing is
allocated.

The formulas and the lists are in `formulas.py`; `flex_attention.py` replaces FlexAttention, which does not
run on the meta device.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.errors import Unsupported
from longvis_bench.measure.exception_status import first_sentence
from longvis_bench.measure.flops import flex_attention
from longvis_bench.measure.flops.flex_attention import FlexCall
from longvis_bench.measure.flops.formulas import (
    COMPLEX_MACS,
    SCAN,
    SHAPES,
    by_name,
    formula_for,
    is_free,
    is_product,
    scan_flops,
    written_by,
)
from longvis_bench.measure.validity.outputs import Maps
from longvis_bench.ops.feature_maps import Backbone
from longvis_bench.ops.model_tensors import to_dtype
from longvis_bench.ops.to_meta import on_meta
from longvis_bench.records import CountRecord, FeaturesRecord, Output
from longvis_bench.registry.output import build_output
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import AnyResolution, Resolution, canonical, sides


@dataclass(frozen=True)
class Count:
    """The operations of one forward; see the module's docstring for the definitions."""

    params: int
    macs: int
    scan_flops: int
    coverage: float | None
    """Output elements of operators with a formula / (those + unknown), 0-1; None where neither ran."""
    by_operator: dict[str, int]
    """MACs by operator."""
    by_module: dict[str, int]
    """MACs by module path, submodules included; "" is the model."""
    ledger: Ledger
    largest_output: int
    """Elements of the largest tensor that an operator returned; with unfused attention often its scores."""
    features: FeaturesRecord | None = None
    """The maps of a backbone, for one image in float32; None for logits."""

    @property
    def flops(self) -> int:
        """2 x MACs."""
        return 2 * self.macs

    def share(self, macs: int) -> float | None:
        """These MACs as a share of all, 0-1; None for a model without MACs."""
        return macs / self.macs if self.macs else None

    def operators(self) -> OperatorCount:
        """The part of it that says by which convention a published number was counted."""
        products = sum(macs for name, macs in self.by_operator.items() if is_product(name))
        return OperatorCount(self.params, self.macs, products, self.scan_flops, not self.ledger.unknown)

    def summary(self) -> CountSummary:
        """The part of it that a cell keeps."""
        return CountSummary(self.to_record(), self.largest_output, self.features)

    def to_record(self) -> CountRecord:
        """The fields that a row stores."""
        return CountRecord(
            params=self.params,
            macs=self.macs,
            flops=self.flops,
            scan_flops=self.scan_flops,
            coverage=self.coverage,
            unknown=dict(self.ledger.unknown),
        )


@dataclass(frozen=True)
class CountSummary:
    """What the row of a cell needs of a count."""

    record: CountRecord
    largest_output: int
    """See `Count`."""
    features: FeaturesRecord | None = None
    """See `Count`."""


@dataclass(frozen=True)
class OperatorCount:
    """A count, and how much of it some tools leave out."""

    params: int
    macs: int
    products: int
    """MACs of matrix products of two computed tensors, which are those of attention."""
    scan_flops: int
    complete: bool
    """Whether every operator has a formula."""


@dataclass(frozen=True)
class Ledger:
    """The operators that ran, by list: name -> calls (unknown: output elements)."""

    formula: Counter[str] = field(default_factory=Counter)
    free: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    flex: list[FlexCall] = field(default_factory=list)
    """Calls of FlexAttention, with their dense and masked MACs; the count uses the masked ones."""

    @property
    def flex_dense(self) -> int:
        """MACs of all calls of FlexAttention without their masks."""
        return sum(call.dense for call in self.flex)

    @property
    def flex_masked(self) -> int:
        """MACs in the blocks that the masks keep; those of all blocks where a density is unknown."""
        return sum(call.masked for call in self.flex)

    @property
    def flex_unknown(self) -> int:
        """Number of masks with an unknown density."""
        return sum(call.density is None for call in self.flex)


def count(model: nn.Module, resolution: AnyResolution, *, in_chans: int = 3) -> Count:
    """Count one image through a model in eval mode.

    Arguments:
        model: on any device; a copy on the meta device is counted.
        resolution: pixels per side, or (height, width).
        in_chans: channels of the input.

    Raises:
        Unsupported: the model does not run on the meta device.
    """
    return _count(to_dtype(on_meta(model), torch.float32), canonical(resolution), in_chans)


def _count(shadow: nn.Module, resolution: Resolution, in_chans: int) -> Count:
    """Count a model on the meta device; the model is changed to eval mode.

    Tensors that the forward makes without a device are on the CPU at first, so that the model can read their
    values.  If the model does not run that way, they are made on the meta device instead.
    """
    try:
        return _count_once(shadow, resolution, in_chans, nullcontext())
    except (RuntimeError, TypeError, ValueError, Unsupported) as first:
        try:
            with LinspaceOnCpu():
                return _count_once(shadow, resolution, in_chans, torch.device("meta"))
        except (RuntimeError, TypeError, ValueError, Unsupported):
            raise first from None


def _count_once(
    shadow: nn.Module, resolution: Resolution, in_chans: int, device: AbstractContextManager[Any]
) -> Count:
    counter = _Counter()
    image = torch.empty(1, in_chans, *sides(resolution), device="meta")
    try:
        with (
            torch.no_grad(),
            device,
            _Paths(shadow.eval()) as counter.paths,
            _as_written(counter),
            counter,
        ):
            found = shadow(image)
    except NotImplementedError as error:
        raise Unsupported(
            f"the model does not run on the meta device: {first_sentence(str(error))}."
        ) from error
    return counter.result(count_parameters(shadow), _features(shadow, image, found))


def _features(model: nn.Module, image: Tensor, found: object) -> FeaturesRecord | None:
    """The maps that a backbone gave for one image; None for a classifier."""
    if not isinstance(model, Backbone):
        return None
    form = Maps(model.strides, (image.shape[2], image.shape[3]))
    form.parts(found, 1)
    return form.seen[0]


def count_parameters(model: nn.Module) -> int:
    """Number of a model's parameters; shared ones count once, a complex one counts as one."""
    return sum(p.numel() for p in model.parameters())


def variant_parameters(
    variant: Variant,
    resolution: Resolution,
    num_classes: int,
    *,
    allocate: bool,
    output: Output = "logits",
) -> int | None:
    """Number of parameters of a model whose operations cannot be counted.

    Arguments:
        variant: from the registry.
        resolution: pixels per side.
        num_classes: width of the logits.
        allocate: build the model with values if it cannot be built on the meta device.
        output: "features" leaves the head out.

    Returns:
        None if the model cannot be built.
    """
    for device in ("meta", "cpu") if allocate else ("meta",):
        with suppress(Exception), torch.device(device):
            model = build_output(variant, output, resolution=resolution, num_classes=num_classes)
            return count_parameters(model)
    return None


@contextmanager
def _as_written(counter: _Counter) -> Iterator[None]:
    """Run the forward uncompiled, without fused encoder layers, and with FlexAttention by shape.

    The encoder's fast path makes nested tensors of padded batches, whose sizes depend on values.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(flex_attention.watched(counter.book_flex, counter.pause))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def count_variant(
    variant: Variant, resolution: Resolution, num_classes: int, output: Output = "logits"
) -> Count:
    """Count a registered model, built on the meta device, so that nothing is allocated.

    Arguments:
        variant: from the registry.
        resolution: pixels per side.
        num_classes: width of the logits.
        output: "features" leaves the head out.
    """
    with torch.device("meta"):
        model = build_output(variant, output, resolution=resolution, num_classes=num_classes)
    return _count(_floats(model), resolution, in_chans=3)


def _floats(model: nn.Module) -> nn.Module:
    """The model on the meta device in float32, the image's dtype; factories may choose other ones."""
    tensors = [*model.parameters(), *model.buffers()]
    return to_dtype(model if all(t.is_meta for t in tensors) else on_meta(model), torch.float32)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the formulas of all operators that are dispatched while the mode is active."""

    paths: _Paths | None = None

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: Counter[str] = Counter()
        self.modules: Counter[str] = Counter()
        self.scan_flops = 0
        self.covered = 0
        self.largest = 0
        self.ledger = Ledger()
        self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = _on_one_device(func, args, kwargs or {})
        if self._paused:
            return func(*args, **kwargs)
        name = func._overloadpacket._qualified_op_name
        known = name == SCAN or formula_for(name) is not None or is_free(name)
        if not known and func._can_decompose():
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        result = SHAPES[name](by_name(func, args, kwargs)) if name in SHAPES else func(*args, **kwargs)
        self._book(name, func, args, kwargs, result)
        return result

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the operators inside."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def book_flex(self, call: FlexCall, output: Tensor) -> None:
        """Record a call of FlexAttention, which is not an operator of the dispatcher."""
        self.ledger.flex.append(call)
        self.largest = max(self.largest, output.numel())
        self._book_macs(flex_attention.NAME, call.masked, output.numel())

    def _book(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        outputs = sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        self.largest = max(self.largest, outputs)
        formula = formula_for(name)
        if formula is not None:
            macs = formula(by_name(func, args, kwargs), result)
            if macs is not None and _is_complex(result):
                macs *= COMPLEX_MACS
            if macs is None:
                self.ledger.unknown[name] += outputs
            else:
                self._book_macs(name, macs, outputs)
        elif name == SCAN:
            self.scan_flops += scan_flops(by_name(func, args, kwargs))
            self._cover(name, outputs)
        elif is_free(name):
            self.ledger.free[name] += 1
        else:
            self.ledger.unknown[name] += outputs

    def _book_macs(self, name: str, macs: int, outputs: int) -> None:
        self._cover(name, outputs)
        self.operators[name] += macs
        for path in self.paths.here() if self.paths else ():
            self.modules[path] += macs

    def _cover(self, name: str, outputs: int) -> None:
        self.ledger.formula[name] += 1
        self.covered += outputs

    def result(self, params: int, features: FeaturesRecord | None) -> Count:
        every = self.covered + self.ledger.unknown.total()
        return Count(
            params=params,
            macs=self.operators.total(),
            scan_flops=self.scan_flops,
            coverage=self.covered / every if every else None,
            by_operator=dict(self.operators.most_common()),
            by_module=dict(self.modules),
            ledger=self.ledger,
            largest_output=self.largest,
            features=features,
        )


def _on_one_device(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments, all on the meta device if one is; models make masks and positions on the CPU.

    Raises:
        Unsupported: the operator writes into a CPU tensor, whose values would then be outdated.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(t.is_meta for t in tensors) or all(t.is_meta for t in tensors):
        return args, kwargs
    if func._schema.is_mutable:
        written = [a for a in written_by(func, args, kwargs) if not a.is_meta]
        if written:
            raise Unsupported("the model writes results into a tensor that it made on the CPU in its forward")
    return tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))  # type: ignore[no-any-return]


def _is_complex(result: Any) -> bool:
    return any(t.is_complex() for t in tree_leaves(result) if isinstance(t, Tensor))


class _Paths:
    """The path of the module that is running."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._running: list[str] = []

    def __enter__(self) -> _Paths:
        self._hooks = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, inputs: object) -> None:
        here = self._running[-1] if self._running else ""
        self._running.append(self._names.get(id(module), here))

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._running.pop()

    def here(self) -> list[str]:
        """The running module's path and those of its parents, outermost first: "", "blocks", "blocks.0"."""
        parts = self._running[-1].split(".") if self._running and self._running[-1] else []
        return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
