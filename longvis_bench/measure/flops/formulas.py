"""MACs of each operator: the formulas, the operators known to have none, and shapes of some results.

A formula takes the arguments of a call, by their names in the operator's schema, and its result, and returns
multiply-adds.  `counter.py` looks up every operator that reaches the dispatcher; an operator that has neither
a formula nor an entry in the free list is unknown, and the ledger names it.  An operator in place (`addmm_`)
counts as its plain form.

A complex multiply-add is `COMPLEX_MACS` real ones.  torch computes a complex convolution with three real
ones, and these are counted.

Attention counts every pair of query and key, also those that a mask or `is_causal` excludes, because fused
kernels differ in what they skip.  FlexAttention, whose block mask is known, is in `flex_attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch

Arguments = Mapping[str, Any]
Formula = Callable[[Arguments, Any], int | None]


def formula_for(name: str) -> Formula | None:
    """The formula of an operator, by its qualified name, e.g. "aten::mm"."""
    return FORMULAS.get(name) or FORMULAS.get(_plain(name))


def is_free(name: str) -> bool:
    """Whether an operator is known to do no multiply-accumulate work."""
    return name in FREE or _plain(name) in FREE


def is_product(name: str) -> bool:
    """Whether an operator multiplies two computed tensors, as attention does, and not one with weights."""
    return "attention" in name or _plain(name) in ("aten::bmm", "aten::baddbmm", "aten::addbmm")


def by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """A call's arguments by their names in the operator's schema, whether positional or not.

    Arguments that were left out have their defaults.
    """
    declared = func._schema.arguments
    given = dict(zip((argument.name for argument in declared), args, strict=False))
    return {**{argument.name: argument.default_value for argument in declared}, **given, **kwargs}


def written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that a call writes into."""
    given = by_name(func, args, kwargs)
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [given[name] for name in names if isinstance(given[name], torch.Tensor)]


def _plain(name: str) -> str:
    """`aten::add_` -> `aten::add`: in place or not, the arithmetic is the same."""
    return name.removesuffix("_")


def _matmul(left: str, right: str) -> Formula:
    """(..., m, k) x (..., k, n): every element of the left factor is multiplied with n of the right."""

    def macs(a: Arguments, out: Any) -> int:
        return int(prod(a[left].shape) * (a[right].shape[-1] if a[right].ndim > 1 else 1))

    return macs


def _outer(a: Arguments, out: Any) -> int:
    return int(a["vec1"].numel() * a["vec2"].numel())


def _grouped_mm(a: Arguments, out: Any) -> int:
    """Grouped matrix products; with a 3-D left and 2-D right factor, each group has a part of the columns."""
    left, right = a["self"], a["mat2"]
    groups = left.shape[0] if left.ndim == 3 and right.ndim == 2 else 1
    return int(left.numel() * right.shape[-1] // groups)


def _linear(a: Arguments, out: Any) -> int:
    return int(out.numel() * a["weight"].shape[-1])


def _row_product(a: Arguments, out: Any) -> int:
    """(m, k) times a packed or transposed matrix: k MACs per output element."""
    return int(out.numel() * a["self"].shape[-1])


def _trilinear(a: Arguments, out: Any) -> int:
    """Three broadcast factors, multiplied and summed: `nn.Bilinear`."""
    sides = []
    for factor, dims in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        shape = list(a[factor].shape)
        for dim in sorted(a[dims]):
            shape.insert(dim, 1)
        sides.append(tuple(shape))
    return prod(max(lengths) for lengths in zip(*sides, strict=True))


def _convolution(a: Arguments, out: Any) -> int:
    """One filter (channels per group x kernel) per output element; transposed: per input element."""
    per_element = prod(a["weight"].shape[1:])
    return int((a["input"] if a.get("transposed", False) else out).numel() * per_element)


def _deformable(a: Arguments, out: Any) -> int:
    """MACs of an ordinary convolution; sampling at the offsets is interpolation, which is free."""
    return int(out.numel() * prod(a["weight"].shape[1:]))


def _affine_grid(a: Arguments, out: Any) -> int:
    """Homogeneous coordinates of every position, times the transposed matrix."""
    return int(out.numel() * a["theta"].shape[-1])


def _convolution_tbc(a: Arguments, out: Any) -> int:
    """`conv_tbc`: time, batch, channels; the weight is (kernel, channels in, channels out)."""
    return int(out.numel() * prod(a["weight"].shape[:2]))


def _attention(a: Arguments, out: Any) -> int:
    """Query-key and weights-value products: query heads x B x L_q x L_kv x (d_k + d_v)."""
    query, key, value = a["query"], a["key"], a["value"]
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return int(pairs * (query.shape[-1] + value.shape[-1]))


def _attention_of_tokens(a: Arguments, out: Any) -> int | None:
    """Attention with tokens before heads; None for packed sequences, whose lengths are not in the shapes."""
    if any(a.get(name) is not None for name in ("cum_seq_q", "cu_seqlens_q", "seqused_k", "seqlen_k")):
        return None
    query, key, value = a["query"], a["key"], a["value"]
    return int(prod(query.shape[:-1]) * key.shape[-3] * (query.shape[-1] + value.shape[-1]))


def _multihead(a: Arguments, out: Any) -> int:
    """Fused `nn.MultiheadAttention`: three input projections, attention, one output projection."""
    query, key, dim = a["query"], a["key"], a["embed_dim"]
    batch, length, keys = query.shape[0], query.shape[1], key.shape[1]
    return int(batch * (2 * length * dim * dim + 2 * keys * dim * dim + 2 * length * keys * dim))


def _encoder_layer(a: Arguments, out: Any) -> int:
    """Fused `nn.TransformerEncoderLayer`: multi-head attention and an MLP."""
    source, weight = a["src"], a["ffn_weight_1"]
    attention = _multihead({"query": source, "key": source, "embed_dim": a["embed_dim"]}, out)
    return int(attention + 2 * prod(source.shape[:-1]) * weight.numel())


def _recurrent(a: Arguments, out: Any) -> int | None:
    """Every token is multiplied with every matrix of the cell once, per layer and direction."""
    if a["batch_sizes"]:
        return None
    weights = a["weight"] if "weight" in a else (a["weight0"], a["weight1"])
    return int(prod(a["input"].shape[:2]) * sum(w.numel() for w in weights if w.ndim == 2))


def _sequence(a: Arguments, out: Any) -> int:
    """`nn.LSTM` and the like as one operator: every token times every matrix once; packed tokens are rows."""
    tokens = prod(a["input"].shape[:2]) if "input" in a else a["data"].shape[0]
    return int(tokens * sum(weight.numel() for weight in a["params"] if weight.ndim == 2))


def _sequence_shapes(a: Arguments) -> tuple[torch.Tensor, ...]:
    """Output and last states of `nn.LSTM` (two states) or `nn.GRU`, without a step for each token."""
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    tokens = a["input"] if "input" in a else a["data"]
    width = states[0].shape[-1] * (2 if a["bidirectional"] else 1)
    return (tokens.new_empty(*tokens.shape[:-1], width), *(torch.empty_like(state) for state in states))


def scan_flops(a: Arguments) -> int:
    """9 x B x L x D x N of a selective scan over x (B, D, L) with A (D, N)."""
    return 9 * int(a["x"].numel()) * int(a["A"].shape[-1])


SCAN = "longvis::selective_scan"

COMPLEX_MACS = 4
"""Real multiply-adds per complex one."""

RECURRENT = ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
"""Recurrent layers as one operator; torch runs them on the meta device token by token."""

FORMULAS: dict[str, Formula] = {
    "aten::mm": _matmul("self", "mat2"),
    "aten::bmm": _matmul("self", "mat2"),
    "aten::addmm": _matmul("mat1", "mat2"),
    "aten::_addmm_activation": _matmul("mat1", "mat2"),
    "aten::baddbmm": _matmul("batch1", "batch2"),
    "aten::addbmm": _matmul("batch1", "batch2"),
    "aten::mv": _matmul("self", "vec"),
    "aten::addmv": _matmul("mat", "vec"),
    "aten::dot": _matmul("self", "tensor"),
    "aten::vdot": _matmul("self", "other"),
    "aten::addr": _outer,
    "aten::_int_mm": _matmul("self", "mat2"),
    "aten::_scaled_mm": _matmul("self", "mat2"),
    "aten::_grouped_mm": _grouped_mm,
    "aten::_weight_int8pack_mm": _row_product,
    "aten::_trilinear": _trilinear,
    "aten::linear": _linear,
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::conv_tbc": _convolution_tbc,
    "torchvision::deform_conv2d": _deformable,
    "aten::affine_grid_generator": _affine_grid,
    "aten::cudnn_affine_grid_generator": _affine_grid,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::_flash_attention_forward": _attention_of_tokens,
    "aten::_efficient_attention_forward": _attention_of_tokens,
    "aten::_native_multi_head_attention": _multihead,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
    "aten::_cudnn_rnn": _recurrent,
    "aten::mkldnn_rnn_layer": _recurrent,
    **dict.fromkeys(RECURRENT, _sequence),
}
"""Qualified name of an operator -> MACs of one call; None where they do not follow from shapes."""

SHAPES: dict[str, Callable[[Arguments], Any]] = {
    "aten::_transformer_encoder_layer_fwd": lambda a: torch.empty_like(a["src"]),
    **dict.fromkeys(RECURRENT, _sequence_shapes),
}
"""Results of operators that some supported versions of torch cannot run on the meta device, or run slowly."""


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


FREE = _aten(
    # elementwise
    """ add sub rsub mul div neg abs exp expm1 log log1p log2 sqrt rsqrt pow square sin cos tanh sigmoid relu
    gelu silu hardswish hardsigmoid hardtanh softplus elu leaky_relu mish clamp clamp_min clamp_max
    maximum minimum where masked_fill floor ceil round trunc sign reciprocal erf eq ne lt le gt ge
    logical_not logical_and logical_or bitwise_not bitwise_and isnan isinf remainder fmod floor_divide
    addcmul addcdiv lerp nan_to_num acos acosh angle asin asinh atan atan2 atanh bitwise_left_shift
    bitwise_or bitwise_right_shift bitwise_xor celu _conj_physical conj_physical copysign cosh deg2rad
    rad2deg digamma erfc erfinv exp2 fmax fmin frac frexp gcd lcm hardshrink heaviside hypot i0 igamma
    igammac isneginf isposinf ldexp lgamma log10 logaddexp logaddexp2 logical_xor logit mvlgamma
    nextafter polygamma sgn signbit sinc sinh softshrink tan threshold xlogy special_entr special_erfcx
    special_i0e special_i1 special_i1e special_log_ndtr special_ndtri special_xlog1py special_zeta
    special_bessel_j0 special_bessel_j1 glu rrelu_with_noise _prelu_kernel log_sigmoid_forward complex
    __lshift__ __rshift__ linalg_cross special_airy_ai special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_modified_bessel_i0 special_modified_bessel_i1
    special_modified_bessel_k0 special_modified_bessel_k1 special_bessel_y0 special_bessel_y1
    special_spherical_bessel_j0 special_chebyshev_polynomial_t special_chebyshev_polynomial_u
    special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_hermite_polynomial_h
    special_hermite_polynomial_he special_laguerre_polynomial_l special_legendre_polynomial_p
    polar _weight_norm_interface _masked_scale _transform_bias_rescale_qkv _add_relu quantize_per_tensor
    quantize_per_tensor_dynamic quantize_per_channel dequantize int_repr
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_learnable_per_channel_affine"""
    # reductions and normalisations
    """ sum mean var std var_mean max min amax amin argmax argmin any all prod cumsum logsumexp topk sort
    softmax _softmax _safe_softmax log_softmax _log_softmax native_layer_norm layer_norm
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm
    native_group_norm group_norm linalg_vector_norm norm rms_norm _fused_rms_norm dropout native_dropout
    bernoulli_ uniform_ aminmax _aminmax count_nonzero nansum std_mean linalg__powsum cumprod cummax
    cummin logcumsumexp median nanmedian mode kthvalue trace dist renorm embedding_renorm
    _masked_softmax segment_reduce histc bincount _unique _unique2 unique_dim unique_consecutive
    searchsorted bucketize isin _is_all_true _is_any_true _batch_norm_no_update _batch_norm_with_update
    _native_batch_norm_legit_functional native_norm mse_loss smooth_l1_loss huber_loss soft_margin_loss
    nll_loss_forward nll_loss2d_forward binary_cross_entropy binary_cross_entropy_with_logits
    multi_margin_loss multilabel_margin_loss_forward"""
    # pooling, resizing, padding
    """ max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa pad constant_pad_nd reflection_pad2d replication_pad2d im2col col2im
    grid_sampler_2d grid_sampler_3d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback avg_pool3d
    _adaptive_avg_pool3d adaptive_max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d
    fractional_max_pool2d fractional_max_pool3d upsample_linear1d upsample_nearest1d upsample_nearest3d
    upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_lanczos2d_aa reflection_pad1d reflection_pad3d replication_pad1d replication_pad3d"""
    # shapes, copies, indexing
    """ view _unsafe_view reshape _reshape_alias permute transpose t expand squeeze unsqueeze slice select
    narrow split split_with_sizes unsafe_split unsafe_chunk chunk unbind cat stack flatten unflatten
    contiguous clone copy_ _to_copy to detach alias lift_fresh as_strided flip roll repeat
    repeat_interleave index index_put index_select gather scatter scatter_add take diagonal diag_embed
    tril triu unfold pixel_shuffle pixel_unshuffle channel_shuffle movedim swapaxes view_as_real
    view_as_complex slice_scatter select_scatter masked_select nonzero embedding one_hot diagonal_copy
    diagonal_scatter index_add index_copy index_fill index_reduce scatter_reduce masked_scatter put
    as_strided_scatter rot90 _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate _index_put_impl _stack _chunk_cat block_diag
    unsafe_split_with_sizes nonzero_static copy fill zero set lift _conj _neg_view _embedding_bag
    _embedding_bag_forward_only _pack_padded_sequence to_padded_tensor _lazy_clone resize resize_as
    slice_inverse
    _spdiags"""
    # making tensors
    """ empty empty_like empty_strided new_empty new_empty_strided new_zeros new_ones new_full zeros
    zeros_like ones ones_like full full_like arange linspace eye scalar_tensor fill_ zero_ rand randn meshgrid
    tril_indices triu_indices item _local_scalar_dense empty_permuted logspace range fft_fftfreq
    fft_rfftfreq rand_like randn_like randint randint_like randperm normal normal_ normal_functional
    random_ bernoulli exponential exponential_ multinomial binomial poisson cauchy_ geometric_
    log_normal_ _efficientzerotensor bartlett_window blackman_window hamming_window hann_window
    kaiser_window"""
    # autocast and bookkeeping
    """ sym_size sym_numel is_same_size _assert_async set_"""
) | frozenset(
    {
        "prim::device",
        "prim::layout",
        "torchvision::nms",
        "torchvision::roi_align",
        "torchvision::roi_pool",
        "torchvision::ps_roi_align",
        "torchvision::ps_roi_pool",
    }
)
"""Operators known to do no multiply-accumulate work."""
