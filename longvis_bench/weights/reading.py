"""Load untrusted checkpoints without executing code.

safetensors holds nothing but tensors; PyTorch's own format is a pickle and is read by torch's restricted
unpickler, with `argparse.Namespace` and NumPy scalars (which training scripts leave in their checkpoints) as
the only additions.  What a file is, its first bytes say, not its name.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
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
"""Levels of nesting within which sets of weights are looked for."""
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|callbacks_state", re.IGNORECASE)
"""Keys of what training scripts save beside weights."""
_DOT = re.compile(r"\.")
UNPACK_FACTOR, UNPACK_SLACK = 4, 1 << 20
"""An archive may declare this many times its own size, plus a MiB; torch.save does not compress at all."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a set of weights, on the CPU, by name.

    Arguments:
        path: safetensors, or a file of torch.save (.pth, .pt, .bin, .pth.tar), recognised by content; or the
            index (.json) of files of these kinds; with `#KEY` after it where it holds several sets.

    Returns:
        The state dict: taken out of whatever it is nested in, `module.` prefixes removed.

    Raises:
        CheckpointError: the file is missing, corrupt, unsafe, or holds no state dict, or several and none is
            chosen.
    """
    return read_set(path)[1]


def read_set(path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The set of weights as `read_tensors` gives it, and its full key; empty where the file holds one set."""
    file, key = split_key(path)
    sets = _sets(_content(file), file.name)
    label, tensors = _choose(sets, key, file.name) if key else _only(sets, file.name)
    return (label if key else ""), plain_names(tensors)


def _content(path: Path) -> object:
    """Whatever lies in a file: tensors by name, nested in what a training script saved."""
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
    """The tensors of all files that an index names."""
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
    """Raise for a zip archive that declares far more than it can hold: unpacking it would fill the memory."""
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
    """Raise for tensors that repeat a few stored values into far more than the file holds (strides of 0)."""
    shown = _shown(content)
    held = path.stat().st_size
    if shown > UNPACK_FACTOR * held + UNPACK_SLACK:
        sizes = f"{show_size(held)} on the disk would become {show_size(shown)} of tensors"
        raise CheckpointError(f"{path.name} was refused as unsafe: {sizes}.")


def _shown(content: object, depth: int = 0) -> int:
    """Bytes of the largest set of tensors in the content: sets may share their storage."""
    inner = _inner(content)
    own = sum(t.numel() * t.element_size() for _, t in inner if isinstance(t, Tensor))
    deeper = (_shown(value, depth + 1) for _, value in inner if depth < DEEPEST)
    return max(own, *deeper, 0) if inner else 0


def _read_pickle(path: Path) -> object:
    """Whatever a file of torch.save holds, by the restricted unpickler.  Nothing in the file is executed."""
    try:
        # An open file, because torch.load lets the name of a path decide what it is.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to its own developers
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
    """Classes allowed beside tensors: argparse.Namespace, and what a pickled NumPy scalar is made of."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in "?bhilqBHILQefdSU"]
    moved = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    return [argparse.Namespace, np.dtype, *moved, *dtypes]


def _inner(content: object) -> list[tuple[str, object]]:
    """What a mapping or a list holds, by key or number."""
    if isinstance(content, Mapping):
        return [(str(key), value) for key, value in content.items()]
    if isinstance(content, list | tuple):
        return [(str(number), value) for number, value in enumerate(content)]
    return []


def _sets(content: object, name: str) -> dict[str, dict[str, Tensor]]:
    """All sets of tensors in what a training script saved, by the keys that lead to them.

    Left out are states of optimizers, and tensors that lie loose beside a nested set (an epoch, a metric).
    """
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        if not any(isinstance(value, Mapping) for _, value in _inner(content)):
            raise CheckpointError(f"{name} holds no state dict but a {kind}.")
    found = dict(_walk(content))
    if not found:
        raise CheckpointError(f"{name} holds no tensors.")
    loose = [key for key, tensors in found.items() if not any("." in tensor for tensor in tensors)]
    nested = {key: tensors for key, tensors in found.items() if key not in loose or _parent(key, found)}
    return nested or found


def _parent(key: str, found: Mapping[str, object]) -> bool:
    """Whether a set is nested as deep as any, so that its names without dots are no loose values."""
    return not any(other != key and (not key or other.startswith(f"{key}.")) for other in found)


def _walk(content: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    inner = _inner(content)
    tensors = {name: value for name, value in inner if isinstance(value, Tensor)}
    if tensors and isinstance(content, Mapping):
        yield key, tensors
    for name, value in inner if depth < DEEPEST else ():
        if not _NO_WEIGHTS.search(name) and not isinstance(value, Tensor):
            yield from _walk(value, f"{key}.{name}" if key else name, depth + 1)


def _only(sets: Mapping[str, dict[str, Tensor]], file: str) -> tuple[str, dict[str, Tensor]]:
    """The set of a file that holds one; equal copies, and sets of less than half its size, do not count."""
    values = {key: found for key, found in sets.items() if any(t.ndim for t in found.values())}
    sets = values or sets
    most = max(map(len, sets.values()))
    chosen: dict[str, dict[str, Tensor]] = {}
    for key, tensors in sets.items():
        if 2 * len(tensors) >= most and not any(_same(tensors, other) for other in chosen.values()):
            chosen[key] = tensors
    if len(chosen) > 1:
        listed = ", ".join(f"{key or '.'} ({len(tensors)} tensors)" for key, tensors in chosen.items())
        raise CheckpointError(
            f"{file} holds {len(chosen)} sets of weights: {listed}; choose one with FILE#KEY, "
            f"as in {file}#{max(chosen)}."
        )
    return next(iter(chosen.items()))


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _choose(sets: Mapping[str, dict[str, Tensor]], key: str, file: str) -> tuple[str, dict[str, Tensor]]:
    """The set that a user names: by keys, by a prefix of tensors' names, or by a word in either."""
    if key == ".":
        return ".", _without_copies(next(iter(sets.values())))
    flat = {
        f"{label}.{name}" if label else name: t for label, found in sets.items() for name, t in found.items()
    }
    labels = {label for label in sets if label} | {
        name[: dot.start()] for name in flat for dot in _DOT.finditer(name)
    }
    named = [key] if key in labels else _outermost(one for one in labels if one.endswith(f".{key}"))
    named = named or _outermost(one for one in labels if key in re.split(r"[._]", one))
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


def _outermost(labels: Iterable[str]) -> list[str]:
    """Those that do not lie within another of them."""
    found = sorted(labels)
    return [label for label in found if not any(label.startswith(f"{other}.") for other in found)]


def _without_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without those that repeat, under a prefix, names that are there without it."""
    copied = {name for name in tensors if name.partition(".")[2] in tensors}
    heads = {name.partition(".")[0] for name in copied}
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in heads}


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that DataParallel puts before every one."""
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors
