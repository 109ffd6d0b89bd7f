"""Load untrusted checkpoints without executing code.

A safetensors file contains nothing but tensors.  PyTorch's own format is a pickle, which torch's restricted
unpickler reads; only `argparse.Namespace` and NumPy scalars are allowed in addition, because training scripts
save them in checkpoints.  The first bytes of a file determine its format, not its name.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longvis_bench.errors import CheckpointError
from longvis_bench.units import size as show_size
from longvis_bench.weights.files import files_of, split_key

DEEPEST = 5
"""Levels of nesting that are searched for sets of weights."""
_NO_WEIGHTS = re.compile(
    r"(?:^|[^a-z])(?:optim(?!al|um|i[sz]ed)|sched|scaler|rng)|callbacks_state", re.IGNORECASE
)
"""Keys of training states other than weights: `lr_schedulers`, but not `best_optimized` or `upscaler`."""
_DOT = re.compile(r"\.")
_EMA = re.compile(r"(^|_)ema$|^ema_", re.IGNORECASE)
JOIN = "+"
"""Between the keys of parts that are saved apart and are one set together: `encoder+head`."""
UNPACK_FACTOR, UNPACK_SLACK = 4, 1 << 20
"""Largest unpacked size of an archive: 4 times its own size, plus 1 MiB; torch.save never compresses."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a set of weights, on the CPU, by name.

    Arguments:
        path: safetensors, or a file of torch.save (.pth, .pt, .bin, .pth.tar), recognised by content; or the
            index (.json) of such files; followed by `#KEY` if it has several sets.

    Returns:
        The state dict, without nesting and `module.` prefixes.

    Raises:
        CheckpointError: the file is missing, corrupt or unsafe, has no state dict, or has several of which
            none is chosen.
    """
    return read_set(path)[1]


def read_set(path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The full key of the set of weights (empty if the file has one set), and its tensors by name."""
    file, key = split_key(path)
    sets = _sets(_content(file), file.name)
    label, tensors = _choose(sets, key, file.name) if key else _only(sets, file.name)
    return (label if key else ""), plain_names(tensors)


def read_sets(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """All sets of tensors of a file by their full keys; those of optimizers and single values are left out.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    file = split_key(path)[0]
    sets = _sets(_content(file), file.name)
    return {key: found for key, found in sets.items() if any(t.ndim for t in found.values())} or sets


def _content(path: Path) -> object:
    """The content of a file: tensors by name, nested in the structure that a training script saved."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {path}: {error.strerror or error}.") from error
    if path.suffix == ".json":
        return _read_index(path)
    if start[8:9] == b"{" and start[:2] != b"PK":
        return _read_safetensors(path)
    if start[:2] == b"PK":
        _refuse_bomb(path)
    elif start[:1] != b"\x80":
        raise CheckpointError(f"{path.name} is no weight file: neither safetensors nor a file of torch.save.")
    content = _read_pickle(path)
    _refuse_expanded(content, path)
    return content


def _read_index(path: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index lists."""
    tensors: dict[str, Tensor] = {}
    for file in files_of(path):
        content = _content(file) if file.suffix != ".json" else None
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{file.name}, which {path.name} names, holds no tensors by name.")
        tensors |= {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} is a damaged or truncated safetensors file: {error}.") from error


def _refuse_bomb(path: Path) -> None:
    """Raise CheckpointError for a zip bomb: an archive whose declared content could fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path.name} is a damaged or truncated file of torch.save: {error}."
        ) from error
    held = path.stat().st_size
    if declared > UNPACK_FACTOR * held + UNPACK_SLACK:
        sizes = f"{show_size(held)} on the disk would unpack to {show_size(declared)}"
        raise CheckpointError(f"{path.name} was refused as unsafe: {sizes}.")


def _refuse_expanded(content: object, path: Path) -> None:
    """Raise CheckpointError if strides of 0 expand a few stored values to far more than the file's size."""
    shown = _shown(content)
    held = path.stat().st_size
    if shown > UNPACK_FACTOR * held + UNPACK_SLACK:
        sizes = f"{show_size(held)} on the disk would become {show_size(shown)} of tensors"
        raise CheckpointError(f"{path.name} was refused as unsafe: {sizes}.")


def _shown(content: object, depth: int = 0) -> int:
    """Bytes of the largest set of tensors in the content; a maximum, because sets may share storage."""
    inner = _inner(content)
    own = sum(t.numel() * t.element_size() for _, t in inner if isinstance(t, Tensor))
    deeper = (_shown(value, depth + 1) for _, value in inner if depth < DEEPEST)
    return max(own, *deeper, 0) if inner else 0


def _read_pickle(path: Path) -> object:
    """Content of a torch.save file, read by the restricted unpickler, which executes no code of the file."""
    try:
        # An open file, because torch.load would choose the format by the name of a path.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they address torch's developers
            with torch.serialization.safe_globals(_safe_globals()):
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise CheckpointError(f"{path.name} is a damaged or unsafe file of torch.save.") from error
        found = code[1].rstrip(".")
        raise CheckpointError(
            f"{path.name} was refused as unsafe: it holds code ({found}), and none of it was run."
        ) from error
    except Exception as error:  # a damaged pickle can fail anywhere in torch's reader
        raise CheckpointError(f"{path.name} is a damaged or truncated file of torch.save.") from error


def _safe_globals() -> list[Any]:
    """Classes allowed in addition to tensors: argparse.Namespace, and the parts of a pickled NumPy scalar."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in "?bhilqBHILQefdSU"]
    moved = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    return [argparse.Namespace, np.dtype, *moved, *dtypes]


def _inner(content: object) -> list[tuple[str, object]]:
    """Items of a mapping or a list, by key or index."""
    if isinstance(content, Mapping):
        return [(str(key), value) for key, value in content.items()]
    if isinstance(content, list | tuple):
        return [(str(number), value) for number, value in enumerate(content)]
    return []


def _sets(content: object, name: str) -> dict[str, dict[str, Tensor]]:
    """All sets of tensors in a checkpoint, by the keys that lead to them.

    States of optimizers are left out, and tensors outside a nested set (an epoch, a metric), too.
    """
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        if not any(isinstance(value, Mapping) for _, value in _inner(content)):
            raise CheckpointError(f"{name} holds no state dict but a {kind}.")
    found = dict(_walk(content))
    if not found:
        raise CheckpointError(f"{name} holds no tensors.")
    if any(tensor.is_meta for tensors in found.values() for tensor in tensors.values()):
        raise CheckpointError(f"{name} holds tensors without values: they were saved from the meta device.")
    loose = [key for key, tensors in found.items() if not any("." in tensor for tensor in tensors)]
    nested = {key: tensors for key, tensors in found.items() if key not in loose or _parent(key, found)}
    return nested or found


def _parent(key: str, found: Mapping[str, object]) -> bool:
    """Whether no other set is nested in this one, so that its names without dots are those of weights."""
    return not any(other != key and (not key or other.startswith(f"{key}.")) for other in found)


def _walk(content: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    inner = _inner(content)
    tensors = {name: _dense(value) for name, value in inner if isinstance(value, Tensor)}
    if tensors and isinstance(content, Mapping):
        yield key, tensors
    for name, value in inner if depth < DEEPEST else ():
        if not _NO_WEIGHTS.search(name) and not isinstance(value, Tensor):
            yield from _walk(value, f"{key}.{name}" if key else name, depth + 1)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _only(sets: Mapping[str, dict[str, Tensor]], file: str) -> tuple[str, dict[str, Tensor]]:
    """The set of a file that has one; equal copies, and sets of less than half its size, do not count."""
    values = {key: found for key, found in sets.items() if any(t.ndim for t in found.values())}
    sets = values or sets
    most = max(map(len, sets.values()))
    chosen: dict[str, dict[str, Tensor]] = {}
    for key, tensors in sets.items():
        if 2 * len(tensors) >= most and not any(same_tensors(tensors, other) for other in chosen.values()):
            chosen[key] = tensors
    if len(chosen) > 1:
        listed = ", ".join(f"{key or '.'} ({len(tensors)} tensors)" for key, tensors in chosen.items())
        raise CheckpointError(
            f"{file} holds {len(chosen)} sets of weights: {listed}; choose one with FILE#KEY, "
            f"as in {file}#{max(chosen)}."
        )
    return next(iter(chosen.items()))


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets have the same names, types and values."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _choose(sets: Mapping[str, dict[str, Tensor]], key: str, file: str) -> tuple[str, dict[str, Tensor]]:
    """The set that the user chose: by keys, by a prefix of tensors' names, or by a word in either."""
    if key == ".":
        return ".", _without_copies(next(iter(sets.values())))
    if JOIN in key and all(part in sets for part in key.split(JOIN)):
        return key, join_sets({part: sets[part] for part in key.split(JOIN)})
    flat = {
        f"{label}.{name}" if label else name: t for label, found in sets.items() for name, t in found.items()
    }
    labels = {label for label in sets if label} | {
        name[: dot.start()] for name in flat for dot in _DOT.finditer(name)
    }
    named = [key] if key in labels else _outermost(one for one in labels if one.endswith(f".{key}"))
    named = named or _outermost(one for one in labels if key.lower() in _words(one))
    if len(named) > 1 and all(name in sets and _EMA.search(name) for name in named):
        return JOIN.join(named), join_sets({name: sets[name] for name in named})
    if len(named) != 1:
        some = ", ".join(sorted(sets.keys() - {""} or _outermost(labels))[:5])
        few = "several sets" if named else "no set"
        raise CheckpointError(
            f"{file} holds {few} of weights for {key!r}; it holds {some or 'one set only'}."
        )
    within = {
        name.removeprefix(f"{named[0]}."): t for name, t in flat.items() if name.startswith(f"{named[0]}.")
    }
    return named[0], within


def _words(label: str) -> list[str]:
    """The words of keys, in lower case: `ModelEma`, `model_EMA` and `ema-model` have the word `ema`."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", label)
    return re.split(r"[^a-z0-9]+", apart.lower())


def join_sets(parts: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parts as one set: each part's names after the last word of its key, or after all of it.

    Of `encoder_ema` and `head_ema` the `ema` is left out.
    """
    last = {key: key.rpartition(".")[2] for key in parts}
    if all(_EMA.search(word) for word in last.values()):
        last = {key: _EMA.sub("", word) for key, word in last.items()}
    short = max(Counter(last.values()).values()) == 1 and all(last.values())
    return {
        f"{last[key] if short else key}.{name}": tensor
        for key, tensors in parts.items()
        for name, tensor in plain_names(tensors).items()
    }


def _outermost(labels: Iterable[str]) -> list[str]:
    """The labels that are not nested in another label."""
    found = sorted(labels)
    return [label for label in found if not any(label.startswith(f"{other}.") for other in found)]


def _without_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without copies: names under a prefix that also occur without it."""
    copied = {name for name in tensors if name.partition(".")[2] in tensors}
    heads = {name.partition(".")[0] for name in copied}
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in heads}


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without DataParallel's prefix `module.`."""
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors
