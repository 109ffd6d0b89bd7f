"""The last map before pooling: the tokens whose mean, or maximum, becomes the logits.

Models give it no common name or layout.  Here it is found from what a forward does: the last call that pools
all positions of a square map.  The axes which that call removes are those of the positions, so the layout
needs no guess, and neither do models that leave `forward_features` out or pool inside it.  A pooling whose
result goes back into a map of the same shape (squeeze and excitation, a norm written out) is not the last.

A model that reads a class token instead pools nothing.  Its tokens then come from `forward_features`, timm's
name; class tokens and registers are as many as its `num_prefix_tokens` says, at its `cls_position`, or those
before the last square number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_REDUCTIONS = frozenset({"mean", "amax", "sum", "logsumexp"})
"""Functions that pool the axes that they are given."""
_POOLS = frozenset(
    {
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "max_pool1d", "max_pool2d"),
    }
)
"""Functions that pool the last axes; all of them where one position is left."""


@dataclass(frozen=True)
class TokenMap:
    """Tokens on a square grid, in any layout."""

    values: Tensor
    """(1, ...): of a forward of one image."""
    axes: tuple[int, ...]
    """The axes of the positions: rows and columns, or one for both in raster order."""
    indices: tuple[int, ...] = ()
    """Of one axis: index of each position in it, where other tokens stand among them."""

    @property
    def side(self) -> int:
        """Tokens per side."""
        if len(self.axes) == 2:
            return self.values.shape[self.axes[0]]
        return isqrt(len(self.indices) or self.values.shape[self.axes[0]])

    def token(self, row: int, column: int) -> tuple[slice | int, ...]:
        """The index of all channels of a token in `values`."""
        index: list[slice | int] = [slice(None)] * self.values.ndim
        if len(self.axes) == 2:
            index[self.axes[0]], index[self.axes[1]] = row, column
        else:
            number = row * self.side + column
            index[self.axes[0]] = self.indices[number] if self.indices else number
        return tuple(index)


def find_map(model: nn.Module, image: Tensor) -> TokenMap | None:
    """The last map before pooling, of a forward with gradients; None where the model shows none.

    Arguments:
        model: in eval mode.
        image: (1, channels, resolution, resolution).
    """
    watch = _PoolWatch()
    with watch:
        model(image)
    if watch.found is not None:
        return watch.found
    features: Callable[[Tensor], object] | None = getattr(model, "forward_features", None)
    return None if features is None else _from_features(model, features(image))


class _PoolWatch(TorchFunctionMode):
    """Keeps the map of the last pooling in `found`, until a later call makes a map of that shape again."""

    def __init__(self) -> None:
        super().__init__()
        self.found: TokenMap | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if not isinstance(result, Tensor):
            return result
        pooled = _pooled(getattr(func, "__name__", ""), args, given, result)
        if pooled is not None:
            self.found = pooled
        elif self.found is not None and result.ndim > 2 and result.shape == self.found.values.shape:
            self.found = None
        return result


def _pooled(name: str, args: Sequence[Any], given: Mapping[str, Any], result: Tensor) -> TokenMap | None:
    """The map that a call pools; None where it pools none."""
    source = args[0] if args else given.get("input", given.get("self"))
    if not isinstance(source, Tensor) or source.ndim not in (3, 4) or len(source) != 1:
        return None
    axes: tuple[int, ...] = ()
    if name in _REDUCTIONS:
        dim = args[1] if len(args) > 1 else given.get("dim", given.get("axis"))
        axes = tuple(sorted(axis % source.ndim for axis in _integers(dim)))
    elif name in _POOLS and result.ndim == source.ndim:
        axes = tuple(range(2, source.ndim))
        axes = axes if all(result.shape[axis] == 1 for axis in axes) else ()
    return TokenMap(source, axes) if _is_square(source, axes) else None


def _integers(dim: object) -> tuple[int, ...]:
    if isinstance(dim, int):
        return (dim,)
    return tuple(dim) if isinstance(dim, tuple | list) and all(isinstance(axis, int) for axis in dim) else ()


def _is_square(source: Tensor, axes: tuple[int, ...]) -> bool:
    """Whether these axes, and no others but batch and channels, are those of a square map."""
    if len(axes) != source.ndim - 2 or 0 in axes:
        return False
    sides = [source.shape[axis] for axis in axes]
    if len(axes) == 2:
        return axes in ((1, 2), (2, 3)) and sides[0] == sides[1]
    return isqrt(sides[0]) ** 2 == sides[0]


def _from_features(model: nn.Module, features: object) -> TokenMap | None:
    """The tokens that `forward_features` returned, by their shape; None where that says too little."""
    if isinstance(features, list | tuple) and features:
        features = features[-1]
    if not isinstance(features, Tensor) or not features.is_floating_point():
        return None
    if features.ndim == 3:
        return _of_sequence(model, features)
    width = getattr(model, "num_features", None)
    if features.ndim != 4 or not isinstance(width, int):
        return None
    fitting = [axes for axes in ((2, 3), (1, 2)) if _channels(features, axes) == width]
    fitting = [axes for axes in fitting if features.shape[axes[0]] == features.shape[axes[1]]]
    return TokenMap(features, fitting[0]) if len(fitting) == 1 else None


def _channels(features: Tensor, axes: tuple[int, int]) -> int:
    return features.shape[6 - sum(axes)]


def _of_sequence(model: nn.Module, tokens: Tensor) -> TokenMap | None:
    """(1, tokens, channels): those that are neither class token nor register, where they form a square."""
    length = tokens.shape[1]
    own, before = getattr(model, "cls_position", None), getattr(model, "num_prefix_tokens", None)
    if not isinstance(before, int):
        before = length - isqrt(length) ** 2
    candidates = [[index for index in range(length) if index != own], list(range(before, length))]
    square = [indices for indices in candidates if indices and isqrt(len(indices)) ** 2 == len(indices)]
    return TokenMap(tokens, (1,), tuple(square[0])) if square else None
