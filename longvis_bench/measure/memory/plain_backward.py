"""The backward pass without torch's autograd engine, for fake tensors of a GPU that is not there.

The engine asks the CUDA driver for its streams, and stops where there is no driver.  A graph's nodes need
none: each is a function from gradients to gradients.  `backward` calls them in the engine's order, the node
that was made last first, and lets go of each as the engine does, so that tensors live as long as there.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import GraphExecGroup

_Node = Any
_ACCUMULATE = "torch::autograd::AccumulateGrad"


def backward(root: _Node, gradient: Tensor) -> None:
    """Accumulate gradients in `.grad` of the leaves, as `loss.backward()` does.

    Arguments:
        root: `loss.grad_fn`; saved tensors are freed on the way unless something else holds the graph.
        gradient: of the loss.
    """
    waiting = _uses(root)
    gradients: dict[_Node, dict[int, Tensor]] = {root: {0: gradient}}
    ready = [(_order(root), 0, root)]
    pushed = 0
    del root, gradient
    with torch.no_grad(), GraphExecGroup():
        while ready:
            node = heapq.heappop(ready)[2]
            inputs = gradients.pop(node, {})
            results = _call(node, inputs) if inputs else ()
            del inputs
            edges = node.next_functions
            for position, (after, index) in enumerate(edges):
                if after is None:
                    continue
                result = results[position] if position < len(results) else None
                if result is not None:
                    fitted = _fitted(result, after._input_metadata[index])
                    _add(gradients.setdefault(after, {}), index, fitted)
                    del fitted
                del result
                waiting[after] -= 1
                if not waiting[after]:
                    del waiting[after]  # or it would keep the node, and the tensors it saved
                    pushed += 1
                    heapq.heappush(ready, (_order(after), pushed, after))
            del results, node, edges
            after = None


def _uses(root: _Node) -> Counter[_Node]:
    """How many edges lead to each node."""
    uses: Counter[_Node] = Counter()
    stack, seen = [root], {root}
    while stack:
        for after, _ in stack.pop().next_functions:
            if after is not None:
                uses[after] += 1
                if after not in seen:
                    seen.add(after)
                    stack.append(after)
    return uses


def _order(node: _Node) -> tuple[bool, int]:
    """Leaves at once, then what was made last."""
    return not node.name().startswith(_ACCUMULATE), -node._sequence_nr()


def _call(node: _Node, inputs: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """A node's results by edge."""
    count = max(len(node._input_metadata), 1)
    given = [inputs.get(index) for index in range(count)]
    inputs.clear()
    if node.name().startswith(_ACCUMULATE):
        _accumulate(node.variable, given.pop())
        return ()
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return _call_python(node, given)
    results = node(*given)
    return results if isinstance(results, tuple) else (results,)


def _accumulate(leaf: Tensor, gradient: Tensor | None) -> None:
    """Make a gradient the leaf's own, without a copy where its layout is the leaf's, and call its hooks."""
    if gradient is None:
        return
    if leaf.grad is not None:
        leaf.grad += gradient
    elif gradient.stride() == leaf.stride() and gradient.dtype == leaf.dtype:
        leaf.grad = gradient.detach()
    else:
        leaf.grad = torch.empty_like(leaf).copy_(gradient)
    del gradient
    for hook in (leaf._post_accumulate_grad_hooks or {}).values():
        hook(leaf)


def _call_python(node: _Node, given: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A Python function's results: one per argument, of which those of tensors have an edge in the graph.

    Gradients that did not arrive are zeros, as the engine makes them.
    """
    filled = [_zeros(meta) if g is None else g for g, meta in zip(given, node._input_metadata, strict=True)]
    given.clear()
    results = node.apply(*filled)
    results = results if isinstance(results, tuple) else (results,)
    wanted = iter([r for r, needed in zip(results, node.needs_input_grad, strict=False) if needed])
    return tuple(None if after is None else next(wanted, None) for after, _ in node.next_functions)


def _fitted(gradient: Tensor, meta: Any) -> Tensor:
    """A gradient in the shape and dtype of its tensor: the engine sums what was broadcast, and casts."""
    if gradient.shape != meta.shape:
        gradient = gradient.sum_to_size(meta.shape)
    return gradient if gradient.dtype == meta.dtype else gradient.to(meta.dtype)


def _zeros(meta: Any) -> Tensor:
    return torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)


def _add(known: dict[int, Tensor], index: int, gradient: Tensor) -> None:
    known[index] = gradient if index not in known else known[index] + gradient
