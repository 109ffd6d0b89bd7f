"""MACs and FLOPs of one forward of one image, counted on the meta device by dispatch.

Every operator that reaches the dispatcher is on one of three lists: it has a formula (matrix products and
convolutions, attention of every backend, selective scan), it is known to do no matmul-kind arithmetic, or it
is unknown and named in the ledger.  Nothing is put on the free list by default.

A MAC is one multiply-add; FLOPs = 2 x MACs.  The selective scan is no matmul and stands in a column of its
own: 9 x B x L x D x N (state-spaces/mamba, issue 110).  Nothing is allocated: meta tensors have shapes only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from longvis_bench.errors import Unsupported
from longvis_bench.ops.shadow import on_meta
from longvis_bench.records import CountRecord
from longvis_bench.registry import Variant

aten = torch.ops.aten


@dataclass(frozen=True)
class Count:
    """What a forward costs; see the module's docstring for the definitions."""

    params: int
    macs: int
    scan_flops: int
    coverage: float | None
    """Output elements of operators with a formula / (those + unknown), 0-1; None where neither ran."""
    by_operator: dict[str, int]
    """MACs by operator."""
    by_module: dict[str, int]
    """MACs by module path, each module's sum over all it holds; "" is the model."""
    ledger: Ledger
    largest_output: int
    """Elements of the largest tensor any operator made, with unfused attention: its scores, often."""

    @property
    def flops(self) -> int:
        """2 x MACs."""
        return 2 * self.macs

    def share(self, macs: int) -> float | None:
        """A part of all MACs, 0-1; None for a model that does none."""
        return macs / self.macs if self.macs else None

    def to_record(self) -> CountRecord:
        """The part of it that a row stores."""
        return CountRecord(
            params=self.params,
            macs=self.macs,
            flops=self.flops,
            scan_flops=self.scan_flops,
            coverage=self.coverage,
            unknown=dict(self.ledger.unknown),
        )


@dataclass(frozen=True)
class Ledger:
    """Every operator that ran, on the list it is on: name -> calls (unknown: output elements)."""

    formula: Counter[str] = field(default_factory=Counter)
    free: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def count(model: nn.Module, resolution: int, *, in_chans: int = 3) -> Count:
    """Count one image through a model in eval mode.

    Arguments:
        model: on any device; one that is not on meta is copied there, shapes only.
        resolution: pixels per side.
        in_chans: channels of the input.

    Raises:
        Unsupported: the model does not run on the meta device.
    """
    shadow = on_meta(model).eval()
    tracker, counter = ModuleTracker(), _Counter()
    counter.parents = lambda: tracker.parents
    image = torch.empty(1, in_chans, resolution, resolution, device="meta")
    try:
        with torch.no_grad(), tracker, counter:
            shadow(image)
    except NotImplementedError as error:
        raise Unsupported(f"the model does not run on the meta device: {error}") from error
    return counter.result(sum(p.numel() for p in model.parameters()), type(shadow).__name__)


def count_variant(variant: Variant, resolution: int, num_classes: int) -> Count:
    """Count a registered model, built on the meta device: nothing is allocated, whatever its size.

    Arguments:
        variant: from the registry.
        resolution: pixels per side.
        num_classes: width of the logits.
    """
    with torch.device("meta"):
        model = variant.build(resolution=resolution, num_classes=num_classes)
    return count(model, resolution)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the formulas of all operators that are dispatched while it is active."""

    parents: Callable[[], set[str]] = set

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: Counter[str] = Counter()
        self.modules: Counter[str] = Counter()
        self.scan_flops = 0
        self.covered = 0
        self.largest = 0
        self.ledger = Ledger()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket._qualified_op_name
        if name not in FORMULAS and name not in FREE and name != SCAN and func._can_decompose():
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        result = func(*args, **kwargs)
        self._book(name, func, args, kwargs, result)
        return result

    def _book(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        outputs = sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        self.largest = max(self.largest, outputs)
        if name in FORMULAS:
            macs = FORMULAS[name](_by_name(func, args, kwargs), result)
            self.operators[name] += macs
            for module in sorted(self.parents(), key=len):  # a set, whose order is not that of the model
                self.modules[module] += macs
        elif name == SCAN:
            self.scan_flops += scan_flops(_by_name(func, args, kwargs))
        elif name in FREE:
            self.ledger.free[name] += 1
            return
        else:
            self.ledger.unknown[name] += outputs
            return
        self.ledger.formula[name] += 1
        self.covered += outputs

    def result(self, params: int, root: str) -> Count:
        every = self.covered + self.ledger.unknown.total()
        return Count(
            params=params,
            macs=self.operators.total(),
            scan_flops=self.scan_flops,
            coverage=self.covered / every if every else None,
            by_operator=dict(self.operators.most_common()),
            by_module=_module_paths(self.modules, root),
            ledger=self.ledger,
            largest_output=self.largest,
        )


def _module_paths(modules: Counter[str], root: str) -> dict[str, int]:
    """`Model.stage.0` of the tracker -> `stage.0`; lists of modules, which are never called, are added up."""
    called = {
        name.removeprefix(root).removeprefix("."): macs for name, macs in modules.items() if name != "Global"
    }
    paths: Counter[str] = Counter()
    for path, macs in called.items():
        for parent in _uncalled_parents(path, called):
            paths[parent] += macs
        paths[path] += macs
    return dict(paths)


def _uncalled_parents(path: str, called: Mapping[str, int]) -> list[str]:
    """Containers right above a module, up to the first that was called itself; outermost first."""
    parents: list[str] = []
    parent = path.rpartition(".")[0]
    while parent and parent not in called:
        parents.insert(0, parent)
        parent = parent.rpartition(".")[0]
    return parents


def _by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under the names of the operator's schema, so that keyword calls count alike."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


Formula = Callable[[dict[str, Any], Any], int]


def _matmul(left: str, right: str) -> Formula:
    """(..., m, k) x (..., k, n): every output element takes k MACs."""

    def macs(a: dict[str, Any], out: Any) -> int:
        return int(prod(a[left].shape) * (a[right].shape[-1] if a[right].ndim > 1 else 1))

    return macs


def _linear(a: dict[str, Any], out: Any) -> int:
    return int(out.numel() * a["weight"].shape[-1])


def _convolution(a: dict[str, Any], out: Any) -> int:
    """Each output (transposed: input) element meets one filter: channels of its group x kernel."""
    per_element = prod(a["weight"].shape[1:])
    if a.get("transposed", False):
        return int(a["input"].numel() * per_element)
    first = out[0] if isinstance(out, tuple | list) else out
    return int(first.numel() * per_element)


def _attention(a: dict[str, Any], out: Any) -> int:
    """Query times key and weights times value: B x heads x L_q x L_kv x (d_k + d_v)."""
    query, key, value = a["query"], a["key"], a["value"]
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return int(pairs * (query.shape[-1] + value.shape[-1]))


def scan_flops(a: Mapping[str, Any]) -> int:
    """9 x B x L x D x N of a selective scan over x (B, D, L) with A (D, N)."""
    state = a["A"].shape[-1]
    return 9 * int(a["x"].numel()) * int(state)


SCAN = "longvis::selective_scan"

FORMULAS: dict[str, Formula] = {
    "aten::mm": _matmul("self", "mat2"),
    "aten::bmm": _matmul("self", "mat2"),
    "aten::addmm": _matmul("mat1", "mat2"),
    "aten::baddbmm": _matmul("batch1", "batch2"),
    "aten::addbmm": _matmul("batch1", "batch2"),
    "aten::mv": _matmul("self", "vec"),
    "aten::addmv": _matmul("mat", "vec"),
    "aten::dot": _matmul("self", "tensor"),
    "aten::_int_mm": _matmul("self", "mat2"),
    "aten::_scaled_mm": _matmul("self", "mat2"),
    "aten::linear": _linear,
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::mkldnn_convolution": _convolution,
    "aten::cudnn_convolution": _convolution,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
}
"""Operators with a formula: qualified name -> MACs of one call."""


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


FREE = _aten(
    # elementwise
    """add add_ sub sub_ rsub mul mul_ div div_ neg abs exp exp_ expm1 log log1p log2 sqrt rsqrt pow square
    sin cos tanh sigmoid sigmoid_ relu relu_ gelu silu silu_ hardswish hardsigmoid hardtanh softplus elu
    leaky_relu mish clamp clamp_ clamp_min clamp_max maximum minimum where masked_fill masked_fill_ floor ceil
    round trunc sign reciprocal erf eq ne lt le gt ge logical_not logical_and logical_or bitwise_not
    bitwise_and isnan isinf remainder fmod floor_divide addcmul addcdiv lerp nan_to_num"""
    # reductions and normalisations
    """ sum mean var std var_mean max min amax amin argmax argmin any all prod cumsum logsumexp topk sort
    softmax _softmax _safe_softmax log_softmax _log_softmax native_layer_norm layer_norm native_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm native_group_norm group_norm
    linalg_vector_norm norm rms_norm _fused_rms_norm dropout native_dropout bernoulli_ uniform_"""
    # pooling, resizing, padding
    """ max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa pad constant_pad_nd reflection_pad2d replication_pad2d im2col col2im"""
    # shapes, copies, indexing
    """ view _unsafe_view reshape _reshape_alias permute transpose t expand squeeze unsqueeze slice select
    narrow split split_with_sizes chunk unbind cat stack flatten unflatten contiguous clone copy_ _to_copy to
    detach alias lift_fresh as_strided as_strided_ flip roll repeat repeat_interleave index index_put
    index_put_ index_select gather scatter scatter_ scatter_add take diagonal diag_embed tril triu unfold
    pixel_shuffle pixel_unshuffle channel_shuffle movedim swapaxes view_as_real view_as_complex
    slice_scatter select_scatter masked_select nonzero embedding one_hot diagonal_copy diagonal_scatter"""
    # making tensors
    """ empty empty_like empty_strided new_empty new_empty_strided new_zeros new_ones new_full zeros
    zeros_like ones ones_like full full_like arange linspace eye scalar_tensor fill_ zero_ rand randn
    meshgrid tril_indices triu_indices item _local_scalar_dense"""
    # autocast and bookkeeping
    """ sym_size sym_numel is_same_size _assert_async set_"""
) | frozenset({"prim::device", "prim::layout"})
"""Operators known to do no matmul-kind arithmetic."""
