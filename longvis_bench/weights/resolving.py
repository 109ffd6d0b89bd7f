"""Which weight file a cell's accuracy is measured with, and whether it belongs to the model.

The user's file (`--weights`), or timm's own (`--pretrained`), else the one that ships for the variant, data
and size; never the best of several.  What the user names is matched with the model, built without values,
before anything runs: that takes seconds, and a cell may take hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longvis_bench.data.protocol import FOLDER, ImageData
from longvis_bench.errors import CheckpointError
from longvis_bench.files import absence
from longvis_bench.hashing import sha256_file
from longvis_bench.records import Normalisation
from longvis_bench.registry.registry import Variant
from longvis_bench.weights.classes import HEAD, class_indices, head_classes
from longvis_bench.weights.files import find_file, sha256_weights, split_key
from longvis_bench.weights.header import read_header


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file of weights, and what must be known to ask it about the data."""

    path: Path
    name: str
    """As rows name it: the file's name, or timm's name of the weights; never a path."""
    sha256: str
    classes: int | None = None
    """Those that it knows."""
    class_indices: tuple[int, ...] | None = None
    """See `classes.class_indices`."""
    resolution: int | None = None
    """Pixels per side it was trained at, where somebody else than the file says so."""
    normalisation: Normalisation | None = None
    """What it wants of a folder's images; None for ImageNet's."""

    def logits(self, data: ImageData) -> int:
        """Those of the model: as many as the data has classes, or the file's where it knows more."""
        return data.num_classes if self.class_indices is None or self.classes is None else self.classes


def given_weights(
    variants: Sequence[Variant],
    data: ImageData,
    file: Path | None,
    pretrained: bool,
    resolutions: Sequence[int] = (),
) -> dict[str, WeightFile]:
    """What the user names, by the full name of the variant; empty where nothing is named.

    Arguments:
        variants: all that are asked for.
        data: whose classes the weights must know.
        file: --weights: a file, FILE#KEY where it holds several sets, an index of shards, or a folder.
        pretrained: --pretrained: timm's weights, from the local cache or that file.
        resolutions: pixels per side that the models are built for, to ask which tensors are the classifier's.

    Raises:
        CheckpointError: there is no such file, or it knows other classes.
    """
    file = None if file is None else find_file(file)
    if file is not None and not split_key(file)[0].is_file():
        raise CheckpointError(f"{absence(file, 'weight file')}.")
    if file is not None and len(variants) > 1:
        raise CheckpointError(f"--weights is for one model, and {len(variants)} are asked for.")
    if pretrained:
        return {variant.full_name: _of_timm(variant, data, file, resolutions) for variant in variants}
    if file is not None:
        return {variant.full_name: _of_user(variant, file, data, resolutions) for variant in variants}
    return {}


def _of_user(variant: Variant, file: Path, data: ImageData, resolutions: Sequence[int]) -> WeightFile:
    from longvis_bench.weights.reading import read_set

    key, _ = read_set(file)
    path = split_key(file)[0].resolve()
    path = path.with_name(f"{path.name}#{key}") if key else path
    known = _known(variant, path, data, resolutions)
    indices = class_indices(path.name, known, data, read_header(path).metadata)
    return WeightFile(
        path=path, name=path.name, sha256=sha256_weights(path), classes=known, class_indices=indices
    )


def _of_timm(variant: Variant, data: ImageData, file: Path | None, resolutions: Sequence[int]) -> WeightFile:
    from longvis_bench.weights.timm_cache import find_pretrained

    found = find_pretrained(variant, file)
    name = f"timm:{found.name}" if file is None else file.name
    known = _known(variant, found.path, data, resolutions)
    return WeightFile(
        path=found.path.resolve(),
        name=name,
        sha256=sha256_weights(found.path),
        classes=known,
        class_indices=class_indices(name, known, data, read_header(found.path).metadata),
        resolution=found.resolution,
        normalisation=found.normalisation if data.name.startswith(FOLDER) else None,
    )


def _known(variant: Variant, path: Path, data: ImageData, resolutions: Sequence[int]) -> int | None:
    """Classes of the file: by the tensors that are the model's classifier, else by usual names."""
    from longvis_bench.weights.classifier import file_classes
    from longvis_bench.weights.reading import read_tensors

    known = file_classes(variant, read_tensors(path), resolutions, data.num_classes, path.name)
    return known_classes(path) if known is None else known


def known_classes(path: Path) -> int | None:
    """Classes of the classifier in a weight file of any form; None where it does not tell.

    Raises:
        CheckpointError: it is no safetensors file and cannot be read.
    """
    known = head_classes(path)
    if known is not None:
        return known
    from longvis_bench.weights.reading import read_tensors

    found = {len(tensor) for name, tensor in read_tensors(path).items() if HEAD.search(name) and tensor.ndim}
    return found.pop() if len(found) == 1 else None


def shipped_weights(variant: Variant, dataset: str, resolution: int) -> WeightFile | None:
    """The file that ships for the variant, data and size; None where none does.

    Raises:
        CheckpointError: it is damaged.
    """
    entry = variant.shipped_weights(dataset, resolution)
    if entry is None or entry.file is None or entry.sha256 is None:
        return None
    path = variant.folder / entry.file
    if not path.is_file() or sha256_file(path) != entry.sha256:
        raise CheckpointError(f"the shipped weights {entry.file} are damaged or missing; install again.")
    return WeightFile(path=path, name=path.name, sha256=entry.sha256)


def no_weights(model: str, dataset: str, resolution: int) -> str:
    """Why there is no accuracy where no file ships, and the command that makes one."""
    data = f"{FOLDER}PATH" if dataset.startswith(FOLDER) else dataset
    return (
        f"no weights ship for {model} on {dataset} at {resolution} px; "
        f"make them with `longvis train --models {model} --data {data} --res {resolution}`"
    )
