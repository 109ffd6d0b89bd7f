"""Number of classes of a weight file, and the logit index of each dataset class.

Weights of ImageNet can be evaluated on a subset of its classes: predictions are then restricted to their
logits.  This needs class folders named by WordNet synset (n01440764), like ImageNet's own; timm has the order
of the logits for each of its sets of classes (1,000, 11,821, 21,841 and others).  Files of `longvis train`
have the names of their classes, which are matched with the dataset's in any order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longvis_bench.data.protocol import ImageData
from longvis_bench.errors import CheckpointError
from longvis_bench.weights.header import read_header

HEAD = re.compile(r"(^|\.)(head|fc|classifier)(\.fc)?\.(weight|bias)$")
"""Usual names of a classifier's tensors, for models that do not identify their classifier."""
MOST_LISTED = 5
"""Largest number of classes that a message lists."""
_SYNSET = re.compile(r"n\d{8}")


def head_classes(path: Path) -> int | None:
    """Number of classes in a safetensors file, from its header; None if the header is ambiguous."""
    found = {shape[0] for name, shape in read_header(path).shapes.items() if HEAD.search(name) and shape}
    return found.pop() if len(found) == 1 else None


def class_indices(
    name: str, known: int | None, data: ImageData, metadata: Mapping[str, Any] | None = None
) -> tuple[int, ...] | None:
    """The logit index of each dataset class.

    Arguments:
        name: name of the weight file, for messages.
        known: number of classes of the file; None if unknown, which is accepted.
        data: the dataset.
        metadata: metadata that `save_weights` wrote; `classes` are the class names by logit.

    Returns:
        Logit index of each dataset class, in order; None if the model's classes are the dataset's, in the
        same order.

    Raises:
        CheckpointError: the file has other classes, so the classifier would be random.
    """
    stored = _stored_classes(metadata or {}, known)
    indices = _indices_by_name(name, stored, data) if stored else None
    if indices is None and known is not None:
        indices = _imagenet_indices(known, data.classes)
    if indices is not None:
        return None if indices == tuple(range(known or len(stored))) else indices
    if known is not None and known != data.num_classes:
        raise CheckpointError(
            f"{name} has {known} classes and {data.name} has {data.num_classes}: "
            "choose weights of this data, or classes with --classes."
        )
    return None


def stored_order(metadata: Mapping[str, Any], classes: Sequence[str]) -> tuple[int, ...] | None:
    """For each class its index in a file that has the same classes in another order; else None."""
    stored = _stored_classes(metadata, None)
    if sorted(stored) != sorted(classes) or list(stored) == list(classes):
        return None
    return tuple(stored.index(name) for name in classes)


def knows_classes(known: int | None, data: ImageData, metadata: Mapping[str, Any]) -> bool:
    """Whether names tell which logit is which class, so that the order of the data's classes is no guess."""
    stored = _stored_classes(metadata, known)
    if any(name in stored for name in data.classes):
        return True
    return known is not None and _imagenet_indices(known, data.classes) is not None


def _stored_classes(metadata: Mapping[str, Any], known: int | None) -> list[str]:
    """Class names by logit from the file's metadata; empty unless there is one name per logit."""
    names = metadata.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    return names if len(set(names)) == len(names) and known in (None, len(names)) else []


def _indices_by_name(file: str, stored: Sequence[str], data: ImageData) -> tuple[int, ...] | None:
    """Logit indices of the dataset classes by name; None if no name matches."""
    index = {name: position for position, name in enumerate(stored)}
    unknown = [name for name in data.classes if name not in index]
    if not unknown:
        return tuple(index[name] for name in data.classes)
    if len(unknown) == len(data.classes):
        return None
    more = ", ..." if len(unknown) > MOST_LISTED else ""
    raise CheckpointError(
        f"{file} was not trained on {len(unknown)} of the {data.num_classes} classes of {data.name}: "
        f"{', '.join(unknown[:MOST_LISTED])}{more}; choose among its classes with --classes."
    )


def _imagenet_indices(known: int, classes: Sequence[str]) -> tuple[int, ...] | None:
    """Logit indices of ImageNet classes in timm's set of `known` classes; None if a class is not in it."""
    if not all(_SYNSET.fullmatch(name) for name in classes):
        return None
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": known})
    if subset is None:
        return None
    known_names: list[str] = ImageNetInfo(subset).label_names()  # type: ignore[no-untyped-call]
    index = {name: position for position, name in enumerate(known_names)}
    return tuple(index[name] for name in classes) if all(name in index for name in classes) else None
