"""Write a model's weights, and keep those of `longvis train` in the store.

<store>/<variant>/<dataset>-<resolution>-<first 8 of sha256>.safetensors    and beside it .json
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
from longvis_bench.weights.header import read_header
from longvis_bench.weights.matching import derived_names


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors: floating tensors in fp16, derived buffers left out.

    A tensor whose values fp16 cannot hold (65504 and more) stays in fp32.  The file appears whole or not at
    all, and the same weights and metadata give the same bytes.

    Arguments:
        model: on any device.
        path: replaced if it is there; its folder is made.
        metadata: plain values; kept as one JSON string under the key `longvis`.

    Raises:
        CheckpointError: a value is not finite, or the file cannot be written.
    """
    _write(Path(path), _serialised(model, metadata))


def _serialised(model: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    derived = derived_names(model)
    tensors = {name: _half(name, value) for name, value in model.state_dict().items() if name not in derived}
    return save(tensors, metadata={"longvis": json.dumps(dict(metadata), sort_keys=True)})


def round_weights(model: nn.Module) -> None:
    """Give a model the very values that its file holds or would hold (see `save_weights`).

    Raises:
        CheckpointError: a value is not finite.
    """
    state = {name: _half(name, value) for name, value in model.state_dict().items()}
    model.load_state_dict(state)


def _half(name: str, value: Tensor) -> Tensor:
    """A copy on the CPU that shares no memory, in fp16 where that holds it."""
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
    """What `save_weights` was told about a file; empty for a file it did not write."""
    return read_header(path).metadata


def default_store() -> Path:
    """The platform's folder for a user's own data."""
    from platformdirs import user_data_path

    return user_data_path("longvis-bench", appauthor=False)


def store_weights(
    model: nn.Module,
    *,
    variant: str,
    dataset: str,
    resolution: int,
    classes: Sequence[str] = (),
    facts: Mapping[str, Any],
    store: Path | None = None,
) -> Path:
    """Put trained weights into the store, under a name that says what they are, with a card beside them.

    Arguments:
        model: what was trained.
        variant: as the user names it; characters that no folder should have become `_`.
        dataset: name of the training data.
        resolution: pixels per side it was trained at.
        classes: their names by logit, by which the file is later matched with data; empty if unknown.
        facts: recipe, seed, epochs, accuracy and the like; plain values, kept in the card.
        store: folder; `default_store()` unless given.

    Returns:
        The weight file.
    """
    identity: dict[str, Any] = {"variant": variant, "dataset": dataset, "resolution": resolution}
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
    """Where the store keeps what belongs to a model."""
    return (store or default_store()) / _file_name(variant)


def _file_name(text: str) -> str:
    """A name any file system takes and no listing hides: `../net.py:build` begins with no dots."""
    return re.sub(r"[^\w.@=,-]", "_", text).lstrip("._") or "_"
