"""Match the names of a file's tensors with the names in a model.

A file and a model that belong together can differ in three ways: prefixes of all names (`module.`, `net.`,
a wrapper's `self.model`), parts that wrappers insert (`_orig_mod`, those of FSDP and of gradient
checkpointing), and layouts of the original authors, which the model's own code converts (timm's
`checkpoint_filter_fn`, transformers' renamings).  The prefix with most matches of name and shape is chosen.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longvis_bench.errors import CheckpointError

WRAPPER_PARTS = re.compile(
    r"module|_module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_fpw_module"
)
"""Parts of names that wrappers insert: DataParallel, Opacus, torch.compile, FSDP, gradient checkpointing,
Lightning Fabric and FairScale."""

Converter = Callable[[Mapping[str, Tensor], nn.Module | None], Mapping[str, Tensor]]
"""timm's `checkpoint_filter_fn`: converts tensors by the authors' names to tensors by the model's names."""


@dataclass(frozen=True)
class _Reading:
    """One interpretation of a file's names."""

    prefix: str
    """The prefix removed from the file's names."""
    tensors: dict[str, Tensor]
    """Tensors by the model's names, or by the file's if the model has no such name."""
    beside: tuple[str, ...]
    """Names of the file that lack the prefix."""
    fitting: int
    """Number of tensors that match the model in name and shape."""
    hits: int
    """Number of tensors that match the model in name."""


def by_model_names(
    model: nn.Module, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename a file's tensors to the model's names.

    Arguments:
        model: the model; the meta device suffices.
        tensors: tensors by the file's names.
        wanted: the model's state dict.
        file: name of the file, for messages.

    Returns:
        The tensors by the model's names, or by their own where the model has none; and the file's names that
        lack the prefix.

    Raises:
        CheckpointError: two sets of weights in the file fit equally well, and their values differ.
    """
    given, ours = _without_wrappers(tensors), _without_wrappers(wanted)
    readings = list(_plain_readings(tensors, given, wanted, ours))
    best = max(readings, key=lambda reading: (reading.fitting, reading.hits))
    if best.hits < _needed(wanted):
        converted = max(
            _converted_readings(model, tensors, given, wanted, ours),
            key=lambda reading: (reading.fitting, reading.hits),
            default=best,
        )
        if converted.hits > best.hits:
            return converted.tensors, list(converted.beside)
    _refuse_two(file, best, readings, wanted)
    if _lacks(best.tensors, wanted):
        for another in (_by_parts, _by_shared_parts):
            reading = another(tensors, given, wanted, ours)
            if reading is not None:
                return reading.tensors, list(reading.beside)
    return best.tensors, list(best.beside)


def _needed(wanted: Iterable[str]) -> int:
    return sum(1 for name in wanted if not name.endswith("num_batches_tracked"))


def _without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Name without wrappers' parts -> name; unchanged if two names would become equal."""
    names = list(names)
    plain = {_plain(name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _plain(name: str) -> str:
    return _without(name, [part for part in name.split(".") if WRAPPER_PARTS.fullmatch(part)])


def _prefixes(names: Iterable[str], least: float) -> list[str]:
    """The empty prefix, and those (with their final dot) that at least `least` names have."""
    counts: Counter[str] = Counter()
    for name in names:
        counts.update(name[: dot.end()] for dot in re.finditer(r"\.", name))
    return ["", *(prefix for prefix, count in counts.items() if count >= least)]


def _plain_readings(
    tensors: Mapping[str, Tensor],
    given: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    ours: Mapping[str, str],
) -> Iterator[_Reading]:
    """Each replacement of a prefix of the file by one of the model that matches half of the model's names."""
    half = len(wanted) / 2
    for prefix in _prefixes(given, half):
        within = {name.removeprefix(prefix): real for name, real in given.items() if name.startswith(prefix)}
        for own in _prefixes(ours, half):
            named = {ours.get(own + name, own + name): tensors[real] for name, real in within.items()}
            reading = _reading(prefix, named, _beside(given, prefix), wanted)
            if reading.hits >= half or not (prefix or own):
                yield reading


def _by_parts(
    tensors: Mapping[str, Tensor],
    given: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    ours: Mapping[str, str],
) -> _Reading | None:
    """A file whose parts have prefixes of their own: `backbone.stem.weight` beside `head.weight`.

    Each part keeps the first word of its names, or goes without it, whichever gives more names of the model.

    Returns:
        A reading with every name of the model; None where there is none, or two values for one name.
    """
    parts: dict[str, list[str]] = {}
    for name in given:
        parts.setdefault(name.partition(".")[0], []).append(name)
    for own in _prefixes(ours, len(wanted) / 2):
        named: list[tuple[str, str]] = []
        for first, names in parts.items():
            ways = (
                [(own + name.removeprefix(cut), given[name]) for name in names] for cut in ("", f"{first}.")
            )
            known = [[(ours[name], real) for name, real in way if name in ours] for way in ways]
            more: list[tuple[str, str]] = max(known, key=len)
            named += more
        found = {name: tensors[real] for name, real in named}
        if len(found) == len(named) and not _lacks(found, wanted):
            used = {real for _, real in named}
            return _reading("", found, tuple(real for real in given.values() if real not in used), wanted)
    return None


def _by_shared_parts(
    tensors: Mapping[str, Tensor],
    given: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    ours: Mapping[str, str],
) -> _Reading | None:
    """A file or a model with names that have more parts, as any wrapper inserts: `blocks.0.inner.weight`.

    The parts are left out on the side that alone has them, after prefixes are removed on both.

    Returns:
        A reading with every name of the model; None where there is none, where two names become equal, or
        where a name with such a part is none of the model's: an adapter of a layer is no wrapper of it.
    """
    half = len(wanted) / 2
    for prefix in _prefixes(given, half):
        within = {name.removeprefix(prefix): real for name, real in given.items() if name.startswith(prefix)}
        for own in _prefixes(ours, half):
            ours_within = {n.removeprefix(own): real for n, real in ours.items() if n.startswith(own)}
            theirs, mine = _inner_parts(within), _inner_parts(ours_within)
            for left_out, from_file in ((theirs - mine, True), (mine - theirs, False)):
                short = _shortened(within, left_out) if from_file else within
                wide = ours_within if from_file else _shortened(ours_within, left_out)
                found = {wide[name]: tensors[real] for name, real in short.items() if name in wide}
                strange = [real for name, real in short.items() if name not in wide]
                is_adapted = from_file and _inner_parts(strange) & left_out
                if not (_lacks(found, wanted) or is_adapted):
                    return _reading("", found, (*strange, *_beside(given, prefix)), wanted)
    return None


def _shortened(names: Mapping[str, str], parts: Collection[str]) -> dict[str, str]:
    """The names without these parts -> the values; empty if two names would become equal."""
    short = {_without(name, parts): real for name, real in names.items()}
    return short if len(short) == len(names) else {}


def _inner_parts(names: Iterable[str]) -> set[str]:
    """The words between dots, without numbers and the last word of each name."""
    return {part for name in names for part in name.split(".")[:-1] if not part.isdigit()}


def _without(name: str, parts: Collection[str]) -> str:
    *inner, last = name.split(".")
    return ".".join([*(part for part in inner if part not in parts), last])


def _lacks(found: Collection[str], wanted: Iterable[str]) -> bool:
    """Whether a name of the model is not there; batch counters, which old files lack, do not count."""
    return any(name not in found and not name.endswith("num_batches_tracked") for name in wanted)


def _reading(
    prefix: str, named: dict[str, Tensor], beside: tuple[str, ...], wanted: Mapping[str, Tensor]
) -> _Reading:
    hits = [name for name in named if name in wanted]
    fitting = sum(named[name].shape == wanted[name].shape for name in hits)
    return _Reading(prefix, named, beside, fitting, len(hits))


def _beside(given: Mapping[str, str], prefix: str) -> tuple[str, ...]:
    return tuple(real for name, real in given.items() if not name.startswith(prefix))


def _converted_readings(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    given: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    ours: Mapping[str, str],
) -> Iterator[_Reading]:
    """Conversions of the original authors' layout to the names of the model or of a model that it wraps."""
    for own in _prefixes(ours, len(wanted) / 2):
        for inner in _submodules(model, own):
            for convert in _converters(inner):
                for prefix in _prefixes(given, len(given) / 2):
                    within = {
                        n.removeprefix(prefix): tensors[r] for n, r in given.items() if n.startswith(prefix)
                    }
                    renamed = _converted(convert, within, inner)
                    named = {ours.get(own + name, own + name): value for name, value in renamed.items()}
                    yield _reading(prefix, named, _beside(given, prefix), wanted)


def _submodules(model: nn.Module, prefix: str) -> list[nn.Module]:
    """The submodules whose name without wrappers' parts is `prefix`; the model itself for an empty one."""
    named = ((f"{name}." if name else "", module) for name, module in model.named_modules())
    return [module for name, module in named if (_plain(name) if name else "") == prefix]


def _converters(model: nn.Module) -> Iterator[Converter]:
    """Functions of the model's own code that convert other layouts."""
    module = sys.modules.get(type(model).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is not None:
        yield convert
    if "transformers" in sys.modules and isinstance(model, sys.modules["transformers"].PreTrainedModel):
        yield _by_transformers


def _converted(
    convert: Converter, tensors: Mapping[str, Tensor], model: nn.Module | None
) -> Mapping[str, Tensor]:
    """Tensors by the converter's names, with their original shapes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they address timm's developers
            renamed = dict(convert(dict(tensors), model))
    except Exception:  # the converter mistook the layout for another
        return tensors
    return {name: tensors[name] if _is_table(name, tensors) else value for name, value in renamed.items()}


def _is_table(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether timm's converter may have resized the tensor; `matching.py` does that and records it."""
    return name.endswith(("pos_embed", "relative_position_bias_table")) and name in tensors


def _by_transformers(tensors: Mapping[str, Tensor], model: nn.Module | None) -> dict[str, Tensor]:
    """Rename tensors from the names that transformers 5 saves (`save_pretrained`) to those of its modules."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    return {apply_renamings(name, rules): tensor for name, tensor in tensors.items()}


def official(tensors: Mapping[str, Tensor], convert: Converter) -> bool:
    """Whether a converter recognises the names, under any common prefix."""
    for prefix in _prefixes(tensors, len(tensors) / 2):
        within = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if convert(within, None).keys() != within.keys():
            return True
    return False


def _refuse_two(
    file: str, best: _Reading, readings: Iterable[_Reading], wanted: Mapping[str, Tensor]
) -> None:
    """Raise CheckpointError if another prefix fits equally well with other values."""
    score = (best.fitting, best.hits)
    rivals = [one for one in readings if (one.fitting, one.hits) == score and _differ(one, best, wanted)]
    if best.hits == 0 or not rivals:
        return
    keys = [reading.prefix.rstrip(".") or "." for reading in (best, *rivals)]
    raise CheckpointError(
        f"{file} holds {len(keys)} sets of weights that fit this model: {', '.join(keys)}; "
        f"choose one with FILE#KEY, as in {file}#{keys[-1]}."
    )


def _differ(one: _Reading, other: _Reading, wanted: Mapping[str, Tensor]) -> bool:
    """Whether two readings have different values for a tensor of the model."""
    shared = [name for name in wanted if name in one.tensors and name in other.tensors]
    return any(not _equal(one.tensors[name], other.tensors[name]) for name in shared)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (not one.is_meta and not other.is_meta and torch.equal(one, other))
