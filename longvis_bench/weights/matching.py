"""Load weights into a model, and check whether a weight file fits it.  `reading.py` reads the files.

A `LoadReport` lists every tensor that was not loaded unchanged.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from longvis_bench import backbones
from longvis_bench.errors import CheckpointError, IllegalSize, LongvisError
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Rectangle, Resolution, resolution_of
from longvis_bench.weights.classifier import bare_model, classifier_dims, classifier_names
from longvis_bench.weights.header import read_header
from longvis_bench.weights.naming import by_model_names, official
from longvis_bench.weights.parts import with_parts
from longvis_bench.weights.reading import plain_names, read_tensors

MOST_LISTED = 5
"""Largest number of tensors that a message lists."""
SHOWN_NAMES = 3
"""Number of tensor names of the file and of the model that every refusal shows."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The result for each tensor of the file and of the model."""

    loaded: tuple[str, ...]
    """Tensors of the model that were loaded from the file, including reshaped ones."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that the model does not have, by their name in the file."""
    missing: tuple[str, ...] = ()
    """Tensors of the model that the file does not have; they keep their previous value."""
    reshaped: dict[str, str] = field(default_factory=dict)
    """Tensor of the model -> how it was adapted, in words."""
    random: tuple[str, ...] = ()
    """Tensors of the classifier that keep the model's value, because the file's classifier has other classes.
    With any of these, or any missing tensor, an accuracy is meaningless."""


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    strict: bool = True,
    heads: Collection[str] = (),
) -> LoadReport:
    """Load the values of a weight file into a model.

    Position tables are interpolated to the model's size (bicubic); a classifier for other classes is not
    loaded, and the model keeps its own.  On an error the model is unchanged.

    Arguments:
        model: the model, on any device and of any dtype; values are converted.
        source: a file for `read_tensors`, whose parts are joined if the model needs all of them; or tensors
            by name.  The official layouts of Atlas, LongViT, MambaVision and FasterViT are recognised, and
            those that timm converts for its models.
        strict: whether a tensor that is missing in the file is an error.
        heads: names of the classifier's tensors, if known; by default `classifier_names` finds them.

    Returns:
        The loaded, unused, missing and reshaped tensors.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another model.
    """
    if isinstance(source, Mapping):
        fitted, report = _match(model, source, "the mapping", strict, heads)
    else:
        tensors = read_tensors(with_parts(Path(source), model))
        of_square = not isinstance(_trained_at(Path(source)), Rectangle)
        fitted, report = _match(model, tensors, Path(source).name, strict, heads, of_square)
    model.load_state_dict(fitted, strict=False)
    return report


def _trained_at(path: Path) -> Resolution | None:
    """The resolution that a weight file of `longvis train` was trained at; None if it does not say."""
    with suppress(ValueError):
        return resolution_of(read_header(path).metadata.get("resolution"))
    return None


def match_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    name: str,
    strict: bool = True,
    heads: Collection[str] = (),
) -> LoadReport:
    """The report of `load_weights` without loading; the model is unchanged and may be on the meta device.

    Arguments:
        model: the model.
        tensors: tensors by name, from `read_tensors`.
        name: name of the file, for messages.
        strict: whether a missing tensor is an error.
        heads: names of the classifier's tensors, if known; by default `classifier_names` finds them.

    Raises:
        CheckpointError: the weights belong to another model.
    """
    return _match(model, tensors, name, strict, heads)[1]


def _match(
    model: nn.Module,
    source: Mapping[str, Tensor],
    name: str,
    strict: bool,
    heads: Collection[str] = (),
    of_square: bool = False,
) -> tuple[dict[str, Tensor], LoadReport]:
    """The values for the model's tensors, and the report; see `_fit`."""
    given = plain_names(dict(source))
    derived = derived_names(model)
    wanted = {key: value for key, value in model.state_dict().items() if key not in derived}
    tensors, unused = by_model_names(model, given, wanted, name)
    _refuse_other_types(name, tensors, wanted, given)
    fitted, reshaped, fresh, misfits = _fit(
        tensors, wanted, heads or classifier_names(model), _grid_of(model), of_square
    )
    absent = tuple(key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked"))
    unfit = absent and (strict or len(absent) == len(wanted))
    if (misfits or unfit) and (foreign := _foreign_family(model, given)):
        kind = type(model).__name__
        raise CheckpointError(
            f"{name} is an official {foreign} checkpoint; the model is of another family, {kind}. "
            f"{_both_sides(wanted, given)}"
        )
    if misfits and len(misfits) >= len(absent):
        said = _misfit_sentence(name, misfits, tensors, wanted)
        raise CheckpointError(f"{said} {_both_sides(wanted, given)}")
    if misfits or unfit:
        raise CheckpointError(f"{_missing_sentence(name, absent, model)} {_both_sides(wanted, given)}")
    if not absent and (deeper := _beyond(tensors, wanted)):
        raise CheckpointError(f"{_deeper_sentence(name, deeper, model)} {_both_sides(wanted, given)}")
    return fitted, LoadReport(
        loaded=tuple(fitted),
        unused=(*unused, *(key for key in tensors if key not in wanted)),
        missing=absent,
        reshaped=reshaped,
        random=tuple(fresh),
    )


def _is_ours(model: nn.Module) -> bool:
    return type(model).__module__.startswith(f"{backbones.__name__}.")


def derived_names(model: nn.Module) -> set[str]:
    """Persistent buffers that the model computes itself, so that files neither store nor need them.

    They come from the function `derived_buffers` of the modules `<package>_upstream` in `backbones`, for
    each package whose classes the model uses.
    """
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    upstream = {f"{package}_upstream" for package in packages}
    known = {found.name for found in pkgutil.iter_modules(backbones.__path__)} & upstream
    asked = (getattr(_backbone(name), "derived_buffers", None) for name in known)
    return {name for derived in asked if derived is not None for name in derived(model)}


def _backbone(name: str) -> ModuleType:
    return importlib.import_module(f"{backbones.__name__}.{name}")


_POSITIONS = re.compile(r"(^|[._])(pos_embed|position_embeddings?|embed_positions)\b")
Grid = tuple[int, int]
_Fitted = tuple[dict[str, Tensor], dict[str, str], list[str], list[str]]


def _fit(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    heads: Collection[str],
    grid: Grid | None,
    of_square: bool,
) -> _Fitted:
    """Fit each tensor of the file to the model: values, adaptations, random classifier tensors, misfits.

    Position tables of a square (`of_square`) are interpolated to a rectangle's `grid` of as many tokens, too.
    """
    is_oblong = grid is not None and grid[0] != grid[1]
    fitted: dict[str, Tensor] = {}
    reshaped: dict[str, str] = {}
    fresh: list[str] = []
    misfits: list[str] = []
    for name, target in wanted.items():
        if name not in tensors:
            continue
        value = tensors[name]
        moves = of_square and is_oblong and _POSITIONS.search(name) is not None
        if value.shape == target.shape and not moves:
            fitted[name] = value
        elif name in heads and value.ndim == target.ndim and value.shape[1:] == target.shape[1:]:
            fresh.append(name)
            reshaped[name] = f"left fresh: {len(value)} classes in the file, {len(target)} in the model"
        elif (moved := _reshape_positions(name, value, target, grid)) is not None:
            fitted[name] = moved
            reshaped[name] = f"interpolated (bicubic) from {_shape(value)} to {_shape(target)}"
        else:
            misfits.append(name)
    return fitted, reshaped, fresh, misfits


def _reshape_positions(name: str, value: Tensor, target: Tensor, grid: Grid | None) -> Tensor | None:
    """A position table interpolated to the model's grid; None if the tensor is none or does not fit."""
    if name.endswith("relative_position_bias_table"):
        return _reshape_relative(value, target)
    if not _POSITIONS.search(name):
        return None
    if value.ndim != target.ndim or value.shape[-1] != target.shape[-1]:
        return None
    (old, prefix), (side, wanted_prefix) = _square(value.shape[-2]), _square(target.shape[-2])
    new = (side, side)
    if grid is not None and grid[0] != grid[1]:
        new, wanted_prefix = grid, target.shape[-2] - math.prod(grid)
    if prefix != wanted_prefix:
        return None
    from timm.layers.pos_embed import resample_abs_pos_embed

    table = value.float().reshape(1, *value.shape[-2:])
    moved: Tensor = resample_abs_pos_embed(table, list(new), [old, old], num_prefix_tokens=prefix)
    return moved.reshape(target.shape)


def _grid_of(model: nn.Module) -> Grid | None:
    """Rows and columns of the model's position table, where it or its patch embedding says so."""
    for holder in (model, getattr(model, "patch_embed", None)):
        grid = getattr(holder, "grid_size", None)
        if isinstance(grid, tuple) and len(grid) == 2:
            return grid
    return None


def _reshape_relative(value: Tensor, target: Tensor) -> Tensor | None:
    """Swin's table of relative position biases ((2w-1)^2, heads), interpolated to another window."""
    if value.ndim != 2 or value.shape[1] != target.shape[1]:
        return None
    (old, rest), (new, wanted_rest) = _square(len(value)), _square(len(target))
    if rest or wanted_rest:
        return None
    grid = value.float().T.reshape(1, -1, old, old)
    moved = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return moved.reshape(-1, new * new).T.contiguous()


def _square(tokens: int) -> tuple[int, int]:
    """Side of the largest square grid within `tokens`, and the number of other tokens (class tokens)."""
    side = math.isqrt(tokens)
    return side, tokens - side * side


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _misfit_sentence(
    file: str, misfits: list[str], tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> str:
    shapes = [f"{name} ({_shape(tensors[name])}, not {_shape(wanted[name])})" for name in misfits]
    return (
        f"{file} holds weights of another variant or size: {len(misfits)} of the model's "
        f"{len(wanted)} tensors have another shape there: {_some(shapes)}."
    )


def _both_sides(wanted: Collection[str], given: Collection[str]) -> str:
    """Three names of the model and of the file, those that the other side has not first."""
    return f"The model's names are like {_three(wanted, given)}; the file's are like {_three(given, wanted)}."


def _three(names: Collection[str], others: Collection[str]) -> str:
    return ", ".join(sorted(names, key=lambda name: name in others)[:SHOWN_NAMES]) or "none"


def _missing_sentence(file: str, missing: tuple[str, ...], model: nn.Module) -> str:
    few = "tensor" if len(missing) == 1 else "tensors"
    return (
        f"{file} lacks {len(missing)} {few} of this {type(model).__name__}: {_some(missing)}; "
        "it belongs to another model or variant, or was saved at a size with fewer parts."
    )


def _refuse_other_types(
    file: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], given: Collection[str]
) -> None:
    """Raise CheckpointError for tensors whose dtype does not convert to the model's (quantised, complex)."""
    names = (name for name in wanted if name in tensors)
    wrong = [name for name in names if not _converts(tensors[name], wanted[name])]
    if not wrong:
        return
    types = [f"{name} ({_type(tensors[name])}, not {_type(wanted[name])})" for name in wrong]
    raise CheckpointError(
        f"{file} holds values of another kind for {len(wrong)} of the model's {len(wanted)} tensors: "
        f"{_some(types)}; quantised weights have to be converted back to floating point first. "
        f"{_both_sides(wanted, given)}"
    )


def _converts(value: Tensor, target: Tensor) -> bool:
    if target.is_complex():
        return value.is_complex() or (value.is_floating_point() and value.element_size() > 1)
    if target.is_floating_point():
        return value.is_floating_point() and value.element_size() > 1
    return not value.is_complex() and not (value.is_floating_point() and _has_fractions(value))


def _has_fractions(value: Tensor) -> bool:
    return not value.is_meta and bool((value.float() != value.float().round()).any())


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _beyond(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Tensors of additional blocks of the model's kinds, as a deeper variant has them."""
    kinds = {_kind(name) for name in wanted}
    return [name for name in tensors if name not in wanted and _kind(name) in kinds]


def _kind(name: str) -> str:
    """The name with `#` in place of block numbers."""
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def _deeper_sentence(file: str, deeper: list[str], model: nn.Module) -> str:
    few = "tensor" if len(deeper) == 1 else "tensors"
    return (
        f"{file} holds weights of another variant: {len(deeper)} more {few} than this "
        f"{type(model).__name__} has blocks for: {_some(deeper)}."
    )


def _foreign_family(model: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """The family other than the model's whose authors use these names."""
    own = type(model).__module__.rpartition(".")[2] if _is_ours(model) else None
    names = sorted({found.name for found in pkgutil.iter_modules(backbones.__path__)} - {own})
    converters = ((name, getattr(_backbone(name), "checkpoint_filter_fn", None)) for name in names)
    return next((name for name, convert in converters if convert and official(tensors, convert)), None)


def check_fit(
    variant: Variant, path: Path, resolutions: Sequence[Resolution], num_classes: int, *, whole: bool
) -> None:
    """Check that a weight file fits the model at one of the resolutions at least.

    Arguments:
        variant: the model.
        path: the weight file.
        resolutions: pixels per side; illegal ones are skipped.
        num_classes: number of logits.
        whole: whether a tensor that would stay random is an error, too.

    Raises:
        CheckpointError: the file is of another variant or model; the message lists at most five tensors.
    """
    tensors = read_tensors(path)
    faults = [_fault(variant, path.name, tensors, size, num_classes, whole) for size in resolutions]
    asked = [fault for fault in faults if not isinstance(fault, IllegalSize)]
    if asked and all(asked):
        raise next(fault for fault in asked if fault is not None)


def _fault(
    variant: Variant,
    name: str,
    tensors: Mapping[str, Tensor],
    size: Resolution,
    num_classes: int,
    whole: bool,
) -> LongvisError | None:
    try:
        model = bare_model(variant, size, num_classes)
        if model is None:
            return None
        heads = classifier_dims(variant, size, num_classes)
        report = match_weights(model, tensors, name, strict=whole, heads=heads)
    except (CheckpointError, IllegalSize) as error:
        return error
    if whole and report.random:
        some, sides = ", ".join(report.random[:MOST_LISTED]), _both_sides([*model.state_dict()], tensors)
        return CheckpointError(f"{name} does not fit {variant.name}: {some} would be random. {sides}")
    return None
