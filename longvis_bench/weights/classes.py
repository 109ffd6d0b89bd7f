"""The classes that a weight file knows: how many, and the logit index of each class of the data.

Weights of ImageNet can be asked about some of its classes: the answers are then chosen among their logits.
That takes class folders named by WordNet synset (n01440764), as ImageNet's own are; timm has the order of the
logits for each of its sets of classes (1,000, 11,821, 21,841 and others).  Files that `longvis train` made
hold the names of their classes, and are matched by name whatever the order of the data.
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
"""Names of a classifier's tensors, where the model does not tell which they are."""
MOST_NAMED = 5
"""Classes named in a message."""
_SYNSET = re.compile(r"n\d{8}")


def head_classes(path: Path) -> int | None:
    """Classes of the classifier in a safetensors file; None where its header does not tell."""
    found = {shape[0] for name, shape in read_header(path).shapes.items() if HEAD.search(name) and shape}
    return found.pop() if len(found) == 1 else None


def class_indices(
    name: str, known: int | None, data: ImageData, metadata: Mapping[str, Any] | None = None
) -> tuple[int, ...] | None:
    """The logit index of each class of the data.

    Arguments:
        name: the weight file's, for messages.
        known: classes of the file; None where unknown, which is no reason to refuse.
        data: whose classes are asked about.
        metadata: what `save_weights` wrote into the file; `classes` are the names by logit.

    Returns:
        For each class of the data, in order, its logit; None where both are the same, one for one.

    Raises:
        CheckpointError: the file knows other classes: the classifier would be random.
    """
    stored = _stored_classes(metadata or {}, known)
    indices = _indices_by_name(name, stored, data) if stored else None
    if indices is None and known is not None:
        indices = _imagenet_indices(known, data.classes)
    if indices is not None:
        return None if indices == tuple(range(known or len(stored))) else indices
    if known is not None and known != data.num_classes:
        raise CheckpointError(
            f"{name} knows {known} classes and {data.name} has {data.num_classes}: "
            "choose weights of this data, or classes with --classes."
        )
    return None


def _stored_classes(metadata: Mapping[str, Any], known: int | None) -> list[str]:
    """Names by logit, as the file's metadata has them; empty where it has none, or not one for each logit."""
    names = metadata.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    return names if len(set(names)) == len(names) and known in (None, len(names)) else []


def _indices_by_name(file: str, stored: Sequence[str], data: ImageData) -> tuple[int, ...] | None:
    """The logits of the data's classes by their names; None where the names have nothing in common."""
    index = {name: position for position, name in enumerate(stored)}
    unknown = [name for name in data.classes if name not in index]
    if not unknown:
        return tuple(index[name] for name in data.classes)
    if len(unknown) == len(data.classes):
        return None
    more = ", ..." if len(unknown) > MOST_NAMED else ""
    raise CheckpointError(
        f"{file} was not trained on {len(unknown)} of the {data.num_classes} classes of {data.name}: "
        f"{', '.join(unknown[:MOST_NAMED])}{more}; choose among its classes with --classes."
    )


def _imagenet_indices(known: int, classes: Sequence[str]) -> tuple[int, ...] | None:
    """The logits of ImageNet classes among `known` ones; None where some class is none of those."""
    if not all(_SYNSET.fullmatch(name) for name in classes):
        return None
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": known})
    if subset is None:
        return None
    known_names: list[str] = ImageNetInfo(subset).label_names()  # type: ignore[no-untyped-call]
    index = {name: position for position, name in enumerate(known_names)}
    return tuple(index[name] for name in classes) if all(name in index for name in classes) else None
