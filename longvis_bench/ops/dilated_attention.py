"""Dilated attention of LongNet (arXiv:2307.02486, section 3.2), as LongViT (arXiv:2312.03558) uses it.

A *branch* is a segment length and a dilation ratio r.  It cuts the sequence into segments; within a segment,
head h sees only the tokens whose position is congruent to its residue modulo r, and these attend to each
other.  Consecutive groups of ceil(heads / r) heads share a residue.  The branches' outputs are mixed per
token and head,

    O = sum_i w_i O_i      w_i = exp(lse_i) / sum_j exp(lse_j)

where lse_i is the logarithm of branch i's softmax denominator.  With differentiable weights this is softmax
attention over the union of the branches' keys (a key that two branches share counts twice).

This module follows the authors' code in the following, unless an option says otherwise:

- Sequences that do not fill their segments, and segments whose length r does not divide, are padded with zero
  queries, keys and values.  The padding is attended like tokens: it adds exp(0) to the denominator.
- Where r does not divide the segment length, the segments' outputs are joined with the padding between them.
  From the second segment on, outputs land at later positions than their queries, after the outputs of padded
  queries, and the last outputs are cut off (`Branch.joined`).
- An output whose denominator is exactly 1 counts as not covered, e.g. that of a padded query that sees only
  itself.
- `mask_padding=True` reverses these three: padding is neither attended nor joined.
- The weights w_i carry no gradient, unless `differentiable_mixing=True`.
- Where r does not divide the number of heads, only ceil(heads / ceil(heads / r)) of the r residues are seen.
- The output of a token and head that no branch covers is zero.

Shapes: query, key, value (batch, tokens, heads, channels per head).  `reference` is the slow form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvis_bench.ops.kernel_trace import ATTENTION, note
from longvis_bench.ops.planned_gpu import planned_kernel

aten = torch.ops.aten

FLASH_CHANNELS = 8
"""torch's flash operator needs channels per head in multiples of this.  `can_use_flash_attention` does not
check it, because `F.scaled_dot_product_attention` pads."""
UNCOVERED = -1e8
"""The lse of a branch that does not cover a token; its weight, exp of this, is zero."""


class Branch(NamedTuple):
    """The layout of one segment length and dilation ratio for a number of tokens and heads."""

    segments: int
    segment: int
    """Tokens per segment, at most those of the sequence."""
    ratio: int
    group: int
    """Heads that share a residue."""

    @classmethod
    def of(cls, tokens: int, heads: int, segment_length: int, ratio: int) -> Branch:
        """The layout of a branch for a sequence."""
        segment = min(segment_length, tokens)
        return cls(ceil(tokens / segment), segment, ratio, ceil(heads / ratio))

    @property
    def seen(self) -> int:
        """Tokens per segment that one head sees, padding included."""
        return ceil(self.segment / self.ratio)

    def is_padded(self, tokens: int) -> bool:
        """Whether some of the tokens that the branch sees are padding."""
        return self.segments * self.segment != tokens or self.seen * self.ratio != self.segment

    @property
    def joined(self) -> Branch:
        """The layout in which the authors' code joins outputs: segments of their padded length."""
        return self._replace(segment=self.seen * self.ratio)


def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_length: Sequence[int],
    dilated_ratio: Sequence[int],
    *,
    mask_padding: bool = False,
    differentiable_mixing: bool = False,
) -> Tensor:
    """Attend in every branch and mix the outputs.

    Arguments:
        query, key, value: (batch, tokens, heads, channels).
        segment_length: tokens per segment, one value per branch.
        dilated_ratio: a head sees every n-th token, one n per branch.
        mask_padding: leave padding out of the softmax and out of the joined segments.
        differentiable_mixing: let gradients flow through the mixing weights.

    Returns:
        (batch, tokens, heads, channels).
    """
    tokens, heads = query.shape[1:3]
    branches = [Branch.of(tokens, heads, s, r) for s, r in zip(segment_length, dilated_ratio, strict=True)]
    out: Tensor = _DilatedAttention.apply(query, key, value, branches, mask_padding, differentiable_mixing)
    return out


class _DilatedAttention(torch.autograd.Function):
    """One branch after the other, with one gather and one scatter each; saves only what the backward needs.

    The backward of a branch is flash attention's, dS = P (dO V^T - rowsum(dO O_i)) with dO weighted by w_i.
    With the mixture O in place of the branch's O_i, the same formula includes the gradient through the
    weights, because w_i P_i is the softmax over all branches' keys.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        branches: list[Branch],
        mask_padding: bool,
        differentiable_mixing: bool,
    ) -> Tensor:
        attended, lses = [], []
        for branch in branches:
            out, lse = _attend_branch(query, key, value, branch, mask_padding)
            attended.append(out)
            lses.append(lse)
        layouts = branches if mask_padding else [branch.joined for branch in branches]
        counted = lses if mask_padding else [_counted(lse) for lse in lses]
        mixed_lse, mixed = _mixed_lse(counted, layouts, query.shape[1]), None
        keep = any(ctx.needs_input_grad) and not differentiable_mixing
        for i, (layout, lse) in enumerate(zip(layouts, counted, strict=True)):
            weight = _weight(lse, mixed_lse, layout).to(query.dtype)
            mixed = _mix(mixed, attended[i], weight, layout, query.shape[1])
            if not keep:
                attended[i] = mixed  # frees the branch's own output
        assert mixed is not None
        ctx.options = (branches, mask_padding, differentiable_mixing)
        kept = attended if keep else [mixed]
        ctx.save_for_backward(query, key, value, mixed_lse, *lses, *kept)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        branches, mask_padding, differentiable_mixing = ctx.options
        query, key, value, mixed_lse, *rest = ctx.saved_tensors
        lses, kept = rest[: len(branches)], rest[len(branches) :]
        gradients: list[Tensor | None] = [None, None, None]
        for i, (branch, lse) in enumerate(zip(branches, lses, strict=True)):
            q, k, v = (gather(t, branch) for t in (query, key, value))
            layout, counted = (branch, lse) if mask_padding else (branch.joined, _counted(lse))
            out = gather(kept[0], layout) if differentiable_mixing else kept[i]
            d_out = gather(grad, layout) * _weight(counted, mixed_lse, layout).to(grad.dtype)
            bias = _bias(query, branch) if mask_padding else None
            for j, part in enumerate(attend_backward(d_out, q, k, v, out, lse, bias)):
                gradients[j] = accumulate(gradients[j], part, branch, query.shape[1])
        return (*gradients, None, None, None)


def _attend_branch(
    query: Tensor, key: Tensor, value: Tensor, branch: Branch, mask_padding: bool
) -> tuple[Tensor, Tensor]:
    """Output (batch * segments, heads, tokens seen, channels) and denominators of one branch.

    With a single segment, its groups of heads become the kernel's batch, and no data is moved.
    """
    batch, tokens, heads = query.shape[:3]
    whole = heads % branch.group == 0 and not branch.is_padded(tokens)
    if batch * branch.segments == 1 and whole:
        q, k, v = (_groups(_cells(t, branch), branch)[0] for t in (query, key, value))
        out, lse = attend(q, k, v)
        return out.flatten(0, 1)[None], lse.flatten(0, 1)[None]
    q, k, v = (gather(t, branch) for t in (query, key, value))
    return attend(q, k, v, _bias(query, branch) if mask_padding else None)


def _mix(mixed: Tensor | None, seen: Tensor, weight: Tensor, branch: Branch, tokens: int) -> Tensor:
    """Add a branch's weighted output to the mixture so far, in one pass where there is no padding."""
    if branch.is_padded(tokens):
        return accumulate(mixed, seen * weight, branch, tokens)
    rows, heads, _, channels = seen.shape
    if mixed is None:
        mixed = seen.new_zeros(rows // branch.segments, tokens, heads, channels)
    cells = _cells(mixed, branch)
    shares = (share for _, share in _seen(cells, weight, branch))
    for (view, part), share in zip(_seen(cells, seen, branch), shares, strict=True):
        view.addcmul_(part, share)
    return mixed


def _counted(lse: Tensor) -> Tensor:
    """The logarithms of the denominators as the authors' code uses them in the mixture."""
    return lse.masked_fill(lse == 0, UNCOVERED)


def _weight(lse: Tensor, mixed_lse: Tensor, branch: Branch) -> Tensor:
    """The mixing weights of a branch, in its layout: (batch * segments, heads, tokens seen, 1).

    The weight of an output that lands on no token is zero.
    """
    return torch.exp(lse[..., : branch.seen, None] - gather(mixed_lse, branch, torch.inf))


def gather(dense: Tensor, branch: Branch, fill: float = 0.0) -> Tensor:
    """What each head of a branch sees.

    Arguments:
        dense: (batch, tokens, heads, channels).
        fill: value of the padding.

    Returns:
        (batch * segments, heads, tokens seen, channels); a view where no data has to move.
    """
    cells = _cells(_pad(dense, branch, fill), branch)
    if branch.ratio == 1:
        return cells[:, :, 0].transpose(1, 2)
    heads, channels = dense.shape[2:]
    seen = dense.new_empty(cells.shape[0], heads, branch.seen, channels)
    for view, part in _seen(cells, seen, branch):
        part.copy_(view)
    return seen


def accumulate(dense: Tensor | None, seen: Tensor, branch: Branch, tokens: int) -> Tensor:
    """Add the outputs of a branch's heads at the tokens they saw: the transpose of `gather`.

    Arguments:
        dense: the sum so far (batch, tokens, heads, channels), contiguous; None for the first branch.
        seen: (batch * segments, heads, tokens seen, channels).

    Returns:
        The sum: `dense` itself, or a new contiguous tensor, which may share the memory of `seen`.
    """
    if dense is None or branch.is_padded(tokens):
        part = scatter(seen, branch, tokens, 0.0)
        return part.contiguous() if dense is None else dense.add_(part)
    for view, part in _seen(_cells(dense, branch), seen, branch):
        view.add_(part)
    return dense


def scatter(seen: Tensor, branch: Branch, tokens: int, fill: float) -> Tensor:
    """Put the outputs of a branch's heads at the tokens they saw, and `fill` everywhere else.

    Arguments:
        seen: (batch * segments, heads, tokens seen, channels).

    Returns:
        (batch, tokens, heads, channels).
    """
    rows, heads, _, channels = seen.shape
    if branch.ratio == 1 and not branch.is_padded(tokens):
        return seen.transpose(1, 2).reshape(-1, tokens, heads, channels)
    cells = seen.new_full((rows, branch.seen, branch.ratio, heads, channels), fill)
    for view, part in _seen(cells, seen, branch):
        view.copy_(part)
    segments = cells.flatten(1, 2)[:, : branch.segment]
    return segments.reshape(rows // branch.segments, -1, heads, channels)[:, :tokens]


def _pad(dense: Tensor, branch: Branch, fill: float) -> Tensor:
    """(batch, tokens, heads, channels) -> (batch * segments, ratio * tokens seen, heads, channels)."""
    batch, tokens, heads, channels = dense.shape
    missing = branch.segments * branch.segment - tokens
    if missing:
        dense = F.pad(dense, (0, 0, 0, 0, 0, missing), value=fill)
    segments = dense.reshape(batch * branch.segments, branch.segment, heads, channels)
    short = branch.seen * branch.ratio - branch.segment
    return F.pad(segments, (0, 0, 0, 0, 0, short), value=fill) if short else segments


def _cells(segments: Tensor, branch: Branch) -> Tensor:
    """A view of whole segments as (batch * segments, tokens seen, ratio, heads, channels)."""
    heads, channels = segments.shape[-2:]
    return segments.view(-1, branch.seen, branch.ratio, heads, channels)


def _seen(cells: Tensor, seen: Tensor, branch: Branch) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the same elements in both layouts: whole groups of heads at once, then the rest.

    Arguments:
        cells: (segments, tokens seen, ratio, heads, channels).
        seen: (segments, heads, tokens seen, channels).
    """
    heads = seen.shape[1]
    whole = heads // branch.group
    split = whole * branch.group
    yield _groups(cells, branch), torch.unflatten(seen[:, :split], 1, (whole, branch.group))
    if split < heads:
        yield cells[:, :, whole, split:].transpose(1, 2), seen[:, split:]


def _groups(cells: Tensor, branch: Branch) -> Tensor:
    """What whole groups of heads see, a view: (segments, groups, heads per group, tokens seen, channels)."""
    whole = cells.shape[3] // branch.group
    groups = torch.unflatten(cells[:, :, :whole, : whole * branch.group], 3, (whole, branch.group))
    return groups.diagonal(dim1=2, dim2=3).permute(0, 4, 2, 1, 3)


def _mixed_lse(lses: list[Tensor], branches: list[Branch], tokens: int) -> Tensor:
    """Logarithm of the sum of all branches' denominators: (batch, tokens, heads, 1)."""
    dense = [
        scatter(lse[..., : branch.seen, None], branch, tokens, UNCOVERED)
        for lse, branch in zip(lses, branches, strict=True)
    ]
    return torch.logsumexp(torch.stack(dense), dim=0)


def _bias(query: Tensor, branch: Branch) -> Tensor | None:
    """0 where a key is a token, -inf where it is padding: (batch * segments, heads, 1, tokens seen).

    Rows of padding alone keep their first key: their queries are padding as well, and must stay finite.
    """
    batch, tokens, heads = query.shape[:3]
    if not branch.is_padded(tokens):
        return None
    real = query.new_ones(1, tokens, heads, 1)
    keys = gather(real, branch).squeeze(-1)
    keys[..., 0] = 1
    bias = torch.zeros_like(keys).masked_fill_(keys == 0, -torch.inf)
    return bias.repeat(batch, 1, 1)[:, :, None]


def kernel_for(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> str:
    """Name of the kernel for these tensors: torch's flash or memory-efficient one, else matrix products.

    The meta device counts as the CPU.
    """
    if query.device.type in ("cpu", "meta"):
        return "flash-cpu"
    if query.device.type == "cuda" and bias is None:
        planned = planned_kernel(query, key, value, padded=False)
        if planned is not None:
            note(ATTENTION, planned)
            return planned
        params = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, False)
        if query.shape[-1] % FLASH_CHANNELS == 0 and torch.backends.cuda.can_use_flash_attention(params):
            return "flash"
        if torch.backends.cuda.can_use_efficient_attention(params):
            return "efficient"
    return "math"


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax attention that also returns its denominators.

    Arguments:
        query, key, value: (batch, heads, tokens, channels).
        bias: added to the logits, broadcast over queries: (batch, heads, 1, tokens).

    Returns:
        The output, and the logarithms of the denominators (batch, heads, tokens or more: some kernels pad).
    """
    kernel = kernel_for(query, key, value, bias)
    if kernel == "flash-cpu":
        mask = None if bias is None else bias.expand(-1, -1, query.shape[2], -1)
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask)
    elif kernel == "flash":
        out, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value)
    elif kernel == "efficient":
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
    else:
        note(ATTENTION, "math")
        logits = _logits(query, key, bias)
        lse = torch.logsumexp(logits, dim=-1)
        out = torch.exp(logits - lse[..., None]).to(value.dtype) @ value
    return out, lse


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from the gradient of `attend`'s output.

    `out` enters only through rowsum(grad * out): see `_DilatedAttention`.
    """
    kernel, given = kernel_for(query, key, value, bias), (grad, query, key, value)
    if kernel == "flash-cpu":
        mask = None if bias is None else bias.expand(-1, -1, query.shape[2], -1)
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *given, out, lse, 0.0, False, attn_mask=mask
        )
    elif kernel == "flash":
        sizes, seed = (query.shape[2], key.shape[2]), torch.empty(2, dtype=torch.uint64, device=query.device)
        gradients = aten._scaled_dot_product_flash_attention_backward(
            *given, out, lse, None, None, *sizes, 0.0, False, seed, seed
        )
    elif kernel == "efficient":
        seed = torch.empty((), dtype=torch.int64, device=query.device)
        wanted = [True, True, True, False]
        gradients = aten._scaled_dot_product_efficient_attention_backward(
            *given, None, out, lse, seed, seed, 0.0, wanted
        )
    else:
        gradients = _plain_backward(*given, out, lse, bias)
    return gradients[0], gradients[1], gradients[2]


def _plain_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.exp(_logits(query, key, bias) - lse[..., None])
    d_weights = (grad @ value.mT - (grad * out).sum(-1, keepdim=True)).to(weights.dtype)
    d_logits = (weights * d_weights * query.shape[-1] ** -0.5).to(query.dtype)
    return d_logits @ key, d_logits.mT @ query, weights.to(grad.dtype).mT @ grad


def _logits(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (batch, heads, queries, keys), in float32 at least."""
    logits: Tensor = query @ key.mT * query.shape[-1] ** -0.5
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if bias is None else logits + bias


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_length: Sequence[int],
    dilated_ratio: Sequence[int],
    *,
    mask_padding: bool = False,
    differentiable_mixing: bool = False,
) -> Tensor:
    """The definition, one output of one head at a time, differentiable by autograd: for tests."""
    tokens, heads = query.shape[1:3]
    rows = []
    for t in range(tokens):
        for h in range(heads):
            outs, lses = [], []
            for length, ratio in zip(segment_length, dilated_ratio, strict=True):
                segment = min(length, tokens)
                whole = ceil(segment / ratio) * ratio
                n, position = divmod(t, segment if mask_padding else whole)
                start, residue = n * segment, h // ceil(heads / ratio)
                if position % ratio != residue:
                    continue
                end = min(start + segment, tokens)
                real = range(start + residue, end, ratio)
                padding = 0 if mask_padding else whole // ratio - len(real)
                keys = F.pad(key[:, real, h], (0, 0, 0, padding))
                values = F.pad(value[:, real, h], (0, 0, 0, padding))
                asks = (
                    query[:, start + position, h]
                    if start + position < end
                    else torch.zeros_like(query[:, 0, h])
                )
                logits = (keys @ asks[..., None]).squeeze(-1) * query.shape[-1] ** -0.5
                lse = logits.logsumexp(-1)
                outs.append((logits.softmax(-1)[..., None] * values).sum(1))
                lses.append(lse if mask_padding else _counted(lse))
            if not outs:
                rows.append(torch.zeros_like(value[:, t, h]))
                continue
            weights = torch.stack(lses).softmax(0)
            weights = weights if differentiable_mixing else weights.detach()
            rows.append((weights[..., None] * torch.stack(outs)).sum(0))
    return torch.stack(rows, dim=1).view_as(query)
