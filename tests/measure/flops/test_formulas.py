"""Every formula against the products it stands for, on every torch: direct calls, all calling forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longvis_bench.measure.flops import formulas
from longvis_bench.measure.flops.counter import Count, count

aten = torch.ops.aten
BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 4, 16, 24, 8
PAIRS = BATCH * HEADS * QUERIES * KEYS
ATTENTION = PAIRS * 2 * WIDTH


class Calling(nn.Module):
    """A model that is one call, whatever its image."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self.call = call

    def forward(self, image: Tensor) -> object:
        return self.call()


def counted(call: Callable[[], object]) -> Count:
    return count(Calling(call), 8)


def e(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def qkv(dtype: torch.dtype = torch.float32, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    return (
        e(BATCH, HEADS, QUERIES, WIDTH, dtype=dtype),
        e(BATCH, heads, KEYS, WIDTH, dtype=dtype),
        e(BATCH, heads, KEYS, WIDTH, dtype=dtype),
    )


def named(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Any]:
    return {"query": query, "key": key, "value": value}


def unfused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT).softmax(-1) @ value


def with_einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", query, key), value)


def tokens_first(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(t.transpose(1, 2) for t in qkv(dtype))


SDPA = F.scaled_dot_product_attention
MASK = (QUERIES, KEYS)

ATTENTIONS: dict[str, Callable[[], object]] = {
    "positional": lambda: SDPA(*qkv()),
    "keywords": lambda: SDPA(**named(*qkv())),
    "bf16": lambda: SDPA(*qkv(torch.bfloat16)),
    "causal": lambda: SDPA(*qkv(), is_causal=True),
    "float mask": lambda: SDPA(*qkv(), attn_mask=e(*MASK)),
    "bool mask": lambda: SDPA(*qkv(), attn_mask=e(*MASK, dtype=torch.bool)),
    "scale and dropout": lambda: SDPA(*qkv(), dropout_p=0.1, scale=2.0),
    "grouped queries": lambda: SDPA(*qkv(heads=2), enable_gqa=True),
    "composite operator": lambda: aten.scaled_dot_product_attention(*qkv()),
    "math": lambda: aten._scaled_dot_product_attention_math(*qkv()),
    "mps": lambda: aten._scaled_dot_product_attention_math_for_mps(*qkv()),
    "flash": lambda: aten._scaled_dot_product_flash_attention(*qkv(torch.float16)),
    "flash, keywords": lambda: aten._scaled_dot_product_flash_attention(**named(*qkv(torch.float16))),
    "flash, forward": lambda: aten._flash_attention_forward(
        *tokens_first(torch.float16), None, None, QUERIES, KEYS, 0.0, False, False
    ),
    "flash, cpu": lambda: aten._scaled_dot_product_flash_attention_for_cpu(*qkv()),
    "flash, cpu, keywords": lambda: aten._scaled_dot_product_flash_attention_for_cpu(
        **named(*qkv()), is_causal=True
    ),
    "efficient": lambda: aten._scaled_dot_product_efficient_attention(*qkv(), None, True),
    "efficient, forward": lambda: aten._efficient_attention_forward(
        *tokens_first(), None, None, None, QUERIES, KEYS, 0.0, 0, False
    ),
    "cudnn": lambda: aten._scaled_dot_product_cudnn_attention(*qkv(torch.float16), None, True),
    "overrideable": lambda: aten._scaled_dot_product_fused_attention_overrideable(*qkv()),
    "unfused": lambda: unfused(*qkv()),
    "einsum": lambda: with_einsum(*qkv()),
}


@pytest.mark.parametrize("form", ATTENTIONS)
def test_attention_counts_alike_however_it_is_called(form: str) -> None:
    result = counted(ATTENTIONS[form])
    assert result.macs == ATTENTION
    assert result.coverage == 1.0


@pytest.mark.parametrize("form", ["positional", "keywords", "causal", "grouped queries", "bf16"])
def test_attention_counts_alike_in_inference_mode(form: str) -> None:
    def call() -> object:
        with torch.inference_mode():
            return ATTENTIONS[form]()

    assert counted(call).macs == ATTENTION


def test_values_may_be_wider_than_keys() -> None:
    q, k, _ = qkv()
    assert counted(lambda: SDPA(q, k, e(BATCH, HEADS, KEYS, 3))).macs == PAIRS * (WIDTH + 3)


def test_sequences_of_several_lengths_are_unknown_not_guessed() -> None:
    starts = e(3, dtype=torch.int32)
    q, k, v = (e(40, HEADS, WIDTH, dtype=torch.float16) for _ in range(3))
    call = lambda: aten._flash_attention_forward(q, k, v, starts, starts, 20, 20, 0.0, False, False)  # noqa: E731
    assert list(counted(call).ledger.unknown) == ["aten::_flash_attention_forward"]


A, B = (5, 6), (6, 7)
I8 = torch.int8
PRODUCTS: dict[str, tuple[Callable[[], object], int]] = {
    "mm": (lambda: torch.mm(e(*A), e(*B)), 5 * 6 * 7),
    "mm, keywords": (lambda: torch.mm(input=e(*A), mat2=e(*B)), 5 * 6 * 7),
    "mm, out": (lambda: torch.mm(e(*A), e(*B), out=e(5, 7)), 5 * 6 * 7),
    "bmm": (lambda: torch.bmm(e(2, *A), e(2, *B)), 2 * 5 * 6 * 7),
    "matmul": (lambda: e(3, 2, *A) @ e(2, *B), 6 * 5 * 6 * 7),
    "vector by matrix": (lambda: e(6) @ e(*B), 6 * 7),
    "inner": (lambda: torch.inner(e(*A), e(7, 6)), 5 * 6 * 7),
    "tensordot": (lambda: torch.tensordot(e(2, 5, 6), e(6, 5, 7), dims=([2, 1], [0, 1])), 2 * 30 * 7),
    "multi_dot": (lambda: torch.linalg.multi_dot([e(*A), e(*B), e(7, 8)]), 5 * 6 * 7 + 5 * 7 * 8),
    "einsum": (lambda: torch.einsum("bij,bjk->bik", e(2, *A), e(2, *B)), 2 * 5 * 6 * 7),
    "einsum of three": (lambda: torch.einsum("ij,jk,kl->il", e(*A), e(*B), e(7, 8)), 5 * 6 * 7 + 5 * 7 * 8),
    "addmm": (lambda: torch.addmm(e(7), e(*A), e(*B)), 5 * 6 * 7),
    "addmm in place": (lambda: e(5, 7).addmm_(e(*A), e(*B)), 5 * 6 * 7),
    "addmm activation": (lambda: aten._addmm_activation(e(7), e(*A), e(*B)), 5 * 6 * 7),
    "baddbmm": (lambda: torch.baddbmm(e(2, 5, 7), e(2, *A), e(2, *B)), 2 * 5 * 6 * 7),
    "addbmm": (lambda: torch.addbmm(e(5, 7), e(2, *A), e(2, *B)), 2 * 5 * 6 * 7),
    "mv": (lambda: torch.mv(e(*A), e(6)), 5 * 6),
    "addmv": (lambda: torch.addmv(e(5), e(*A), e(6)), 5 * 6),
    "dot": (lambda: torch.dot(e(6), e(6)), 6),
    "vdot": (lambda: torch.vdot(e(6), e(6)), 6),
    "addr": (lambda: torch.addr(e(3, 4), e(3), e(4)), 12),
    "int8": (lambda: torch._int_mm(e(32, 64, dtype=I8), e(64, 8, dtype=I8)), 32 * 64 * 8),
    "int8 weights": (
        lambda: aten._weight_int8pack_mm(
            e(4, 8, dtype=torch.bfloat16), e(6, 8, dtype=I8), e(6, dtype=torch.bfloat16)
        ),
        4 * 8 * 6,
    ),
    "float8": (
        lambda: torch._scaled_mm(
            e(32, 64, dtype=torch.float8_e4m3fn),
            e(16, 64, dtype=torch.float8_e4m3fn).t(),
            scale_a=e(),
            scale_b=e(),
            out_dtype=torch.bfloat16,
        ),
        32 * 64 * 16,
    ),
    "grouped": (
        lambda: torch._grouped_mm(e(2, 16, 24, dtype=torch.bfloat16), e(2, 8, 24, dtype=torch.bfloat16).mT),
        2 * 16 * 24 * 8,
    ),
    "linear": (lambda: F.linear(e(2, 3, 6), e(7, 6)), 2 * 3 * 6 * 7),
    "linear with bias": (lambda: F.linear(e(2, 3, 6), e(7, 6), e(7)), 2 * 3 * 6 * 7),
    "linear operator": (lambda: aten.linear(e(2, 3, 6), e(7, 6), e(7)), 2 * 3 * 6 * 7),
    "bilinear": (lambda: F.bilinear(e(2, 5), e(2, 6), e(3, 5, 6)), 2 * 3 * 5 * 6),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("mode", ["no grad", "inference"])
def test_matrix_products(name: str, mode: str) -> None:
    call, macs = PRODUCTS[name]

    def inferring() -> object:
        with torch.inference_mode():
            return call()

    result = counted(inferring if mode == "inference" else call)
    assert result.macs == macs
    assert result.coverage == 1.0


CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], int]] = {
    "1d": (nn.Conv1d, (4, 9), {}, 7 * 8 * 4 * 3),
    "2d": (nn.Conv2d, (4, 9, 9), {}, 49 * 8 * 4 * 9),
    "3d": (nn.Conv3d, (4, 9, 9, 9), {}, 343 * 8 * 4 * 27),
    "stride": (nn.Conv2d, (4, 9, 9), {"stride": 2}, 16 * 8 * 4 * 9),
    "dilated": (nn.Conv2d, (4, 9, 9), {"dilation": 2}, 25 * 8 * 4 * 9),
    "grouped": (nn.Conv2d, (4, 9, 9), {"groups": 2}, 49 * 8 * 2 * 9),
    "depthwise": (nn.Conv2d, (4, 9, 9), {"groups": 4}, 49 * 8 * 1 * 9),
    "same": (nn.Conv2d, (4, 9, 9), {"padding": "same"}, 81 * 8 * 4 * 9),
    "same, dilated": (nn.Conv2d, (4, 9, 9), {"padding": "same", "dilation": 3}, 81 * 8 * 4 * 9),
    "same, 1d": (nn.Conv1d, (4, 9), {"padding": "same"}, 9 * 8 * 4 * 3),
    "same, 3d": (nn.Conv3d, (4, 5, 5, 5), {"padding": "same"}, 125 * 8 * 4 * 27),
    "reflected": (nn.Conv2d, (4, 9, 9), {"padding": 1, "padding_mode": "reflect"}, 81 * 8 * 4 * 9),
    "circular": (nn.Conv1d, (4, 9), {"padding": 1, "padding_mode": "circular"}, 9 * 8 * 4 * 3),
    "not square": (nn.Conv2d, (4, 9, 12), {"kernel": (1, 5)}, 9 * 8 * 8 * 4 * 5),
    "transposed, 1d": (nn.ConvTranspose1d, (4, 9), {}, 9 * 4 * 8 * 3),
    "transposed": (nn.ConvTranspose2d, (4, 9, 9), {"stride": 2}, 81 * 4 * 8 * 9),
    "transposed, grouped": (nn.ConvTranspose2d, (4, 9, 9), {"groups": 2}, 81 * 4 * 4 * 9),
    "transposed, dilated, 3d": (nn.ConvTranspose3d, (4, 3, 3, 3), {"dilation": 2}, 27 * 4 * 8 * 27),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("mode", ["no grad", "inference"])
@pytest.mark.parametrize("batch", [True, False])
def test_convolutions(name: str, mode: str, batch: bool) -> None:
    kind, shape, options, macs = CONVOLUTIONS[name]
    options = dict(options)
    layer = kind(shape[0], 8, options.pop("kernel", 3), device="meta", **options)

    def call() -> object:
        with torch.inference_mode(mode == "inference"):
            return layer(e(1, *shape) if batch else e(*shape))

    result = counted(call)
    assert result.macs == macs
    assert result.coverage == 1.0


def test_convolution_with_time_first() -> None:
    assert counted(lambda: torch.conv_tbc(e(9, 2, 3), e(5, 3, 4), e(4))).macs == 5 * 2 * 4 * 5 * 3


DIM, TOKENS = 16, 5
PROJECTIONS = 2 * TOKENS * DIM * DIM * 4
SELF_ATTENTION = 2 * TOKENS * TOKENS * DIM * 2
MLP = 2 * TOKENS * DIM * 32 * 2


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention(need_weights: bool, training: bool) -> None:
    layer = nn.MultiheadAttention(DIM, 4, batch_first=True, device="meta").train(training)
    x = e(2, TOKENS, DIM)
    assert counted(lambda: layer(x, x, x, need_weights=need_weights)).macs == PROJECTIONS + SELF_ATTENTION


def test_cross_attention_of_several_widths() -> None:
    layer = nn.MultiheadAttention(DIM, 4, batch_first=True, kdim=6, vdim=7, device="meta").eval()
    macs = 2 * (TOKENS * DIM * DIM * 2 + 9 * DIM * (6 + 7) + TOKENS * 9 * DIM * 2)
    assert counted(lambda: layer(e(2, TOKENS, DIM), e(2, 9, 6), e(2, 9, 7))).macs == macs


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_transformer_encoder(padded: bool, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(DIM, 4, 32, batch_first=True, norm_first=norm_first, device="meta")
    encoder = nn.TransformerEncoder(layer, 3).eval()
    mask = e(2, TOKENS, dtype=torch.bool) if padded else None
    result = counted(lambda: encoder(e(2, TOKENS, DIM), src_key_padding_mask=mask))
    assert result.macs == 3 * (PROJECTIONS + SELF_ATTENTION + MLP)
    assert result.coverage == 1.0


def test_counting_leaves_the_fast_path_as_it_was() -> None:
    counted(lambda: None)
    assert torch.backends.mha.get_fastpath_enabled()


def _fused_layer() -> object:
    d = DIM
    weights = (e(3 * d, d), e(3 * d), e(d, d), e(d), False, False, 1e-5, e(d), e(d), e(d), e(d))
    return aten._transformer_encoder_layer_fwd(
        e(2, TOKENS, d), d, 4, *weights, e(32, d), e(32), e(d, 32), e(d)
    )


def test_fused_operators_of_the_fast_path() -> None:
    x, d = e(2, TOKENS, DIM), DIM
    attention = lambda: aten._native_multi_head_attention(  # noqa: E731
        x, x, x, d, 4, e(3 * d, d), e(3 * d), e(d, d), e(d)
    )
    assert counted(attention).macs == PROJECTIONS + SELF_ATTENTION
    assert counted(_fused_layer).macs == PROJECTIONS + SELF_ATTENTION + MLP


WIDE = 16
RECURRENT: dict[str, tuple[nn.Module, int]] = {
    "LSTM": (nn.LSTM(8, WIDE), 4 * WIDE * (8 + WIDE)),
    "LSTM, both ways, two layers": (
        nn.LSTM(8, WIDE, 2, bidirectional=True),
        2 * 4 * WIDE * (8 + WIDE) + 2 * 4 * WIDE * (2 * WIDE + WIDE),
    ),
    "LSTM, projected": (nn.LSTM(8, WIDE, proj_size=4), 4 * WIDE * (8 + 4) + 4 * WIDE),
    "GRU": (nn.GRU(8, WIDE), 3 * WIDE * (8 + WIDE)),
    "RNN": (nn.RNN(8, WIDE), WIDE * (8 + WIDE)),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("mode", ["no grad", "inference"])
def test_recurrent_layers(name: str, mode: str) -> None:
    layer, per_token = RECURRENT[name]
    layer = layer.to("meta")

    def call() -> object:
        with torch.inference_mode(mode == "inference"):
            return layer(e(5, 2, 8))

    result = counted(call)
    assert result.macs == 5 * 2 * per_token
    assert result.coverage == 1.0


def test_recurrent_cells() -> None:
    lstm, gru = nn.LSTMCell(8, WIDE, device="meta"), nn.GRUCell(8, WIDE, device="meta")
    assert counted(lambda: lstm(e(2, 8))).macs == 2 * 4 * WIDE * (8 + WIDE)
    assert counted(lambda: gru(e(2, 8))).macs == 2 * 3 * WIDE * (8 + WIDE)


def _cudnn_lstm() -> object:
    weights = [e(4 * WIDE, 8), e(4 * WIDE, WIDE), e(4 * WIDE), e(4 * WIDE)]
    state = (e(1, 2, WIDE), e(1, 2, WIDE))
    return aten._cudnn_rnn(
        e(5, 2, 8), weights, 4, None, *state, 2, WIDE, 0, 1, False, 0.0, False, False, [], None
    )


def _onednn_lstm() -> object:
    weights = (e(4 * WIDE, 8), e(4 * WIDE, WIDE), e(4 * WIDE), e(4 * WIDE))
    options: tuple[Any, ...] = (False, [], 2, WIDE, 1, True, False, False, False)
    return aten.mkldnn_rnn_layer(e(5, 2, 8), *weights, e(2, WIDE), e(2, WIDE), *options)


@pytest.mark.parametrize("call", [_cudnn_lstm, _onednn_lstm])
def test_fused_recurrent_operators(call: Callable[[], object]) -> None:
    assert counted(call).macs == 5 * 2 * 4 * WIDE * (8 + WIDE)


def test_writing_in_place_costs_the_same() -> None:
    x = e(3)
    result = counted(lambda: x.add_(1).tanh_().mul_(2))
    assert result.ledger.free == {"aten::add_": 1, "aten::tanh_": 1, "aten::mul_": 1}


def test_no_operator_is_on_two_lists() -> None:
    assert not formulas.FREE & set(formulas.FORMULAS)
    assert formulas.SCAN not in formulas.FREE
