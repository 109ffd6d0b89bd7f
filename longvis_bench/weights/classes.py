"""Which classes a weight file knows: how many, by its header alone, and where the data's are among them.

Weights of ImageNet can be asked about some of its classes: the answers are then chosen among their logits.
That takes class folders named by WordNet synset (n01440764), as ImageNet's own are; which logit is whose,
timm knows for each of its sets of classes (1,000, 11,821, 21,841 and others).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from longvis_bench.data.protocol import ImageData
from longvis_bench.errors import CheckpointError

HEAD = re.compile(r"(^|\.)(head|fc|classifier)(\.fc)?\.(weight|bias)$")
"""Names of a classifier's tensors."""
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format."""
_SYNSET = re.compile(r"n\d{8}")


def head_classes(path: Path) -> int | None:
    """Classes of the classifier in a safetensors file; None where its header does not tell."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
        found = {entry["shape"][0] for name, entry in header.items() if HEAD.search(name)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    known = found.pop() if len(found) == 1 else None
    return known if isinstance(known, int) else None


def logit_places(name: str, known: int | None, data: ImageData) -> tuple[int, ...] | None:
    """Where the data's classes stand among the logits of a weight file.

    Arguments:
        name: the weight file's.
        known: its classes; None where unknown, which is no reason to refuse.
        data: whose classes are asked about.

    Returns:
        For each class of the data, in order, its logit; None where both are the same, one for one.

    Raises:
        CheckpointError: the file knows other classes: the classifier would be random.
    """
    places = None if known is None else _imagenet_places(known, data.classes)
    if places is not None:
        return None if places == tuple(range(known or 0)) else places
    if known is not None and known != data.num_classes:
        raise CheckpointError(
            f"{name} knows {known} classes and {data.name} has {data.num_classes}: "
            "choose weights of this data, or classes with --classes."
        )
    return None


def _imagenet_places(known: int, classes: Sequence[str]) -> tuple[int, ...] | None:
    """The logits of ImageNet classes among `known` ones; None where some class is none of those."""
    if not all(_SYNSET.fullmatch(name) for name in classes):
        return None
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": known})
    if subset is None:
        return None
    known_names: list[str] = ImageNetInfo(subset).label_names()  # type: ignore[no-untyped-call]
    place = {name: index for index, name in enumerate(known_names)}
    return tuple(place[name] for name in classes) if all(name in place for name in classes) else None
