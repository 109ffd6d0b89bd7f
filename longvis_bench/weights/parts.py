"""Which of several sets of weights in a file are parts of one: `{"encoder": {...}, "head": {...}}`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from longvis_bench.errors import CheckpointError
from longvis_bench.weights.files import split_key
from longvis_bench.weights.naming import by_model_names
from longvis_bench.weights.reading import JOIN, join_sets, plain_names, read_sets, same_tensors


def with_parts(path: Path, model: nn.Module) -> Path:
    """The file with the key of its parts, where none of its sets has every tensor of the model and all have.

    Arguments:
        path: a file of weights, or FILE#KEY, which stays.
        model: may lie on the meta device.

    Returns:
        FILE#encoder+head; or the path as it was.

    Raises:
        CheckpointError: the file cannot be read, or holds such parts twice.
    """
    sets = {} if split_key(path)[1] else read_sets(path)
    if len(sets) < 2 or "" in sets:
        return path
    wanted = model.state_dict()
    if any(_is_whole(model, plain_names(found), wanted) for found in sets.values()):
        return path
    used = {key: found for key, found in sets.items() if not _is_whole(model, _without(sets, key), wanted)}
    if len(used) < 2 or not _is_whole(model, join_sets(used), wanted):
        return path
    _refuse_rivals(path.name, sets, used)
    return path.with_name(f"{path.name}#{JOIN.join(used)}")


def _refuse_rivals(file: str, sets: Mapping[str, dict[str, Tensor]], used: Mapping[str, object]) -> None:
    """Raise where a set that is no part has the names and shapes of one, and other values."""
    for key, found in sets.items():
        for part in used if key not in used else ():
            if _shapes(found) == _shapes(sets[part]) and not same_tensors(found, sets[part]):
                listed = ", ".join(sets)
                raise CheckpointError(
                    f"{file} holds several sets of weights in parts: {listed}; choose with FILE#PART+PART, "
                    f"as in {file}#{JOIN.join(used)}."
                )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _without(sets: Mapping[str, dict[str, Tensor]], key: str) -> dict[str, Tensor]:
    return join_sets({other: found for other, found in sets.items() if other != key})


def _is_whole(model: nn.Module, tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether the tensors give every tensor of the model a value, whatever its shape."""
    try:
        found, _ = by_model_names(model, tensors, wanted, "")
    except CheckpointError:
        return False
    return all(name in found or name.endswith("num_batches_tracked") for name in wanted)
