"""Weight files of strangers: read without running code.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longvis_bench.errors import CheckpointError
from longvis_bench.units import size as show_size

CONTAINERS = ("state_dict", "model", "module", "teacher")
"""Keys under which training scripts put the weights among other things."""
UNPACK_FACTOR, UNPACK_SLACK = 4, 1 << 20
"""An archive may declare this many times its own size, plus a MiB; torch.save does not compress at all."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a weight file, on the CPU, by name.

    Arguments:
        path: safetensors, or a file of torch.save (.pth, .pt, .bin, .pth.tar), recognised by content.

    Returns:
        The state dict: taken out of `state_dict` or `model` where it lies there, `module.` prefixes removed.

    Raises:
        CheckpointError: the file is missing, corrupt, unsafe, or holds no state dict.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {path}: {error.strerror or error}.") from error
    if start[8:9] == b"{" and start[:2] != b"PK":
        return plain_names(_read_safetensors(path))
    if start[:2] == b"PK":
        _refuse_bomb(path)
    elif start[:1] != b"\x80":
        raise CheckpointError(f"{path.name} is no weight file: neither safetensors nor a file of torch.save.")
    tensors = _state_dict(_read_pickle(path), path.name)
    _refuse_expanded(tensors, path)
    return plain_names(tensors)


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


def _refuse_expanded(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise for tensors that repeat a few stored values into far more than the file holds (strides of 0)."""
    shown = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    held = path.stat().st_size
    if shown > UNPACK_FACTOR * held + UNPACK_SLACK:
        sizes = f"{show_size(held)} on the disk would become {show_size(shown)} of tensors"
        raise CheckpointError(f"{path.name} was refused as unsafe: {sizes}.")


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


def _state_dict(content: object, name: str) -> dict[str, Tensor]:
    """The state dict in what a training script saved."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise CheckpointError(f"{name} holds no state dict but a {kind}.")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{name} holds no tensors.")
    return tensors


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that DataParallel puts before every one."""
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors
