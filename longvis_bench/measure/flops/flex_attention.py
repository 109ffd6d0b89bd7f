"""FlexAttention during counting: shapes instead of the kernel, and the density of its block mask.

`torch.nn.attention.flex_attention.flex_attention` does not run on the meta device, so the body of the
function is replaced while a model is counted.  The function object stays, because models refer to it by names
of their own, compiled or not.  The kernel computes whole blocks, those in its `BlockMask`; *density* is their
share of all blocks.  *Dense* MACs are those of attention without a mask, *masked* MACs are dense times
density.

A mask made on the meta device does not say which blocks it has.  Its `mask_mod` is then evaluated on the CPU,
one row of blocks at a time; if that needs tensors without values, the density is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

NAME = "flex_attention"


class FlexCall(NamedTuple):
    """The MACs of one call."""

    dense: int
    """MACs of attention between all queries and keys."""
    density: float | None
    """Share of the blocks that the kernel computes, 0-1; None if unknown."""

    @property
    def masked(self) -> int:
        """MACs of the computed blocks; of all blocks where the density is unknown."""
        return self.dense if self.density is None else round(self.dense * self.density)


_stand_in: Callable[..., Any] | None = None


@contextmanager
def watched(on_call: Callable[[FlexCall, Tensor], None], pause: Callable[[], Any]) -> Iterator[None]:
    """Answer every call of FlexAttention inside by shape, and report its MACs.

    Arguments:
        on_call: receives the MACs of a call and its output.
        pause: a context in which operators are not counted, for the evaluation of masks.
    """
    global _stand_in
    target: Any = flex.flex_attention
    body, defaults, keywords = target.__code__, target.__defaults__, target.__kwdefaults__
    before, _stand_in = _stand_in, lambda *args, **kwargs: _answer(on_call, pause, *args, **kwargs)
    target.__code__, target.__defaults__, target.__kwdefaults__ = _redirect.__code__, None, None
    try:
        yield
    finally:
        target.__code__, target.__defaults__, target.__kwdefaults__ = body, defaults, keywords
        _stand_in = before


def _redirect(*args: Any, **kwargs: Any) -> Any:
    """The body of `flex_attention` while it is watched; it imports because its globals are torch's."""
    from longvis_bench.measure.flops import flex_attention

    return flex_attention._stand_in(*args, **kwargs)  # type: ignore[misc]


def _answer(
    on_call: Callable[[FlexCall, Tensor], None],
    pause: Callable[[], Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: object = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: object = None,
    *,
    return_aux: Any = None,
) -> Any:
    """The result of `flex_attention`, without values."""
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    with pause():
        density = block_density(block_mask)
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
    on_call(FlexCall(pairs * (query.shape[-1] + value.shape[-1]), density), out)
    if return_aux is not None:
        kept = (lse if return_aux.lse else None, lse if return_aux.max_scores else None)
        return out, flex.AuxOutput(*kept)
    return (out, lse) if return_lse else out


def block_density(mask: Any) -> float | None:
    """Share of the blocks of a BlockMask that are computed, 0-1; 1 without a mask, None if unknown."""
    if mask is None:
        return 1.0
    if mask.kv_num_blocks.is_meta:
        return _evaluated_density(mask)
    queries, keys = (
        ceil(length / size) for length, size in zip(mask.seq_lengths, mask.BLOCK_SIZE, strict=True)
    )
    computed = int(mask.kv_num_blocks.sum())
    if mask.full_kv_num_blocks is not None:
        computed += int(mask.full_kv_num_blocks.sum())
    batches = prod(mask.kv_num_blocks.shape[:-1])
    return float(min(computed / (batches * queries * keys), 1.0))


def _evaluated_density(mask: Any) -> float | None:
    """The density from `mask_mod` alone, on the CPU."""
    batch, heads = (*(1, 1), *mask.kv_num_blocks.shape[:-1])[-2:]
    (queries, keys), (rows, columns) = mask.seq_lengths, mask.BLOCK_SIZE
    computed = blocks = 0
    for b in range(batch):
        for h in range(heads):
            for first in range(0, queries, rows):
                row = _row_of_blocks(mask.mask_mod, b, h, range(first, min(first + rows, queries)), keys)
                if row is None:
                    return None
                padded = torch.nn.functional.pad(row, (0, -keys % columns))
                computed += int(padded.view(-1, columns).any(1).sum())
                blocks += padded.numel() // columns
    return computed / blocks


def _row_of_blocks(mask_mod: Callable[..., Tensor], b: int, h: int, rows: range, keys: int) -> Tensor | None:
    """Which keys any of these queries attends to (keys,); None if `mask_mod` cannot be evaluated."""
    where = torch.arange(rows.start, rows.stop, device="cpu")[:, None]
    try:
        seen = mask_mod(
            torch.tensor(b, device="cpu"),
            torch.tensor(h, device="cpu"),
            where,
            torch.arange(keys, device="cpu"),
        )
    except (RuntimeError, NotImplementedError, IndexError):
        return None
    return None if seen.is_meta else seen.expand(len(rows), keys).any(0)
