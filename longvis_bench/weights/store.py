"""Write a model's weights, and keep those of `longvis train` in the store.

<store>/<variant>/<dataset>-<resolution>-<first 8 digits of sha256>.safetensors    and a .json beside it
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from longvis_bench.errors import CheckpointError
from longvis_bench.files import write_whole
from longvis_bench.resolution import Resolution, to_json
from longvis_bench.weights.header import read_header
from longvis_bench.weights.matching import derived_names


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors: floating-point tensors in fp16, without derived buffers.

    A tensor with values beyond the range of fp16 (above 65504) stays in fp32.  The file is written
    atomically, and the same weights and metadata give the same bytes.

    Arguments:
        model: the model, on any device.
        path: file to create or replace; its folder is created if necessary.
        metadata: plain values, stored as one JSON string under the key `longvis`.

    Raises:
        CheckpointError: a value is not finite, or the file cannot be written.
    """
    _write(Path(path), _serialised(model, metadata))


def _serialised(model: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    derived = derived_names(model)
    tensors = {name: _half(name, value) for name, value in model.state_dict().items() if name not in derived}
    return save(tensors, metadata={"longvis": json.dumps(dict(metadata), sort_keys=True)})


def round_weights(model: nn.Module) -> None:
    """Round a model's values to those that `save_weights` stores.

    Raises:
        CheckpointError: a value is not finite.
    """
    state = {name: _half(name, value) for name, value in model.state_dict().items()}
    model.load_state_dict(state)


def _half(name: str, value: Tensor) -> Tensor:
    """A copy on the CPU that shares no memory, in fp16 if its range suffices."""
    value = value.detach().to("cpu", copy=True).contiguous()
    if not value.is_floating_point():
        return value
    if not bool(value.isfinite().all()):
        raise CheckpointError(f"the weights were not saved: {name} holds values that are not finite.")
    half = value.half()
    return half if bool(half.isfinite().all()) else value.float()


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}.") from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata that `save_weights` wrote; empty for files of other programs."""
    return read_header(path).metadata


def default_store() -> Path:
    """The platform's folder for user data."""
    from platformdirs import user_data_path

    return user_data_path("longvis-bench", appauthor=False)


def store_weights(
    model: nn.Module,
    *,
    variant: str,
    dataset: str,
    resolution: Resolution,
    classes: Sequence[str] = (),
    facts: Mapping[str, Any],
    store: Path | None = None,
) -> Path:
    """Write trained weights to the store, under a descriptive name, with a JSON card beside them.

    Arguments:
        model: the trained model.
        variant: the user's name of the model; characters that are unsafe in a folder name become `_`.
        dataset: name of the training data.
        resolution: pixels per side of the training images.
        classes: class names by logit, which are later matched with a dataset's; empty if unknown.
        facts: recipe, seed, epochs, accuracy and the like, as plain values for the card.
        store: the store's folder; by default `default_store()`.

    Returns:
        The weight file.
    """
    identity: dict[str, Any] = {"variant": variant, "dataset": dataset, "resolution": to_json(resolution)}
    if classes:
        identity["classes"] = list(classes)
    content = _serialised(model, identity)
    sha256 = hashlib.sha256(content).hexdigest()
    path = weights_folder(variant, store) / f"{_file_name(dataset)}-{resolution}-{sha256[:8]}.safetensors"
    _write(path, content)
    card = {**identity, **facts, "file": path.name, "sha256": sha256}
    _write(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    return path


def weights_folder(variant: str, store: Path | None = None) -> Path:
    """The store's folder for a model."""
    return (store or default_store()) / _file_name(variant)


def _file_name(text: str) -> str:
    """The text as a safe file name without leading dots, e.g. for `../net.py:build`."""
    return re.sub(r"[^\w.@=,-]", "_", text).lstrip("._") or "_"
