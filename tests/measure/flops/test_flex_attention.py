"""FlexAttention while counting: density of its block mask, dense and masked counts apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.errors import Unsupported
from longvis_bench.measure.flops.counter import Count, count

BATCH, HEADS, LENGTH, WIDTH = 2, 2, 512, 16
DENSE = BATCH * HEADS * LENGTH * LENGTH * 2 * WIDTH


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q - k).abs() < 64


MODEL = """
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, classes)

    def forward(self, x):
        t = self.embed(x).flatten(2).mT[:, None]
        later = lambda b, h, q, k: q >= k
        mask = create_block_mask(later, None, None, t.shape[2], t.shape[2], device=x.device)
        return self.head(flex_attention(t, t, t, block_mask=mask).mean((1, 2)))

def build(*, resolution, num_classes, in_chans=3):
    return Net(num_classes)
"""


class Flexible(nn.Module):
    """One call of FlexAttention on queries, keys and values of the right shape."""

    def __init__(self, call: Callable[[Tensor, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.call = call

    def forward(self, image: Tensor) -> object:
        q, k, v = (image.new_empty(BATCH, HEADS, LENGTH, WIDTH) for _ in range(3))
        return self.call(q, k, v)


def counted(call: Callable[[Tensor, Tensor, Tensor], object]) -> Count:
    return count(Flexible(call), 8)


def mask_of(mod: Any, device: str, heads: int | None = None) -> BlockMask:
    return create_block_mask(mod, None, heads, LENGTH, LENGTH, device=device)


def test_without_a_mask_it_is_dense() -> None:
    result = counted(lambda q, k, v: flex_attention(q, k, v))
    assert result.macs == DENSE
    assert result.by_operator == {"flex_attention": DENSE}
    assert result.coverage == 1.0


# Of 4 x 4 blocks of 128: the lower triangle; the diagonal and its neighbours.
@pytest.mark.parametrize(("mod", "blocks"), [(causal, 10), (near, 10)])
@pytest.mark.parametrize("made", ["cpu", "meta", "meta, in the forward"])
def test_the_mask_thins_it_out(mod: Any, blocks: int, made: str) -> None:
    mask = mask_of(mod, made[:4].rstrip(",")) if "forward" not in made else None
    result = counted(lambda q, k, v: flex_attention(q, k, v, block_mask=mask or mask_of(mod, "meta")))
    (call,) = result.ledger.flex
    assert call.dense == DENSE
    assert call.density == blocks / 16
    assert call.masked == result.macs == DENSE * blocks // 16


def test_density_from_the_mask_function_equals_the_density_of_the_mask() -> None:
    """On lengths that fill no whole block, with heads of their own."""
    from longvis_bench.measure.flops.flex_attention import block_density

    def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((q - k).abs() < 40 * (h + 1)) | (k < 3)

    options: dict[str, Any] = {"B": 1, "H": 3, "Q_LEN": 700, "KV_LEN": 900, "BLOCK_SIZE": 64}
    known = block_density(create_block_mask(mod, device="cpu", **options))
    assert known is not None
    assert 0.1 < known < 0.9
    assert block_density(create_block_mask(mod, device="meta", **options)) == pytest.approx(known)


# Older torch imports what it has deprecated, once something is compiled.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_every_form_of_calling_it(compiled: bool) -> None:
    call: Any = torch.compile(flex_attention) if compiled else flex_attention
    mask = mask_of(causal, "cpu")
    assert counted(lambda q, k, v: call(query=q, key=k, value=v, block_mask=mask)).macs == DENSE * 10 // 16
    assert counted(lambda q, k, v: call(q, k, v, lambda s, *_: s * 2)).macs == DENSE
    assert counted(lambda q, k, v: call(q, k[:, :1], v[:, :1], enable_gqa=True)).macs == DENSE


def test_statistics_have_their_shapes() -> None:
    seen: list[Any] = []
    counted(lambda q, k, v: seen.append(flex_attention(q, k, v[..., :3], return_aux=AuxRequest(lse=True))))
    out, aux = seen[0]
    assert out.shape == (BATCH, HEADS, LENGTH, 3)
    assert aux.lse.shape == (BATCH, HEADS, LENGTH)
    assert aux.max_scores is None


def test_a_mask_that_needs_values_counts_as_dense_and_says_so() -> None:
    documents = torch.zeros(LENGTH, dtype=torch.long, device="meta")

    def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return documents[q] == documents[k]

    result = counted(lambda q, k, v: flex_attention(q, k, v, block_mask=mask_of(mod, "meta")))
    assert result.ledger.flex[0].density is None
    assert result.macs == DENSE


def test_the_command_names_both_counts(tmp_path: Path) -> None:
    (tmp_path / "flexible.py").write_text(MODEL)
    shown = CliRunner().invoke(app, ["flops", f"{tmp_path / 'flexible.py'}:build", "--res", "64"]).output
    words = " ".join(shown.split())
    assert "flex_attention 1 " in words
    assert "FlexAttention: 1 call; 1.57 M MACs masked" in words
    assert "2.10 M MACs dense; 0 masks of unknown density" in words
    assert "fvcore cannot trace this model at 64 px" in words


def test_afterwards_it_is_the_kernel_again() -> None:
    q = torch.randn(1, 1, 16, 8)
    counted(lambda q, k, v: flex_attention(q, k, v))
    with pytest.raises(Unsupported):
        counted(lambda q, k, v: _refuse(flex_attention(q, k, v)))
    with pytest.raises(ValueError, match="meta"):
        flex_attention(q.to("meta"), q.to("meta"), q.to("meta"))


def _refuse(_: object) -> None:
    raise NotImplementedError("planted")
